"""Keep a daemon and a server busy, at half of what they can do or a given rate, and see whether anything grows.

    python tests/robustness/soak.py --minutes 30

A `cpsim daemon` with its spool forwards to a `cpsim serve` with its store, which now and then refuses, breaks off or
loses a reply. Round after round is replayed, verified and forgotten. The exit status is 0 if every round was valid, and
memory, open files, threads and latency at the end are as they were once it had warmed up. Figures are printed
as JSON, and those of each round on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS = (
    "server.status=503:probability=0.02,kind=bulk",
    "server.lose-reply:probability=0.01,kind=bulk",
    "server.cut:probability=0.01,kind=bulk",
)
ACCOUNT = ("--project", "demo", "--secret-file", "secret")
ROUND_S = 30.0
TELLING_S = 10.0
"""A shorter round tells nothing of latency."""
OPERATIONS_A_JOB = 3
MOST = {"memory_mb": 1.15, "p99_ms": 2.0, "files": 1.1, "threads": 1.0}
"""How many times what there was at first there may be at last."""
SLACK = {"memory_mb": 10.0, "p99_ms": 2.0, "files": 8.0, "threads": 1.0}
"""And how much more, whatever it was: few are easily doubled."""


def main() -> int:
    """Soak, print what was seen round by round, and say whether it stayed flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--round", type=float, default=ROUND_S, help="seconds of load in a round")
    parser.add_argument("--rate", type=float, help="commands a second; otherwise half of what is possible")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "secret").write_text("demo", encoding="utf-8")
        faults = [word for fault in FAULTS for word in ("--fault", fault)]
        with (
            cpsim(folder, "serve", "--http", "127.0.0.1:0", "--store", "store", "--seed", "1", *faults) as server,
            cpsim(folder, "daemon", "--server", server.url, *ACCOUNT, "--unix", "d.sock", "--spool", "spool") as daemon,
        ):
            rate = chosen.rate or replay(folder, server, "--asap", operations=20_000)["operations_per_s"] / 2
            rounds = []
            end = time.monotonic() + chosen.minutes * 60
            while time.monotonic() < end or len(rounds) < 4:
                seen = replay(folder, server, "--rate", f"{rate:.0f}", operations=int(rate * chosen.round))
                rounds.append(seen | {"server": server.size(), "daemon": daemon.size()})
                print(len(rounds), json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    problems = [
        f"round {number}: {seen['verdict']}" for number, seen in enumerate(rounds) if seen["verdict"] != "valid"
    ]
    problems += grown(rounds, [what for what in MOST if what != "p99_ms" or chosen.round >= TELLING_S])
    figures = {"rate": round(rate), "rounds": len(rounds), "first": rounds[0], "last": rounds[-1]}
    print(json.dumps(figures | {"problems": problems}, indent=2))
    return 1 if problems else 0


class Serving:
    """A process that serves, and what is seen of it from outside."""

    def __init__(self, process: subprocess.Popen[str], addresses: dict[str, str]) -> None:
        self.url = addresses.get("http", "")
        self._pid = process.pid

    def size(self) -> dict[str, float]:
        """Its memory, open files and threads."""
        memory = _told("ps", "-o", "rss=", "-p", str(self._pid))
        proc = Path(f"/proc/{self._pid}")
        if proc.exists():
            files, threads = len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))
        else:
            files = len(_told("lsof", "-p", str(self._pid)).splitlines())
            threads = len(_told("ps", "-M", str(self._pid)).splitlines()) - 1
        return {"memory_mb": int(memory) / 1024, "files": files, "threads": threads}


@contextmanager
def cpsim(folder: Path, *arguments: str) -> Iterator[Serving]:
    """A command that serves, in a folder, while the context lasts."""
    log = folder / f"{arguments[0]}.log"
    command = [sys.executable, "-P", "-m", "cpsim", *arguments]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        kind, _, address = process.stdout.readline().strip().partition(" ")
        if not address:
            process.kill()
            sys.exit(f"{arguments[0]} did not start:\n{log.read_text(encoding='utf-8')}")
        try:
            yield Serving(process, {kind: address})
        finally:
            process.terminate()


def replay(folder: Path, server: Serving, *pace: str, operations: int) -> dict[str, Any]:
    """Replay so many operations, and have the server forget them."""
    jobs = f"arrivals.jobs={max(1, operations // OPERATIONS_A_JOB)}"
    command = [sys.executable, "-P", "-m", "cpsim", "run", "steady", "--target", "./d.sock", "--server", server.url]
    command += [*ACCOUNT, *pace, "--set", jobs, "--timeout", "60", "--output", "run", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"a round ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    subprocess.run(["rm", "-r", "run"], cwd=folder, check=True)
    request = urllib.request.Request(f"{server.url.removesuffix('/api')}/__cpsim/reset", method="POST")
    urllib.request.urlopen(request).close()
    latency = told["response_ms"] or told["service_ms"]
    kept = {name: told[name] for name in ("operations", "operations_per_s", "lateness_p99_ms", "verdict")}
    return kept | {"p99_ms": latency["p99"], "errors": told["errors"]}


def grown(rounds: list[dict[str, Any]], watched: list[str]) -> list[str]:
    """What is more in the last quarter of the rounds than it was in the second."""
    quarter = len(rounds) // 4
    problems = []
    for what in watched:
        for where in ("server", "daemon") if what != "p99_ms" else ("",):
            values = [seen[where][what] if where else seen[what] for seen in rounds]
            first, last = (statistics.median(values[at : at + quarter]) for at in (quarter, len(rounds) - quarter))
            if last > max(first * MOST[what], first + SLACK[what]):
                problems.append(f"{what} of the {where or 'commands'}: {first:g} at first, {last:g} at last")
    return problems


def _told(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
