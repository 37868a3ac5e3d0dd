"""The memory that a slot takes in the ledger, at a million of them, and an operation in a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from rounds import Row

from cpsim.evidence.journal import RECORD

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 1_000_000
IN_BATCH = 1_000
MACHINES = 1_000
JOBS = (20_000, 200_000)
SCENARIO = """
description = "As many jobs as are asked for"
duration = "1d"
population = {{ machines = 5_000, users = 3_000 }}
arrivals = {{ model = "poisson", jobs = {jobs} }}
run_time = {{ model = "lognormal", median = "40min", sigma = 0.8 }}
"""


def per_slot() -> Row:
    """Bytes a slot that was claimed with two counters, and one that is allocated; each in a process of its own."""
    claimed, allocated = (
        float(subprocess.run([sys.executable, __file__, life], stdout=subprocess.PIPE, check=True).stdout)
        for life in ("claimed", "allocated")
    )
    return Row(claimed, allocated, claimed / allocated)


def per_operation(folder: Path, path: str) -> tuple[str, Row]:
    """Bytes by which the greatest memory of a run grows with each operation, and those of its journal's record."""
    few, many = (_greatest_bytes(folder, path, jobs) for jobs in JOBS)
    grown = (many[0] - few[0]) / (many[1] - few[1])
    title = f"greatest memory of a run for each of {many[1]:,} operations / size of its record, bytes"
    return title, Row(grown, RECORD.size, grown / RECORD.size)


def _greatest_bytes(folder: Path, path: str, jobs: int) -> tuple[int, int]:
    """The greatest memory of a run of so many jobs, and how many operations it had."""
    scenario, output = folder / f"memory-{jobs}.toml", folder / f"memory-{jobs}"
    scenario.write_text(SCENARIO.format(jobs=jobs), encoding="utf-8")
    options = ["run", str(scenario), "--target", path, "--output", str(output)]
    # by a process in between: what a child has at most begins with what its parent has
    used = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, check=True).stdout
    operations = json.loads((output / "run.json").read_text(encoding="utf-8"))["operations"]
    return int(used), operations


def greatest_bytes(arguments: list[str]) -> int:
    """The greatest memory of a cpsim that is run to its end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cpsim", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(life: str) -> float:
    """Fill a server's ledger as requests would, and see what this process has grown by."""
    from cpsim.server.service import AccountServer

    accounts = AccountServer({"bench": "secret"}, journal_limit=0)
    before = resident_bytes()
    for batch in range(SLOTS // IN_BATCH):
        slots = [f"job-{batch}-{number}" for number in range(IN_BATCH)]
        calls = [["alloc", {"slot": slot, "credits": "5"}] for slot in slots]
        if life == "claimed":
            calls += [["counters", {"slot": slot, "job/cpuusage": "3601", "job/success": "1"}] for slot in slots]
            calls += [["claim", {"slot": slot, "machine": f"vm-{hash(slot) % MACHINES}"}] for slot in slots]
        assert not accounts.apply("bench", json.loads(json.dumps(calls)))
    return (resident_bytes() - before) / SLOTS


def resident_bytes() -> int:
    """The memory that this process has."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], stdout=subprocess.PIPE, check=True)
    return int(shown.stdout) * 1024


if __name__ == "__main__":
    print(greatest_bytes(sys.argv[1:]) if sys.argv[1] == "run" else measure(sys.argv[1]))
