"""A plain daemon gets no complaint, however it says the same; of the faults that are planted in it, each is found."""

import json
from pathlib import Path

import pytest

FOUND = json.loads(Path(__file__).with_name("planted_daemons.json").read_text(encoding="utf-8"))
SAME = ("Http10", "Chunks", "Layout", "Singles", "Slow", "ShortQueue", "Clocks")
EVERY = 40
"""Of these faults every fortieth is planted here; `planted_daemons.py`, run as a program, plants them all."""
CERTAIN = [name for name, clause in FOUND.items() if clause and "by-chance" not in name and "a-hundred" not in name]
QUICK = [f"FORWARD-{number}" for number in (2, 3, 4, 8, 20)]


def complaints(outcome):
    return [(each.clause.id, each.detail) for each in outcome.findings if each.result not in {"pass", "not verifiable"}]


def test_a_daemon_written_from_the_protocol_alone_gets_no_complaint(planted_daemons):
    clauses = ["WIRE-1?", "FORWARD-?", "FORWARD-1[0-35-9]", "FORWARD-2?"]  # but that of thousands in an outage
    outcome = planted_daemons.examined(planted_daemons.PlainDaemon, clauses, timeout_s=20.0)
    assert (complaints(outcome), outcome.ruling) == ([], "valid")


@pytest.mark.parametrize("same", SAME)
def test_the_same_said_otherwise_gets_no_complaint(planted_daemons, same):
    outcome = planted_daemons.examined(getattr(planted_daemons.plain_daemon, same), QUICK, timeout_s=20.0)
    assert (complaints(outcome), outcome.ruling) == ([], "valid")


def test_every_daemon_and_every_fault_is_there(planted_daemons):
    assert tuple(daemon.__name__ for daemon in planted_daemons.plain_daemon.SAME) == SAME
    assert list(FOUND) == list(planted_daemons.FAULTS)


def test_enough_are_found(planted_daemons):
    assert sum(map(bool, FOUND.values())) >= planted_daemons.PART * len(FOUND)


@pytest.mark.parametrize("name", CERTAIN[::EVERY])
def test_a_fault_is_found(planted_daemons, name):
    outcome = planted_daemons.examined(planted_daemons.FAULTS[name].daemon, [FOUND[name]])
    assert list(outcome.deviant) == [FOUND[name]]


@pytest.mark.parametrize(
    ("planted", "clause", "quirk"),
    [
        ("values: upper case", "FORWARD-8", ""),
        ("every fifth is lost", "FORWARD-8", ""),
        ("a batch is dropped at 503", "FORWARD-8", "drop-on-error"),
        ("a batch whose reply is lost is sent again", "FORWARD-9", "resend-duplicates"),
        ("counters are sent twice", "FORWARD-9", ""),
        ("one read of a frame", "FORWARD-22", "single-read"),
        ("a value is cut at its second equals sign", "FORWARD-23", "cut-values"),
        ("every fifth is lost", "FORWARD-6", ""),
    ],
)
def test_a_quirk_is_named_only_for_what_it_does(planted_daemons, planted, clause, quirk):
    (daemon,) = [fault.daemon for fault in planted_daemons.FAULTS.values() if fault.planted.endswith(planted)][:1]
    assert planted_daemons.examined(daemon, [clause]).deviant == {clause: quirk}
