"""The memory that a slot takes in the ledger, at a million of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from rounds import Row

SLOTS = 1_000_000
IN_BATCH = 1_000
MACHINES = 1_000


def per_slot() -> Row:
    """Bytes a slot that was claimed with two counters, and one that is allocated; each in a process of its own."""
    claimed, allocated = (
        float(subprocess.run([sys.executable, __file__, life], stdout=subprocess.PIPE, check=True).stdout)
        for life in ("claimed", "allocated")
    )
    return Row(claimed, allocated, claimed / allocated)


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
    print(measure(sys.argv[1]))
