"""The greatest memory and the processor time of each process of a load under Locust, on Linux.

    python tests/benchmarks/loading.py JOBS OUTPUT

sends so many jobs, two operations each, by four workers to a daemon whose server's accounts are compared, and writes
the run folder to OUTPUT. It prints a line for each process: the greatest resident memory, files that are mapped
included, the greatest of what is in no file, and processor time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from replaying import scenario
from rounds import Row
from served import CREDENTIALS, serving

from cpsim.evidence.files import JOURNAL

WORKERS = 4
LOOK_S = 0.1
JOBS = (100_000, 300_000)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Of a process: its greatest resident memory, what of it was in no file at most, and its processor time."""

    most_mb: float
    anonymous_mb: float
    cpu_s: float


def loaded(jobs: int, output: Path) -> tuple[Cost, list[Cost]]:
    """The cost of the master of a load of so many jobs, and of each worker."""
    with TemporaryDirectory() as name, serving(Path(name) / "site") as addresses:
        folder = Path(name)
        (folder / "secret").write_text(CREDENTIALS[1], encoding="utf-8")
        account = ["--server", addresses["http"], "--project", CREDENTIALS[0], "--secret-file", str(folder / "secret")]
        where = [str(scenario(folder, jobs)), "--target", addresses["unix"], *account, "--output", str(output)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        own = {"LOCUST_SKIP_URL_CHECK": "1", "LOCUST_MASTER_BIND_PORT": port, "LOCUST_MASTER_NODE_PORT": port}
        command = [sys.executable, "-P", "-m", "cpsim", "load", *where, "--", "--headless", "--processes", str(WORKERS)]
        with (folder / "log").open("wb") as log:
            master = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
            costs: dict[int, Cost] = {}
            while master.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    master.wait(LOOK_S)
                for process in (master.pid, *_children(master.pid)):
                    costs[process] = _cost(process, costs.get(process, Cost(0.0, 0.0, 0.0)))
        if master.returncode:
            sys.exit((folder / "log").read_text(encoding="utf-8"))
    return costs.pop(master.pid), sorted(costs.values())[-WORKERS:]  # what else it starts is short and small


def rows(folder: Path) -> list[tuple[str, Row]]:
    """The greatest memory and the processor time of a load of many jobs, and of one of a third."""
    few, many = (loaded(jobs, folder / f"load-{jobs}") for jobs in JOBS)
    sizes = f"{2 * JOBS[1]:,} operations / of {2 * JOBS[0]:,}"
    both = {"the master": (many[0], few[0]), "a worker": (max(many[1]), max(few[1]))}
    memory = [
        (f"greatest memory of {who} of a load of {sizes}, MB", Row(a.most_mb, b.most_mb, a.most_mb / b.most_mb))
        for who, (a, b) in both.items()
    ]
    return memory + [
        (f"processor time of {who} of a load of {sizes}, s", Row(a.cpu_s, b.cpu_s, a.cpu_s / b.cpu_s))
        for who, (a, b) in both.items()
    ]


def _children(process: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()))
    except OSError:
        return []


def _cost(process: int, before: Cost) -> Cost:
    """The cost of a process up to now; as it was before, if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        most, anonymous = (int(status.partition(f"{name}:")[2].split()[0]) / 1e3 for name in ("VmHWM", "RssAnon"))
        times = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    except (OSError, IndexError):
        return before
    return Cost(most, max(before.anonymous_mb, anonymous), sum(map(int, times)) / TICKS_PER_S)


if __name__ == "__main__":
    head, workers = loaded(int(sys.argv[1]), Path(sys.argv[2]))
    for who, cost in [("master", head), *(("worker", each) for each in workers)]:
        print(f"{who:8} {cost.most_mb:6.0f} MB ({cost.anonymous_mb:.0f}) {cost.cpu_s:8.1f} s")
    assert (Path(sys.argv[2]) / JOURNAL).exists()
