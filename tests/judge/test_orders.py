"""Commands that overlap: every order in which they may have been applied, and none in which they cannot."""

from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpsim.judge.model import MINUTE_NS, SlotState, Span, Step, possible_states
from cpsim.judge.orders import TooManyOrders, in_order, possible
from cpsim.judge.slots import judge_histories
from cpsim.judge.verdict import Verdict

SEEN = Span(10_000, 10_000)
OPEN, ABSENT = SlotState("allocated"), SlotState("absent")


def step(kind, sent, answered, applied=True, accepted=None, **arguments):
    return Step(kind, {"slot": "s", **arguments}, Span(sent, answered), applied, accepted)


def alloc(sent=0, answered=1, **more):
    return step("alloc", sent, answered, **more)


def claim(machine, sent, answered, **more):
    return step("claim", sent, answered, machine=machine, **more)


def claimed(machine, granted=1, **more):
    return SlotState("claimed", machine, granted, **more)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # two machines race to claim
        ([alloc(), claim("m", 10, 20), claim("n", 15, 25)], {claimed("m"), claimed("n")}),
        ([alloc(), claim("m", 10, 20), claim("n", 20, 25)], {claimed("m")}),
        ([alloc(), claim("m", 10, 20, accepted=False), claim("n", 15, 25, accepted=True)], {claimed("n")}),
        ([alloc(), claim("m", 10, 20, accepted=True), claim("n", 15, 25, accepted=True)], set()),
        ([alloc(), claim("m", 10, 20, accepted=False), claim("n", 15, 25, accepted=False)], set()),
        # a claim races with what it needs
        ([alloc(0, 10), claim("m", 5, 15)], {OPEN, claimed("m")}),
        ([alloc(0, 10), claim("m", 5, 15, accepted=True)], {claimed("m")}),
        (
            [alloc(), step("counters", 10, 20, n=1), claim("m", 15, 25)],
            {claimed("m"), claimed("m", counters=frozenset({("n", 1)}))},
        ),
        # a long command overlaps several short ones
        (
            [alloc(), step("discard", 5, 100), step("meta", 10, 20, a="x"), step("meta", 30, 40, a="y")],
            {
                SlotState("discarded", reason="unspecified", meta=frozenset(meta))
                for meta in ([], [("a", "x")], [("a", "y")])
            },
        ),
        # what was never answered may come at any later time
        ([alloc(applied=None), claim("m", 10, 20)], {ABSENT, OPEN, claimed("m")}),
        (
            [alloc(), step("meta", 5, 6, a="x", applied=None), step("meta", 10, 20, a="y")],
            {OPEN._replace(meta=frozenset({("a", text)})) for text in "xy"},
        ),
        ([alloc(), claim("m", 10, 20, applied=None), claim("n", 30, 40, accepted=True)], {claimed("n")}),
        ([alloc(), claim("m", 10, 20, applied=None), claim("n", 30, 40, accepted=False)], {claimed("m")}),
        ([alloc(), claim("m", 10, 20, applied=False), claim("n", 15, 40)], {claimed("n")}),
    ],
)
def test_orders_of_overlapping_commands(steps, expected):
    assert possible(steps, SEEN) == expected


def test_a_late_command_meets_a_slot_whose_time_is_out():
    steps = [
        step("alloc", 0, 1, expire=1),
        Step("meta", {"slot": "s", "a": "x"}, Span(5, 2 * MINUTE_NS), None),
    ]
    assert possible(steps, Span(2 * MINUTE_NS, 2 * MINUTE_NS)) == {
        SlotState("expired"),
        SlotState("expired", meta=frozenset({("a", "x")})),
    }


@pytest.mark.parametrize("count", [11, 40])
def test_the_search_is_bounded(count):
    steps = [alloc(), *(step("counters", 10, 20, n=2**place) for place in range(count)), claim("m", 10, 20)]
    if count == 11:
        assert len(possible(steps, SEEN)) == 2**count  # any of the counters came too late
        return
    with pytest.raises(TooManyOrders):
        possible(steps, SEEN)


def test_too_many_orders_leave_the_verdict_unknown():
    many = [alloc(), *(step("counters", 10, 20, n=2**place) for place in range(40)), claim("m", 10, 20)]
    import pyarrow as pa

    row = {"project": "p", "state": "claimed", "machine": "m", "granted": 1, "reason": None, "counters": [], "meta": []}
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("project", "slot", "state", "machine", "reason")),
            ("granted", pa.int64()),
            ("counters", pa.map_(pa.string(), pa.int64())),
            ("meta", pa.map_(pa.string(), pa.string())),
        ]
    )
    slots = pa.Table.from_pylist([row | {"slot": "many"}, row | {"slot": "few"}], schema)
    verdict = Verdict()
    judge_histories({"many": many, "few": [alloc(), claim("m", 10, 20)]}, slots, "p", SEEN, verdict)
    assert verdict.ruling == "unknown"
    assert len(verdict.unknowns()) == 1
    assert verdict.unknowns()[0].startswith("1 slots: too many of their commands overlap")


# Against all orders, one by one

kinds = st.sampled_from(["alloc", "counters", "meta", "discard", "claim"])
ARGUMENTS = {"counters": {"n": 1}, "meta": {"a": "x"}, "claim": {"machine": "m"}}


@st.composite
def overlapping(draw):
    made = []
    for place in range(draw(st.integers(0, 5))):
        kind = draw(kinds)
        sent = draw(st.integers(0, 12))
        arguments = {
            name: value if name == "n" else f"{value}{place}" for name, value in ARGUMENTS.get(kind, {}).items()
        }
        applied, accepted = draw(st.sampled_from([(True, None)] * 4 + [(True, True), (True, False), (None, None)]))
        made.append(step(kind, sent, sent + draw(st.integers(0, 6)), applied, accepted, **arguments))
    return in_order(made)


def by_brute_force(steps):
    """Try every subset that leaves out what is unknown, in every order that no two answered commands contradict."""
    states = set()
    for kept in product(*([step] if step.applied else [step._replace(applied=True), None] for step in steps)):
        left = [(place, step) for place, step in enumerate(kept) if step is not None]
        for order in permutations(left):
            late = any(
                before[0] > after[0]
                and steps[after[0]].applied
                and after[1].span.latest_ns <= before[1].span.earliest_ns
                for place, before in enumerate(order)
                for after in order[place + 1 :]
            )
            if not late:
                states |= possible_states([step for _, step in order], SEEN)
    return states


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(overlapping())
def test_the_search_finds_what_trying_every_order_finds(steps):
    assert possible(steps, SEEN) == by_brute_force(steps)


@settings(max_examples=100, deadline=None)
@given(overlapping())
def test_in_any_order_nothing_is_less_possible(steps):
    assert possible(steps, SEEN) <= possible(steps, SEEN, any_order=True)


def test_the_bound_is_of_positions():
    race = [alloc(), claim("m", 10, 20), claim("n", 15, 25)]
    with pytest.raises(TooManyOrders):
        possible(race, SEEN, most_positions=2)
    assert len(possible(race, SEEN, most_positions=5)) == 2
