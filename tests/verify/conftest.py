"""Workloads made of calls, for histories that no scenario has."""

import numpy as np
import pytest

from cpdaemon.commands import KINDS
from cpsim.replay.journal import RECORD_TYPE
from cpsim.scenario.workload import (
    ABSENT,
    AllocTable,
    ClaimTable,
    CountersTable,
    DiscardTable,
    MetaTable,
    Workload,
)
from cpsim.verify.history import History

ERRORS = ["", "HTTP 500: no", "ER", "lost"]


def workload_of(calls):
    """A workload of (kind, slot number, arguments); meta gives the same names each time, discard always a reason."""
    rows = {kind: [arguments for each, _, arguments in calls if each == kind] for kind in KINDS}
    counts = dict.fromkeys(KINDS, 0)
    row = []
    for kind, _, _ in calls:
        row.append(counts[kind])
        counts[kind] += 1

    def column(kind, name):
        return np.array([arguments.get(name, ABSENT) for arguments in rows[kind]], np.int64)

    def names(kind):
        return tuple(dict.fromkeys(name for arguments in rows[kind] for name in arguments))

    def pool(values):
        return tuple(dict.fromkeys(values))

    numbers = sorted({number for _, number, _ in calls})
    machines = pool(arguments["machine"] for arguments in rows["claim"])
    reasons = pool(arguments["reason"] for arguments in rows["discard"])
    choices = tuple(pool(arguments[name] for arguments in rows["meta"]) for name in names("meta"))
    counters = [column("counters", name) for name in names("counters")]
    meta = [
        [texts.index(arguments[name]) for arguments in rows["meta"]]
        for name, texts in zip(names("meta"), choices, strict=True)
    ]
    return Workload(
        name="calls",
        seed=1,
        duration_us=1,
        due_us=np.arange(len(calls)),
        kind=np.array([KINDS.index(kind) for kind, _, _ in calls], np.uint8),
        slot=np.array([numbers.index(number) for _, number, _ in calls], np.int32),
        row=np.array(row, np.int32),
        slot_numbers=np.array(numbers, np.int64),
        alloc=AllocTable(*(column("alloc", name) for name in ("credits", "min", "max", "expire"))),
        counters=CountersTable(
            names("counters"), np.array(counters, np.int64).T.reshape(len(rows["counters"]), len(counters))
        ),
        meta=MetaTable(names("meta"), choices, np.array(meta, np.int32).T.reshape(len(rows["meta"]), len(meta))),
        discard=DiscardTable(
            reasons, np.array([reasons.index(given["reason"]) for given in rows["discard"]], np.int32)
        ),
        claim=ClaimTable(
            np.array([machines.index(given["machine"]) for given in rows["claim"]], np.int32),
            column("claim", "credits"),
        ),
        machines=machines,
        users=(),
        owner=np.full(len(machines), -1, np.int32),
    )


@pytest.fixture(scope="session")
def history_of():
    """Return history_of(calls, marks, direct=, seen=); marks are (op, outcome, error, sent_ns, answered_ns)."""

    def make(calls, marks, *, direct, seen, prefix="w"):
        return History(workload_of(calls), prefix, np.array(list(marks), RECORD_TYPE), ERRORS, direct=direct, seen=seen)

    return make
