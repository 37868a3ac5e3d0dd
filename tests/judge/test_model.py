"""What may have become of a slot: the protocol's rules one by one, and against the fake's ledger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpsim.judge.model import DAY_MINUTES, MINUTE_NS, SlotState, Span, Step, possible_states
from cpsim.protocol.slots import CommandRefused
from cpsim.server.ledger import Ledger

NOW = Span(1_000, 1_000)
ABSENT = SlotState("absent")
OPEN = SlotState("allocated")


START = Span(0, 0)


def step(kind, applied=True, accepted=None, span=START, **arguments):
    return Step(kind, {"slot": "s", **arguments}, span, applied, accepted)


def alloc(**arguments):
    return step("alloc", **arguments)


def claim(**arguments):
    return step("claim", machine="m", **arguments)


def claimed(granted, **more):
    return SlotState("claimed", "m", granted, **more)


# Known outcomes


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], ABSENT),
        ([alloc()], OPEN),
        ([alloc(), alloc(credits=9), claim()], claimed(1)),  # an id is allocated once
        ([claim()], ABSENT),
        ([step("discard"), step("counters", n=1), step("meta", n="x")], ABSENT),
        ([alloc(), step("discard")], SlotState("discarded", reason="unspecified")),
        ([alloc(), step("discard", reason="late")], SlotState("discarded", reason="late")),
        ([alloc(), claim(), step("discard")], claimed(1)),
        ([alloc(), step("discard"), claim()], SlotState("discarded", reason="unspecified")),
        ([alloc(), claim(), claim(credits=5), step("counters", n=1), step("meta", n="x"), alloc()], claimed(1)),
        (
            [alloc(), step("counters", a=2, b=-1), step("counters", a=3)],
            OPEN._replace(counters=frozenset({("a", 5), ("b", -1)})),
        ),
        ([alloc(), step("counters", n=0), claim()], claimed(1, counters=frozenset({("n", 0)}))),
        (
            [alloc(), step("meta", a="x", b="y"), step("meta", a="z")],
            OPEN._replace(meta=frozenset({("a", "z"), ("b", "y")})),
        ),
        (
            [alloc(), step("counters", n=1), step("meta", n="x"), step("discard", reason="r")],
            SlotState("discarded", reason="r", counters=frozenset({("n", 1)}), meta=frozenset({("n", "x")})),
        ),
    ],
)
def test_commands_applied_in_order(steps, state):
    assert possible_states(steps, NOW) == {state}


@pytest.mark.parametrize(
    ("promised", "asked", "granted"),
    [
        ({}, {}, 1),
        ({}, {"credits": 7}, 7),
        ({}, {"credits": 0}, 0),
        ({"credits": 5}, {}, 5),
        ({"credits": 5}, {"credits": 7}, 5),
        ({"credits": 0}, {"credits": 7}, 0),
        ({"credits": 5, "min": 10, "max": 20}, {"credits": 15}, 5),
        ({"min": 5}, {}, 5),
        ({"min": 5}, {"credits": 4}, 5),
        ({"min": 5}, {"credits": 5}, 5),
        ({"min": 5}, {"credits": 99}, 99),
        ({"max": 5}, {}, 1),
        ({"max": 0}, {}, 0),
        ({"max": 5}, {"credits": 6}, 5),
        ({"min": 5, "max": 20}, {}, 5),
        ({"min": 5, "max": 20}, {"credits": 12}, 12),
        ({"min": 5, "max": 20}, {"credits": 21}, 20),
        ({"min": 5, "max": 5}, {"credits": 9}, 5),
    ],
)
def test_credits_granted(promised, asked, granted):
    assert possible_states([alloc(**promised), claim(**asked)], NOW) == {claimed(granted)}


# Unknown outcomes


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([alloc(applied=None)], {ABSENT, OPEN}),
        ([alloc(applied=False)], {ABSENT}),
        ([alloc(applied=None), claim(credits=3)], {ABSENT, claimed(3)}),
        ([alloc(), claim(applied=None)], {OPEN, claimed(1)}),
        ([alloc(), claim(applied=None), step("discard")], {claimed(1), SlotState("discarded", reason="unspecified")}),
        (
            [alloc(), step("counters", n=1, applied=None), step("counters", n=1, applied=None)],
            {OPEN, OPEN._replace(counters=frozenset({("n", 1)})), OPEN._replace(counters=frozenset({("n", 2)}))},
        ),
        ([alloc(credits=2, applied=None), alloc(credits=3), claim()], {claimed(2), claimed(3)}),
        ([alloc(), step("discard", applied=False), claim(applied=False)], {OPEN}),
        # The server's own word settles it.
        ([alloc(applied=None), claim(accepted=True)], {claimed(1)}),
        ([alloc(applied=None), claim(accepted=False)], {ABSENT}),
        ([alloc(), claim(applied=None), step("discard", accepted=False)], {claimed(1)}),
        ([alloc(accepted=True), alloc(accepted=False)], {OPEN}),
    ],
)
def test_unknown_outcomes_split_the_possibilities(steps, expected):
    assert possible_states(steps, NOW) == expected


@pytest.mark.parametrize(
    "steps",
    [
        [alloc(accepted=False)],
        [claim(accepted=True)],
        [alloc(accepted=True), alloc(accepted=True)],
        [alloc(), claim(accepted=False)],
        [alloc(), step("discard", accepted=True), claim(accepted=True)],
        [alloc(applied=False), claim(accepted=True)],
        [alloc(applied=None), claim(accepted=True), step("meta", n="x", accepted=True)],
    ],
)
def test_replies_that_no_history_explains(steps):
    assert possible_states(steps, NOW) == set()


# Expiry


def at(kind, earliest, latest=None, **more):
    return step(kind, span=Span(earliest, earliest if latest is None else latest), **more)


EXPIRED = SlotState("expired")
END = 2 * MINUTE_NS


@pytest.mark.parametrize(
    ("allocated", "seen", "expected"),
    [
        ((0, 0), (END - 1, END - 1), {OPEN}),
        ((0, 0), (END, END), {EXPIRED}),
        ((0, 0), (END - 5, END - 1), {OPEN}),
        ((0, 0), (END - 5, END), {OPEN, EXPIRED}),
        ((0, 9), (END, END), {OPEN, EXPIRED}),
        ((0, 9), (END + 8, END + 8), {OPEN, EXPIRED}),
        ((0, 9), (END + 9, END + 9), {EXPIRED}),
        ((3, 9), (0, END + 2), {OPEN}),
    ],
)
def test_slots_expire_within_the_window_that_is_known(allocated, seen, expected):
    steps = [at("alloc", *allocated, expire=2)]
    assert possible_states(steps, Span(*seen)) == expected


def test_slots_expire_after_a_day_by_default():
    last = DAY_MINUTES * MINUTE_NS
    assert possible_states([at("alloc", 0)], Span(last - 1, last - 1)) == {OPEN}
    assert possible_states([at("alloc", 0)], Span(last, last)) == {EXPIRED}


@pytest.mark.parametrize(
    ("when", "accepted", "expected"),
    [
        ((END - 1,), None, {claimed(1)}),
        ((END,), None, {EXPIRED}),
        ((END - 1, END), None, {claimed(1), EXPIRED}),
        ((END - 1, END), True, {claimed(1)}),
        ((END - 1, END), False, {EXPIRED}),
        ((END - 1,), False, set()),
        ((END,), True, set()),
    ],
)
def test_commands_near_the_end_of_a_slot(when, accepted, expected):
    steps = [at("alloc", 0, expire=2), at("claim", *when, machine="m", accepted=accepted)]
    assert possible_states(steps, Span(2 * END, 2 * END)) == expected


def test_an_expired_slot_keeps_what_it_had_and_takes_no_more():
    steps = [at("alloc", 0, expire=2), at("counters", 1, n=1), at("meta", 1, n="x"), at("counters", END, n=1)]
    assert possible_states(steps, Span(END, END)) == {
        EXPIRED._replace(counters=frozenset({("n", 1)}), meta=frozenset({("n", "x")}))
    }


def test_a_settled_slot_does_not_expire():
    assert possible_states([at("alloc", 0, expire=2), at("claim", 1, machine="m")], Span(9 * END, 9 * END)) == {
        claimed(1)
    }


# Any history

small = st.integers(0, 3)
arguments = {
    "alloc": st.fixed_dictionaries(
        {}, optional={"credits": small, "min": st.just(1), "max": st.integers(1, 3), "expire": st.integers(1, 3)}
    ),
    "counters": st.dictionaries(st.sampled_from("ab"), st.integers(-2, 2), min_size=1),
    "meta": st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), min_size=1),
    "discard": st.fixed_dictionaries({}, optional={"reason": st.sampled_from("pq")}),
    "claim": st.fixed_dictionaries({"machine": st.sampled_from("mn")}, optional={"credits": small}),
}
commands = st.sampled_from(list(arguments)).flatmap(lambda kind: st.tuples(st.just(kind), arguments[kind]))
pauses = st.sampled_from([0, 1000, MINUTE_NS // 2, MINUTE_NS])
histories = st.lists(st.tuples(commands, pauses), max_size=7)


@given(
    histories,
    st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, MINUTE_NS)), min_size=7, max_size=7),
    pauses,
)
def test_an_unknown_outcome_allows_what_applied_and_not_applied_allow(history, marks, pause):
    steps, now_ns = [], 0
    for ((kind, values), wait), (applied, width) in zip(history, marks, strict=False):
        now_ns += wait
        steps.append(Step(kind, {"slot": "s", **values}, Span(now_ns, now_ns + width), applied))
    seen = Span(now_ns + pause, now_ns + pause)
    for place, unknown in enumerate(steps):
        before, after = steps[:place], steps[place + 1 :]
        either, yes, no = (
            possible_states([*before, unknown._replace(applied=applied), *after], seen)
            for applied in (None, True, False)
        )
        assert either == yes | no


@pytest.mark.thorough
@settings(max_examples=150)
@given(histories, pauses)
def test_the_fake_ledger_ends_in_the_only_state_allowed(history, pause):
    ledger, steps, now_ns = Ledger(), [], 0
    for (kind, values), wait in history:
        now_ns += wait
        try:
            ledger.apply("p", kind, {"slot": "s", **values}, now_ns // 1000)
        except CommandRefused:
            accepted = False
        else:
            accepted = True
        steps.append(Step(kind, {"slot": "s", **values}, Span(now_ns, now_ns), True, accepted))
    now_ns += pause
    ledger.expire(now_ns // 1000)
    slot = ledger.project("p").slots.get("s")
    found = (
        ABSENT
        if slot is None
        else SlotState(
            str(slot.state),
            slot.machine,
            slot.granted,
            slot.reason,
            frozenset((slot.counters or {}).items()),
            frozenset((slot.meta or {}).items()),
        )
    )
    told = possible_states(steps, Span(now_ns, now_ns))
    untold = possible_states([each._replace(accepted=None) for each in steps], Span(now_ns, now_ns))
    assert told == untold == {found}
