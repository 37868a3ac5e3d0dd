"""Faults planted in a plain server, each alone: the clauses for their kind find them."""

import pytest

KINDS = [
    "race-claim",
    "race-alloc",
    "lost-credits",
    "forged-prefix",
    "unchecked-bulk",
    "ids-lower",
    "listed-nfc",
    "machines-stripped",
    "lists-1000",
    "credits-32-bits",
    "refuses-meta-empty",
    "refuses-claim-above",
    "reads-underscores",
    "loses-1-in-1000-of-a-bulk",
    "leaves-body-of-unsigned",
    "pipeline-reversed",
    "expire-in-seconds",
    "bulk-refuses-a-machine-again",
    "counts-once",
    "handed-over-twice",
]
"""A fault or two of each kind; `nox -s conformance` plants them all."""


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_is_found(planted, name):
    fault = planted.FAULTS[name]
    outcome = planted.examined(name, planted.FIRST[fault.kind])
    assert "deviation" in outcome.counts
    assert outcome.ruling == "invalid"


def test_each_kind_is_there(planted):
    assert {planted.FAULTS[name].kind for name in KINDS} == {fault.kind for fault in planted.FAULTS.values()}
