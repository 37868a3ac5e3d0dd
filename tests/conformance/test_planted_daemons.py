"""A plain daemon gets no complaint, however it says the same; of the faults that are planted in it, each is found."""

import json

import plain_daemon
import planted_daemons
import pytest

FOUND = json.loads(planted_daemons.FOUND.read_text(encoding="utf-8"))
EVERY = 14
"""Of these faults every fourteenth is planted here; `planted_daemons.py`, run as a program, plants them all."""
WIRE = ["WIRE-*"]
OF_WHAT_ARRIVES = [
    f"FORWARD-{number}" for number in (1, 2, 3, 4, 6, 7, 8, 9, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 27)
]


def complaints(outcome):
    return [(each.clause.id, each.detail) for each in outcome.findings if each.result not in {"pass", "not verifiable"}]


def test_a_daemon_written_from_the_protocol_alone_gets_no_complaint():
    clauses = [*WIRE, *OF_WHAT_ARRIVES, "FORWARD-5", "FORWARD-1[013]", "FORWARD-25", "FORWARD-28", "FORWARD-29"]
    outcome = planted_daemons.examined(plain_daemon.PlainDaemon, clauses, timeout_s=20.0)
    assert (complaints(outcome), outcome.ruling) == ([], "valid")


@pytest.mark.parametrize("daemon", plain_daemon.SAME, ids=lambda daemon: daemon.__name__)
def test_the_same_said_otherwise_gets_no_complaint(daemon):
    outcome = planted_daemons.examined(daemon, OF_WHAT_ARRIVES, timeout_s=20.0)
    assert (complaints(outcome), outcome.ruling) == ([], "valid")


def test_every_fault_has_its_line():
    assert list(FOUND) == list(planted_daemons.FAULTS)


def test_enough_are_found():
    assert sum(map(bool, FOUND.values())) >= planted_daemons.PART * len(FOUND)


@pytest.mark.parametrize("name", [name for name, clause in FOUND.items() if clause][::EVERY])
def test_a_fault_is_found(name):
    outcome = planted_daemons.examined(planted_daemons.FAULTS[name].daemon, [FOUND[name]])
    assert list(outcome.deviant) == [FOUND[name]]


@pytest.mark.parametrize(
    ("planted", "clause", "quirk"),
    [
        ("upper case", "FORWARD-8", ""),
        ("every fifth is lost", "FORWARD-8", ""),
        ("a batch is dropped at 503", "FORWARD-8", "drop-on-error"),
        ("the last command of a batch is dropped at 503", "FORWARD-8", ""),
        ("a batch whose reply is lost is sent again", "FORWARD-9", "resend-duplicates"),
        ("counters are sent twice", "FORWARD-9", ""),
        ("one read of a frame", "FORWARD-22", "single-read"),
        ("a value is cut at its second equals sign", "FORWARD-23", "cut-values"),
        ("every fifth is lost", "FORWARD-6", ""),
    ],
)
def test_a_quirk_is_named_only_for_what_it_does(planted, clause, quirk):
    (daemon,) = [fault.daemon for fault in planted_daemons.FAULTS.values() if fault.planted.endswith(planted)][:1]
    assert planted_daemons.examined(daemon, [clause]).deviant == {clause: quirk}
