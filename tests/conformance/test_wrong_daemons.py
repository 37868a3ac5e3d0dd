"""Daemons that pass on something else than they were told: the accounts show it."""

import pytest

from cpsim.daemon.site import Daemon


def twice(calls):
    return [call for call in calls for _ in range(2)]


def no_counters(calls):
    return [call for call in calls if call[0] != "counters"]


def in_lower_case(calls):
    return [(kind, {name: value.lower() for name, value in given.items()}) for kind, given in calls]


def one_argument_less(calls):
    return [(kind, dict(list(given.items())[: max(2, len(given) - 1)])) for kind, given in calls]


def backwards(calls):
    return calls[::-1]


def slots_only(calls):
    return [(kind, given) for kind, given in calls if kind in {"alloc", "discard"}]


@pytest.mark.parametrize(
    ("wrong", "clause"),
    [
        (twice, "DELIVER-7"),
        (no_counters, "DELIVER-7"),
        (in_lower_case, "DELIVER-6"),
        (one_argument_less, "DELIVER-5"),
        (backwards, "DELIVER-8"),
        (slots_only, "DELIVER-5"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_daemon_is_found(examine_fake, monkeypatch, wrong, clause):
    def hand_over(daemon, calls):
        return right(daemon, wrong(calls))

    right = Daemon._take
    monkeypatch.setattr(Daemon, "_take", hand_over)
    outcome = examine_fake(clauses=["DELIVER-*"])
    assert clause in outcome.deviant
    assert not outcome.deviant[clause]
    assert outcome.ruling == "invalid"
