"""Faults planted in a plain server, each alone: the clause that is said to find it does."""

import json
from pathlib import Path

import pytest

FOUND = json.loads(Path(__file__).with_name("planted.json").read_text(encoding="utf-8"))
EVERY = 4
"""Of these faults every fourth is planted here; `nox -s conformance` plants them all."""


def test_every_fault_has_its_line(planted):
    assert list(FOUND) == list(planted.FAULTS)


@pytest.mark.parametrize("name", [name for name, clause in FOUND.items() if clause][::EVERY])
def test_a_fault_is_found(planted, name):
    outcome = planted.examined(name, [FOUND[name]])
    assert list(outcome.deviant) == [FOUND[name]]
    (finding,) = outcome.findings
    assert finding.result == "deviation"


def test_enough_are_found(planted):
    for shows, part in [(shows, planted.TARGET[shows, False]) for shows in ("replies", "accounts")]:
        found = [bool(FOUND[name]) for name, fault in planted.FAULTS.items() if fault.shows == shows]
        assert sum(found) >= part * len(found)
