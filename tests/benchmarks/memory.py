"""The memory that a slot takes in the ledger, at a million of them, and an operation in a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rounds import Row

from cpsim.evidence.journal import RECORD

SLOTS = 1_000_000
IN_BATCH = 1_000
MACHINES = 1_000
JOBS = (670_000, 2_000_000)
LOG_JOBS = (500_000, 50_000)
READING = """
import resource, sys
from pathlib import Path
from cpsim.scenario import load_workload
load_workload(Path(sys.argv[1]), 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def per_slot() -> Row:
    """Bytes a slot that was claimed with two counters, and one that is allocated; each in a process of its own."""
    claimed, allocated = (
        float(subprocess.run([sys.executable, __file__, life], stdout=subprocess.PIPE, check=True).stdout)
        for life in ("claimed", "allocated")
    )
    return Row(claimed, allocated, claimed / allocated)


def by_length(folder: Path) -> list[tuple[str, Row]]:
    """The greatest memory of a run, with a ledger compared, and of one of a third; and what each operation adds."""
    few, many = (_greatest_bytes(folder, jobs) for jobs in JOBS)
    grown = (many[0] - few[0]) / (many[1] - few[1])
    return [
        (
            f"greatest memory of a run of {many[1]:,} operations / of {few[1]:,}, MB",
            Row(many[0] / 1e6, few[0] / 1e6, many[0] / few[0]),
        ),
        (
            "memory that each operation adds to a run / size of its record, bytes",
            Row(grown, RECORD.size, grown / RECORD.size),
        ),
    ]


def _greatest_bytes(folder: Path, jobs: int) -> tuple[int, int]:
    """The greatest memory of a run of so many jobs, in a process of its own, and how many operations it had."""
    command = [sys.executable, Path(__file__).with_name("length.py"), str(jobs), folder / f"memory-{jobs}"]
    most, operations = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()
    return int(most), int(operations)


def of_a_log(folder: Path) -> Row:
    """The greatest memory of reading a job log, and of reading one of a tenth of its jobs."""
    many, few = (_bytes_of_a_log(folder / f"log-{jobs}.swf", jobs) for jobs in LOG_JOBS)
    return Row(many / 1e6, few / 1e6, many / few)


def _bytes_of_a_log(path: Path, jobs: int) -> int:
    with path.open("w", encoding="utf-8") as file:
        for job in range(1, jobs + 1):
            file.write(f"{job} {job * 40} {job % 900} {job * 7919 % 40_000} 8 -1 -1 8 -1 -1 1 {job % 200}{' -1' * 6}\n")
    # by a process in between: what a child has at most begins with what its parent has
    return int(subprocess.run([sys.executable, __file__, "log", path], stdout=subprocess.PIPE, check=True).stdout)


def reading_bytes(path: str) -> int:
    """The greatest memory of a process that reads a job log."""
    command = [sys.executable, "-P", "-c", READING, path]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return int(told) * (1 if sys.platform == "darwin" else 1024)


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
    if sys.argv[1] == "log":
        print(reading_bytes(sys.argv[2]))
    else:
        print(measure(sys.argv[1]))
