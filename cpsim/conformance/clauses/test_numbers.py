"""Numbers: which spellings are whole numbers, and how far they go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.conformance.clause import Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner

NO_NUMBERS: Final = (
    "1e3",
    "0x10",
    "1_000",
    "1,000",
    "5 6",
    "5x",
    "1.0",
    "--5",
    "-",
    "nan",
    "inf",
    [5],
    {"5": 5},
    True,
)
"""What is no whole number, though a language may read it as one."""
LARGE: Final = (2**31 - 1, 2**31, 2**32 + 1, 2**53 - 1)
FAR: Final = (2**31 + 11, 2**32 + 7, 2**52 + 1)


def refuse_all(cp: Examiner, kind: str, name: str, values: tuple[object, ...]) -> None:
    """Each of the values is refused as this argument; a quirk may have it accepted."""
    slot = cp.new()
    if kind != "alloc":
        cp.accept("alloc", slot)
    for value in values:
        used = cp.new() if kind == "alloc" else slot
        cp.refuse(kind, used, {name: value}, quirk="float-credits")
    if kind != "alloc":
        cp.accept("discard", slot)


@clause("NUMBER-1", "2", Need.SERVER, quirks=["float-credits"])
def test_credits(cp: Examiner) -> None:
    """Credits of an alloc that are no whole number, however they are spelled, are refused."""
    refuse_all(cp, "alloc", "credits", NO_NUMBERS)


@clause("NUMBER-2", "2", Need.SERVER, quirks=["float-credits"])
def test_bounds(cp: Examiner) -> None:
    """So are a min and a max."""
    refuse_all(cp, "alloc", "min", NO_NUMBERS[::2])
    refuse_all(cp, "alloc", "max", NO_NUMBERS[1::2])


@clause("NUMBER-3", "2", Need.SERVER, quirks=["float-credits"])
def test_expire(cp: Examiner) -> None:
    """So is an expire."""
    refuse_all(cp, "alloc", "expire", NO_NUMBERS[:8])


@clause("NUMBER-4", "2", Need.SERVER, quirks=["float-credits"])
def test_counters(cp: Examiner) -> None:
    """So is a counter."""
    refuse_all(cp, "counters", "job/events", NO_NUMBERS)


@clause("NUMBER-5", "2", Need.SERVER)
def test_expires_that_may_be(cp: Examiner) -> None:
    """An expire may be anything from a minute to years."""
    for minutes in (1, 59, 60, 61, 1439, 1440, 1441, 10_080, 43_200, 525_600, 5_256_000):
        slot = cp.new()
        cp.accept("alloc", slot, expire=minutes)
        cp.accept("discard", slot)


@clause("NUMBER-6", "2", Need.SERVER, quirks=["float-credits"])
def test_large_terms(cp: Examiner) -> None:
    """Terms beyond 2^31 and 2^53 are accepted, as numbers and compared as such."""
    for value in LARGE:
        slot = cp.new()
        cp.accept("alloc", slot, credits=value)
        cp.accept("discard", slot)
        slot = cp.new()
        cp.accept("alloc", slot, min=value - 1, max=value)
        cp.accept("discard", slot)
        cp.refuse("alloc", cp.new(), min=value, max=value - 1, quirk="float-credits")
    cp.refuse("alloc", cp.new(), min=10, max=9, quirk="float-credits")
    cp.refuse("alloc", cp.new(), min="10", max="9", quirk="float-credits")
    for terms in ({"min": 9, "max": 10}, {"min": "9", "max": "10"}, {"min": 7, "max": 2**32 + 1}):
        slot = cp.new()
        cp.accept("alloc", slot, dict[str, object](terms))
        cp.accept("discard", slot)


@clause("NUMBER-7", "2", Need.SERVER)
def test_large_counters(cp: Examiner) -> None:
    """Counters beyond 2^31 and 2^53 are accepted, and negative ones."""
    slot, counter = cp.new(), cp.new("counter")
    cp.accept("alloc", slot)
    for value in LARGE:
        cp.accept("counters", slot, {counter: value})
        cp.accept("counters", slot, {counter: -value})
    cp.accept("counters", slot, {counter: 0})
    cp.accept("discard", slot)


@clause("NUMBER-8", "2", Need.SERVER, Need.ACCOUNTS)
def test_large_counters_to_the_last_digit(cp: Examiner) -> None:
    """Large counters add up on the slot to the last digit."""
    slot, expected = cp.new(), dict[str, object]()
    cp.accept("alloc", slot)
    for value in LARGE:
        counter = cp.new("counter")
        cp.accept("counters", slot, {counter: str(value)})
        cp.accept("counters", slot, {counter: -3})
        cp.accept("counters", slot, {counter: 2})
        expected[counter] = value - 1
    cp.see_slot(slot, counters=expected)
    cp.accept("discard", slot)


@clause("NUMBER-9", "2", Need.SERVER, Need.THOROUGH, Need.ACCOUNTS)
def test_large_grants(cp: Examiner) -> None:
    """Large credits and counters are granted, and add up, to the last digit."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    total = 0
    for value in FAR:
        slot = cp.new()
        cp.accept("alloc", slot, {} if total else {"credits": value})
        cp.accept("counters", slot, {counter: value})
        cp.accept("claim", slot, machine=machine, credits=value)
        cp.see_slot(slot, granted=value)
        total += value
        cp.see_machine(machine, credits=total, counters={counter: total}, waiting_credits=total)
    cp.link(machine, user)
    cp.see_user(user, credits=total, counters={counter: total})


@clause("NUMBER-10", "2", Need.SERVER, Need.ACCOUNTS)
def test_text_is_a_number(cp: Examiner) -> None:
    """Numbers that are sent as text grant and count what numbers do."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    slots = [cp.new() for _ in range(4)]
    cp.accept("alloc", slots[0], credits="12")
    cp.accept("alloc", slots[1], min="9", max="100")
    cp.accept("alloc", slots[2], max="9")
    cp.accept("alloc", slots[3])
    for slot in slots:
        cp.accept("counters", slot, {counter: "5"})
        cp.accept("counters", slot, {counter: "-2"})
        cp.accept("counters", slot, {counter: "10"})
    cp.see_slot(slots[0], counters={counter: 13})
    for slot, asked, granted in zip(slots, ("3", "10", "100", "007"), (12, 10, 9, 7), strict=True):
        cp.accept("claim", slot, machine=machine, credits=asked)
        cp.see_slot(slot, granted=granted)
    cp.see_machine(machine, credits=38, counters={counter: 52})
    cp.link(machine, user)
    cp.see_user(user, credits=38, counters={counter: 52})
    cp.see_total("counters", counter, 52)
