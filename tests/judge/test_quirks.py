"""What a known quirk explains is counted apart, by its name; what it does not explain is found beside it."""

import pytest

from cpsim.judge.model import MINUTE_NS, MODELLED, SlotState, Span, Step
from cpsim.judge.quirks import Suspects, explanation
from cpsim.judge.slots import judge_slot
from cpsim.judge.verdict import Verdict

SOON, LATER = Span(10_000, 10_000), Span(3 * MINUTE_NS, 3 * MINUTE_NS)
ALLOC, DISCARD = ("alloc", {"expire": 2}), ("discard", {"reason": "r"})
M, N = ("claim", {"machine": "m"}), ("claim", {"machine": "n"})
COUNTED, NOTED = ("counters", {"n": 1}), ("meta", {"a": "x"})
OPEN, ABSENT = SlotState("allocated"), SlotState("absent")
CLAIMED, DISCARDED = SlotState("claimed", "m", 1), SlotState("discarded", reason="r")
ONE = frozenset({("n", 1)})


def history(*calls, accepted=None):
    """Steps a microsecond apart, which the server itself accepted, or of which only an acknowledgement is known."""
    return [
        Step(kind, {"slot": "s", **arguments}, Span(1000 * place, 1000 * place), True, accepted)
        for place, (kind, arguments) in enumerate(calls)
    ]


SHOWN = [
    ("reclaim", [ALLOC, M, N], CLAIMED._replace(machine="n"), True),
    ("claim-settled", [ALLOC, DISCARD, M], DISCARDED._replace(machine="m", granted=1), True),
    ("claim-settled", [ALLOC, DISCARD, M], CLAIMED._replace(reason="r"), True),
    ("discard-settled", [ALLOC, M, DISCARD], DISCARDED, True),
    ("discard-settled", [ALLOC, M, DISCARD], DISCARDED._replace(machine="m", granted=1), True),
    ("counters-settled", [ALLOC, M, COUNTED], CLAIMED._replace(counters=ONE), True),
    ("meta-dropped", [ALLOC, NOTED, M], CLAIMED, True),
    ("meta-dropped", [ALLOC, NOTED, M], CLAIMED, None),
    ("slots-vanish", [ALLOC, M], ABSENT, True),
    ("slots-vanish", [ALLOC, M, ALLOC], OPEN, True),
    ("ack-before-delivery", [ALLOC, COUNTED, M], CLAIMED, None),
    ("drop-on-error", [ALLOC, M], OPEN, None),
    ("resend-duplicates", [ALLOC, COUNTED, M], CLAIMED._replace(counters=frozenset({("n", 2)})), None),
    ("reorder-classes", [ALLOC, M, COUNTED], CLAIMED._replace(counters=ONE), None),
]
"""A quirk, commands, the state that they lead to with it, and the server's own word about each command."""


@pytest.mark.parametrize(("quirk", "calls", "found", "accepted"), SHOWN)
def test_a_quirk_explains_what_it_does(quirk, calls, found, accepted):
    steps = history(*calls, accepted=accepted)
    assert explanation(steps, SOON, found, frozenset({quirk})) == quirk
    assert quirk not in explanation(steps, SOON, found, MODELLED - {quirk}).split(" + ")
    verdict = Verdict()
    assert judge_slot("s", steps, SOON, found, verdict, suspects=Suspects(frozenset({quirk}), MODELLED))
    assert (verdict.explained, verdict.ruling) == ({quirk: 1}, "valid")
    assert [(shown.name, shown.subject) for shown in verdict.explanations] == [(quirk, "s")]


@pytest.mark.parametrize(("quirk", "calls", "found", "accepted"), SHOWN)
def test_a_quirk_that_nobody_named_is_named_by_the_finding(quirk, calls, found, accepted):
    verdict = Verdict()
    suspects = Suspects(possible=frozenset({quirk}))
    judge_slot("s", history(*calls, accepted=accepted), SOON, found, verdict, suspects=suspects)
    assert (verdict.explained, verdict.ruling) == ({}, "invalid")
    assert verdict.anomalies[0].detail.endswith(f"; as with the quirk {quirk}")


def test_a_slot_that_does_not_expire():
    steps = history(ALLOC, accepted=True)
    assert explanation(steps, LATER, OPEN, frozenset({"expire-live"})) == "expire-live"
    assert explanation(steps, LATER, OPEN, MODELLED - {"expire-live"}) == ""


def test_two_quirks_together():
    steps = history(ALLOC, NOTED, M, N, accepted=True)
    found = CLAIMED._replace(machine="n")
    assert explanation(steps, SOON, found, MODELLED) == "meta-dropped + reclaim"


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        ([ALLOC, M], OPEN),
        ([ALLOC, COUNTED, M], CLAIMED),
        ([ALLOC, M], CLAIMED._replace(granted=2)),
        ([ALLOC, M], CLAIMED._replace(machine="o")),
        ([ALLOC, DISCARD], OPEN),
        ([ALLOC, M, N], CLAIMED._replace(machine="n", granted=2)),
        ([ALLOC, DISCARD, M], OPEN),
        ([ALLOC], ABSENT),
    ],
)
def test_no_quirk_of_a_server_explains_a_loss_or_other_values(calls, found):
    of_servers = MODELLED - {"ack-before-delivery", "drop-on-error", "resend-duplicates", "reorder-classes"}
    assert explanation(history(*calls, accepted=True), SOON, found, of_servers) == ""
