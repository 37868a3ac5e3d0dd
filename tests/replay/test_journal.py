"""What was recorded is what is read back, in the order of the operations."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from cpsim.evidence.journal import OTHER_ERRORS, Journal, OperationOutcome


@pytest.fixture
def journal():
    journal = Journal()
    yield journal
    journal.close()


def test_records_come_back_in_the_order_of_operations(journal):
    draw = random.Random(1)
    rows = [
        (
            op,
            draw.choice(list(OperationOutcome)),
            draw.choice(["", "ER", "reply lost: é"]),
            draw.randrange(2**62),
            -1 - op,
        )
        for op in range(50_000)
    ]
    for row in draw.sample(rows, len(rows)):
        journal.record(*row)
    for _ in range(2):
        records = journal.records()
        assert records["op"].tolist() == list(range(50_000))
        assert records["outcome"].tolist() == [row[1] for row in rows]
        assert [journal.errors[code] for code in records["error"]] == [row[2] for row in rows]
        assert records["sent_ns"].tolist() == [row[3] for row in rows]
        assert records["answered_ns"].tolist() == [row[4] for row in rows]
    assert journal.counts == np.bincount([row[1] for row in rows], minlength=3).tolist()


def test_nothing_recorded(journal):
    assert len(journal.records()) == 0
    assert journal.errors == [""]
    assert journal.counts == [0, 0, 0]


def test_error_texts_are_few_however_many_there_are(journal):
    for op in range(3 * OTHER_ERRORS):
        journal.record(op, OperationOutcome.UNKNOWN, f"error {op}", 0, 1)
    journal.record(3 * OTHER_ERRORS, OperationOutcome.REFUSED, "error 5", 0, 1)
    journal.record(3 * OTHER_ERRORS + 1, OperationOutcome.ACCEPTED, "", 0, 1)
    texts = [journal.errors[code] for code in journal.records()["error"]]
    kept = OTHER_ERRORS - 1
    assert texts[:kept] == [f"error {op}" for op in range(kept)]
    assert texts[kept:-2] == ["other errors"] * (3 * OTHER_ERRORS - kept)
    assert texts[-2:] == ["error 5", ""]
    assert len(journal.errors) == OTHER_ERRORS + 1
    assert journal.counts == [1, 1, 3 * OTHER_ERRORS]


def test_a_journal_on_a_full_disk_says_where_there_is_no_room(tmp_path):
    script = """
import resource
from cpsim.errors import CpsimError
from cpsim.evidence.journal import Journal, OperationOutcome

resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
journal = Journal()
try:
    for op in range(1_000_000):
        journal.record(op, OperationOutcome.ACCEPTED, "", op, op)
except CpsimError as error:
    print(error)
journal.close()
"""
    command = [sys.executable, "-c", script]
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, env=variables)
    assert done.stdout == (
        f"a journal cannot be written below {tmp_path}: File too large; make room there, or name a folder on another "
        "disk with TMPDIR\n"
    )
    assert done.stderr == ""
