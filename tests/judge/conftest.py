"""Workloads made of calls, for histories that no scenario has."""

import numpy as np
import pytest

from cpdaemon.commands import COMMANDS, KINDS
from cpsim.evidence.journal import RECORD_TYPE
from cpsim.judge.history import History
from cpsim.scenario.workload import ABSENT, Column, Workload, joined

ERRORS = ["", "HTTP 500: no", "ER", "lost"]


def workload_of(calls):
    """A workload of (kind, slot number, arguments)."""
    rows = {kind: [arguments for each, _, arguments in calls if each == kind] for kind in KINDS}
    counts = dict.fromkeys(KINDS, 0)
    row = []
    for kind, _, _ in calls:
        row.append(counts[kind])
        counts[kind] += 1

    def column(kind, name, value):
        given = [arguments.get(name, ABSENT) for arguments in rows[kind]]
        if value is int:
            return np.array(given, np.int64)
        texts = tuple(dict.fromkeys(text for text in given if text != ABSENT))
        codes = [ABSENT if text == ABSENT else texts.index(text) for text in given]
        return Column(np.array(codes, np.int64 if ABSENT in codes else np.int32), texts)

    def arguments_of(command):
        fields = {field.name: field.value for field in command.fields}
        free = {name: command.free for arguments in rows[command.kind] for name in arguments if name not in fields}
        columns = {name: column(command.kind, name, value) for name, value in (fields | free).items()}
        return joined(command, [(len(rows[command.kind]), columns)])

    numbers = sorted({number for _, number, _ in calls})
    arguments = {kind: arguments_of(command) for kind, command in COMMANDS.items()}
    machines = arguments["claim"]["machine"].texts
    return Workload(
        name="calls",
        seed=1,
        duration_us=1,
        due_us=np.arange(len(calls)),
        kind=np.array([KINDS.index(kind) for kind, _, _ in calls], np.uint8),
        slot=np.array([numbers.index(number) for _, number, _ in calls], np.int32),
        row=np.array(row, np.int32),
        slot_numbers=np.array(numbers, np.int64),
        arguments=arguments,
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
