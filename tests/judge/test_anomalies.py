"""Each anomaly has one name, by what explains it."""

import pytest

from cpsim.judge.anomalies import ANOMALIES
from cpsim.judge.model import MINUTE_NS, SlotState, Span, Step
from cpsim.judge.slots import judge_slot
from cpsim.judge.verdict import EXAMPLES, Verdict

SOON = Span(10_000, 10_000)
LATER = Span(3 * MINUTE_NS, 3 * MINUTE_NS)
OPEN = SlotState("allocated")
TOLD = object()


def history(*calls):
    """Steps a microsecond apart; `True` or `False` at a call's end is the server's own word."""
    steps = []
    for place, (kind, *given) in enumerate(calls):
        accepted = next((word for word in given if isinstance(word, bool)), None)
        arguments = next((word for word in given if isinstance(word, dict)), {})
        steps.append(Step(kind, {"slot": "s", **arguments}, Span(1000 * place, 1000 * place), True, accepted))
    return steps


ALLOC, DISCARD = ("alloc", {"expire": 2}), ("discard",)
M, N = ("claim", {"machine": "m"}), ("claim", {"machine": "n"})
COUNTED, AGAIN = ("counters", {"n": 1}), ("counters", {"n": 4})
X, Y = ("meta", {"a": "x"}), ("meta", {"a": "y", "b": "y"})


def claimed(machine="m", granted=1, **entries):
    return SlotState(
        "claimed", machine, granted, **{name: frozenset(values.items()) for name, values in entries.items()}
    )


@pytest.mark.parametrize(
    ("calls", "found", "name"),
    [
        ([ALLOC, M], OPEN, "lost"),
        ([ALLOC, M], SlotState("absent"), "lost"),
        ([ALLOC, COUNTED, AGAIN, M], claimed(counters={"n": 4}), "lost"),
        ([ALLOC, COUNTED, AGAIN, M], claimed(), "lost"),
        ([ALLOC, X, Y, M], claimed(meta={"a": "x"}), "lost"),
        ([ALLOC, ("counters", {"n": 1, "k": 2}), M], claimed(counters={"n": 1}), "lost"),
        ([ALLOC, COUNTED, AGAIN, M], claimed(counters={"n": 6}), "duplicated"),
        ([ALLOC, COUNTED, AGAIN, M], claimed(counters={"n": 9}), "duplicated"),
        ([ALLOC, COUNTED, AGAIN, M], claimed(counters={"n": 10}), "duplicated"),
        ([ALLOC, M, DISCARD], SlotState("discarded", reason="unspecified"), "reordered"),
        ([ALLOC, M, N], claimed("n"), "reordered"),
        ([("alloc", {"credits": 5}), ("alloc", {"credits": 7}), M], claimed(granted=7), "reordered"),
        ([ALLOC, X, Y, M], claimed(meta={"a": "x", "b": "y"}), "reordered"),
        ([ALLOC, COUNTED, M], claimed(counters={"n": 3}), "altered"),
        ([ALLOC, COUNTED, M], claimed(counters={"k": 1}), "altered"),
        ([ALLOC, X, M], claimed(meta={"a": "z"}), "altered"),
        ([ALLOC, M], claimed("o"), "altered"),
        ([ALLOC, ("discard", {"reason": "late"})], SlotState("discarded", reason="lat"), "altered"),
        ([ALLOC, M], claimed(granted=2), "over-credited"),
        ([ALLOC, M], claimed(granted=0), "under-credited"),
        ([ALLOC, M], SlotState("claimed", "m", None), "under-credited"),
        ([ALLOC, M], SlotState("discarded", "m", 1, "unspecified"), "resurrected"),
        (
            [ALLOC, ("meta", {"a": "x"}, True), ("claim", {"machine": "m"}, True), ("counters", {"n": 1}, False)],
            claimed(meta={"a": "x"}, counters={"n": 1}),
            "resurrected",
        ),
        ([ALLOC, ("claim", {"machine": "m"}, True), ("claim", {"machine": "n"}, True)], claimed("n"), "resurrected"),
        ([ALLOC], SlotState("expired"), "early expiry"),
        ([ALLOC, M], SlotState("expired"), "early expiry"),
        ([("alloc", {"expire": 2}, True), ("claim", {"machine": "m"}, False)], SlotState("expired"), "early expiry"),
        ([ALLOC], claimed(), "phantom"),
        ([M], claimed(), "phantom"),
        ([ALLOC, ("claim", {"machine": "m"}, False)], OPEN, "wrongly refused"),
        ([("claim", {"machine": "m"}, True)], claimed(), "wrongly accepted"),
        ([("alloc", {"min": 3, "max": 2}, True)], OPEN, "wrongly accepted"),
    ],
)
def test_a_slots_state_is_named_by_what_explains_it(calls, found, name):
    verdict = Verdict()
    assert judge_slot("s", history(*calls), SOON, found, verdict)
    assert verdict.counts == {name: 1}
    assert verdict.anomalies[0].slots == ("s",)


@pytest.mark.parametrize(
    ("calls", "found", "name"),
    [
        ([ALLOC], OPEN, "late expiry"),
        ([ALLOC, COUNTED], OPEN._replace(counters=frozenset({("n", 1)})), "late expiry"),
        ([ALLOC, M], SlotState("expired"), "lost"),
        ([ALLOC, ("claim", {"machine": "m"}, False)], SlotState("expired"), "wrongly refused"),
    ],
)
def test_when_the_time_is_out(calls, found, name):
    verdict = Verdict()
    judge_slot("s", history(*calls), LATER, found, verdict)
    assert verdict.counts == {name: 1}


def test_a_claim_when_the_time_was_out_is_late_expiry():
    late = Step("claim", {"slot": "s", "machine": "m"}, Span(2 * MINUTE_NS, 2 * MINUTE_NS), True)
    for accepted in (None, True):
        verdict = Verdict()
        judge_slot("s", [*history(ALLOC), late._replace(accepted=accepted)], LATER, claimed(), verdict)
        assert verdict.counts == {"late expiry": 1}


def test_replies_of_commands_that_overlap_can_contradict_each_other():
    race = [Step("claim", {"slot": "s", "machine": name}, Span(10, 20), True, False) for name in "mn"]
    verdict = Verdict()
    judge_slot("s", [*history(ALLOC), *race], SOON, OPEN, verdict)
    assert verdict.counts.total() == 1
    assert set(verdict.counts) <= {"wrongly refused", "contradiction"}


def test_every_name_is_defined_once_with_a_sentence():
    assert all(meaning.endswith(".") and meaning[0].isupper() for meaning in ANOMALIES.values())
    with pytest.raises(AssertionError):
        Verdict().find("odd", "s", "it is odd")


def test_the_slots_with_the_fewest_commands_are_the_examples():
    verdict = Verdict()
    for size in (5, 2, 4, 1, 3, 6):
        judge_slot(f"s{size}", history(ALLOC, *[COUNTED] * size), SOON, OPEN, verdict)
    judge_slot("t", history(ALLOC), SOON, SlotState("expired"), verdict)
    assert verdict.counts == {"lost": 6, "early expiry": 1}
    assert [example.anomaly.subject for example in verdict.examples["lost"]] == ["s1", "s2", "s3"][:EXAMPLES]
    assert [example.anomaly.subject for example in verdict.examples["early expiry"]] == ["t"]


def test_long_histories_are_named_without_an_explanation():
    verdict = Verdict()
    assert judge_slot("s", history(ALLOC, *[COUNTED] * 20), SOON, OPEN, verdict)
    assert verdict.counts == {"lost": 1}
