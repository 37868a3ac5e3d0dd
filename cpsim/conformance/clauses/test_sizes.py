"""Sizes: many commands, many errors, long texts, many settled slots, to the last of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.conformance.clause import Known, Need, clause
from cpsim.conformance.examiner import compact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.conformance.examiner import Examiner

MANY: Final = 1_500
MORE: Final = 6_000
LONG: Final = 1_000
MEGABYTE: Final = 1_000_000


def see_errors(cp: Examiner, count: int, errors: Sequence[object]) -> None:
    """So many errors, each with a message and code 500."""
    cp.check("how many errors", count, len(errors))
    wrong = [
        error for error in errors if not (isinstance(error, dict) and error.get("message") and error["code"] == 500)
    ]
    cp.check("errors without a message or code 500", [], wrong[:3])


def live_through(cp: Examiner, count: int) -> list[str]:
    """Let many slots be allocated, listed, and discarded, none of them lost; returns their ids."""
    slots = [cp.new() for _ in range(count)]
    allocs = cp.in_bulks("alloc", [{"slot": slot} for slot in slots])
    slots = slots[: allocs.sent]
    cp.check("errors", [], allocs.errors[:3])
    cp.check("slots that are not listed", [], sorted(set(slots) - set(cp.outstanding()))[:3])
    discards = cp.in_bulks("discard", [{"slot": slot} for slot in slots], whole=True)
    cp.check("errors", [], discards.errors[:3])
    cp.check("slots that are still listed", [], sorted(set(slots) & set(cp.outstanding()))[:3])
    return slots


@clause("SIZE-1", "4", Need.SERVER, quirks=["counters-settled", "discard-settled"])
def test_many_slots(cp: Examiner) -> None:
    """Of more than a thousand slots that bulks allocate and discard, none is lost, and none forgotten."""
    slots = live_through(cp, MANY)
    ends = [slots[0], slots[1], *slots[len(slots) // 2 : len(slots) // 2 + 98], *slots[-2:]]
    for kind in ("alloc", "counters", "discard"):
        given = {"job/events": 1} if kind == "counters" else {}
        errors = cp.bulk({kind: [{"slot": slot, **given} for slot in ends]})
        known = "" if kind == "alloc" else f"{kind}-settled"
        cp.check(f"how many {kind} of settled slots are refused", len(ends), len(errors), Known(known, 0))


@clause("SIZE-2", "4", Need.SERVER, Need.THOROUGH)
def test_more_slots(cp: Examiner) -> None:
    """So it is with thousands of slots."""
    live_through(cp, MORE)


@clause("SIZE-3", "4", Need.SERVER)
def test_many_errors(cp: Examiner) -> None:
    """Of hundreds of refused commands in a bulk each is an error of its own, and the others are applied."""
    good = [cp.new() for _ in range(200)]
    commands = [{"slot": slot} for slot in good]
    refused = cp.in_bulks("discard", [{"slot": cp.new()} for _ in range(400)], whole=True)
    see_errors(cp, 400, refused.errors)
    mixed = cp.in_bulks("alloc", [command for command in commands for _ in range(2)], whole=True)
    see_errors(cp, 200, mixed.errors)
    cp.check("slots that are not listed", [], sorted(set(good) - set(cp.outstanding()))[:3])
    cp.check("errors", [], cp.in_bulks("discard", commands, whole=True).errors[:3])


@clause("SIZE-4", "2", Need.SERVER)
def test_long_texts(cp: Examiner) -> None:
    """Long machines, reasons, counters' names, and metadata are accepted."""
    first, second = cp.new(), cp.new()
    cp.accept("alloc", first)
    cp.accept("meta", first, {"log": "x" * 5 * LONG, "y" * 250: "é" * LONG})
    cp.accept("counters", first, {f"{cp.new('counter')}/{'z' * 200}": 1})
    cp.accept("claim", first, machine=cp.new("machine").ljust(250, "m"))
    cp.accept("alloc", second)
    cp.accept("discard", second, reason="r" * LONG)


@clause("SIZE-5", "2", Need.SERVER)
def test_many_names(cp: Examiner) -> None:
    """A command may have hundreds of counters, or of metadata, and a slot hundreds of commands."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {f"{slot}/{number}": number for number in range(300)})
    cp.accept("meta", slot, {f"name/{number}": str(number) for number in range(300)})
    for kind, given in (("counters", {"job/events": 1}), ("meta", {"site": "here"})):
        done = cp.in_bulks(kind, [{"slot": slot, **given}] * 300)
        cp.check("errors", [], done.errors[:3])
    cp.accept("discard", slot)


@clause("SIZE-6", "2", Need.SERVER, Need.ACCOUNTS)
def test_many_counters(cp: Examiner) -> None:
    """Hundreds of counters, of commands for one slot, and of claims of one machine all count."""
    slot, machine, user, counter = cp.new(), cp.new("machine"), cp.new("user"), cp.new("counter")
    counters: dict[str, object] = {f"{counter}/{number:03}": number + 1 for number in range(300)}
    cp.accept("alloc", slot)
    cp.accept("counters", slot, counters)
    cp.check("errors", [], cp.in_bulks("counters", [{"slot": slot, counter: 1}] * 1_000, whole=True).errors[:3])
    cp.see_slot(slot, counters={**counters, counter: 1_000})
    slots = [cp.new() for _ in range(300)]
    cp.in_bulks("alloc", [{"slot": each, "credits": 2} for each in slots], whole=True)
    claims = [{"slot": each, "machine": machine} for each in (slot, *slots)]
    cp.check("errors", [], cp.in_bulks("claim", claims, whole=True).errors[:3])
    cp.link(machine, user)
    cp.see_machine(machine, credits=601, counters={**counters, counter: 1_000}, waiting_credits=0)
    cp.see_user(user, credits=601, counters={**counters, counter: 1_000})


@clause("SIZE-7", "4", Need.SERVER, Need.THOROUGH)
def test_a_megabyte(cp: Examiner) -> None:
    """A body of a megabyte is read to its end, and so is its signature."""
    slot, last = cp.new(), cp.new()
    cp.check("errors", [], cp.bulk({"alloc": [{"slot": slot}], "meta": [{"slot": slot, "log": "x" * MEGABYTE}]}))
    cp.check("errors", [], cp.bulk({"meta": [{"slot": slot, "log": "x" * MEGABYTE}], "alloc": [{"slot": last}]}))
    cp.see_listed(last)
    body = compact({"discard": [{"slot": slot}], "meta": [{"slot": slot, "log": "x" * MEGABYTE}]})
    sent = cp.signed("/batch/bulk", body)
    forged = cp.signed("/batch/bulk", body[:-5] + b"y" + body[-4:], authorization=sent.headers["Authorization"])
    cp.check("status", 401, cp.ask(forged).status)
    cp.see_listed(slot)


@clause("SIZE-8", "4", Need.SERVER)
def test_a_large_body(cp: Examiner) -> None:
    """A body of a hundred kilobytes is read to its end, and so is its signature."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("meta", slot, {"log": "x" * 100_000})
    body = compact({"slot": slot, "log": "x" * 100_000, "site": "here"})
    sent = cp.signed("/batch/meta", body)
    for place in (len(body) - 3, len(body) // 2, 5_000, 1_030):
        changed = body[:place] + b"y" + body[place + 1 :]
        reply = cp.ask(cp.signed("/batch/meta", changed, authorization=sent.headers["Authorization"]))
        cp.check(f"status, with byte {place:,} changed after signing", 401, reply.status)
    cp.accept("discard", slot)


@clause("SIZE-9", "4", Need.SERVER)
def test_all_is_answered(cp: Examiner) -> None:
    """Of a hundred commands that come one by one, each is answered for what it is."""
    for _ in range(25):
        slot = cp.new()
        cp.accept("alloc", slot)
        cp.accept("counters", slot, {"job/events": 1})
        cp.accept("meta", slot, {"site": "here"})
        cp.accept("discard", slot)


@clause("SIZE-10", "4", Need.SERVER, Need.THOROUGH)
def test_all_of_more_is_answered(cp: Examiner) -> None:
    """So it is of a thousand and more."""
    for number in range(400):
        slot = cp.new()
        cp.accept("alloc", slot)
        cp.accept("meta", slot, {"site": "here"})
        cp.accept("discard", slot)
        if number % 100 == 0:
            cp.see_unlisted(slot)


@clause("SIZE-11", "4", Need.SERVER, Need.THOROUGH, quirks=["slots-list-claimed"])
def test_many_claims(cp: Examiner) -> None:
    """Of a thousand slots that bulks claim, none stays outstanding."""
    slots = [cp.new() for _ in range(1_000)]
    cp.check("errors", [], cp.in_bulks("alloc", [{"slot": slot} for slot in slots], whole=True).errors[:3])
    claims = [{"slot": slot, "machine": cp.new("machine")} for slot in slots]
    cp.check("errors", [], cp.in_bulks("claim", claims, whole=True).errors[:3])
    still = len(set(cp.outstanding()))
    cp.check("how many are still listed", 0, still, Known("slots-list-claimed", len(slots)))
