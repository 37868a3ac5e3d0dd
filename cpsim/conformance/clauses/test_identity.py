"""Identity: an id is what was sent, to the last character. What looks alike is not the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.conformance.clause import Known, Level, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner

ALIKE: Final = (
    ("{}-case", "{}-CASE"),
    ("{}-straße", "{}-strasse"),
    ("{}-é", "{}-e"),
    ("{}-\u00fc", "{}-u\u0308"),
    ("{}-ﬁ", "{}-fi"),
    ("{}-\u0430", "{}-a"),
    ("{}-\uff11", "{}-1"),
    ("{}-\U0001f600", "{}-\U0001f601"),
    ("{}-\u0416", "{}-\u0436"),
    ("{} b", "{}  b"),
    ("{}-a b", "{}-ab"),
    ("{}-a+b", "{}-a b"),
    ("{}-%41", "{}-A"),
    ("{}-%20", "{}- "),
    ("{}-%", "{}-x"),
    ("{}-a_b", "{}-a-b"),
    ("{}-a.b", "{}-a/b"),
    ("{}-a/", "{}-a"),
    ("{}-a.", "{}-a-"),
    ("{}-b.", "{}-b"),
    ("{}-c:", "{}-c"),
    ("{}-007", "{}-7"),
    ("{}-1.0", "{}-1."),
    ("{}-&amp;", "{}-&"),
    ("{}-'q'", '{}-"q"'),
    ("{}-\\u0041", "{}-\\n"),
    ("{}-a:b", "{}-a;b"),
    ("{}-#1", "{}-#2"),
    ("{}-?a", "{}-*a"),
    ("{}-[a]", "{}-(a)"),
    ("{}-@a", "{}-!a"),
    ("00{}", "0{}"),
    ("A{}", "a{}"),
    ("É{}", "E{}"),
    ("_{}", "-{}"),
    ("/{}", "//{}"),
    ("1e3{}", "1000{}"),
)
"""Ids that differ and that look alike to somebody who folds case, letters, forms, blanks, escapes, or digits."""
BLANKS: Final = (("{}-end", "{}-end "), ("{}-begin", " {}-begin"), ("{}-none", "{}-none\u00a0"))
LONG: Final = (40, 64, 100, 128, 200, 250)
LONGER: Final = (255, 256, 500, 1_000, 1_400)


def pairs_of(cp: Examiner, alike: tuple[tuple[str, str], ...]) -> tuple[list[str], list[str]]:
    """New ids, in two lists: what stands at one place of both looks alike."""
    names = [cp.new() for _ in alike]
    return tuple([pair[side].replace("{}", name) for pair, name in zip(alike, names, strict=True)] for side in (0, 1))  # type: ignore[return-value]


def long_pairs(cp: Examiner, lengths: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Ids of these lengths that differ in the last character."""
    names = [cp.new().ljust(length - 1, "x") for length in lengths]
    return [f"{name}a" for name in names], [f"{name}b" for name in names]


def see_apart(cp: Examiner, first: list[str], second: list[str]) -> None:
    """Slots of both lists have to be made, listed as they were sent, and settled one without the other."""
    both = [*first, *second]
    cp.check("errors", [], cp.bulk({"alloc": [{"slot": slot} for slot in both]}))
    cp.check("slots", sorted(both), sorted(cp.listing()))
    cp.check("errors", [], cp.bulk({"discard": [{"slot": slot} for slot in first]}))
    cp.check("slots", sorted(second), sorted(cp.listing()))
    cp.check("errors", [], cp.bulk({"counters": [{"slot": slot, "job/events": 1} for slot in second]}))
    cp.check("errors", [], cp.bulk({"discard": [{"slot": slot} for slot in second]}))
    cp.check("slots", [], cp.listing())


@clause("IDENT-1", "2", Need.SERVER)
def test_alike(cp: Examiner) -> None:
    """Slots whose ids differ in case, an accent, its form, an escape, a zero or a sign are different, and so listed."""
    see_apart(cp, *pairs_of(cp, ALIKE))


@clause("IDENT-2", "2", Need.SERVER)
def test_blanks(cp: Examiner) -> None:
    """Slots whose ids differ in a blank at an end are different, and listed as they were sent."""
    see_apart(cp, *pairs_of(cp, BLANKS))


@clause("IDENT-3", "2", Need.SERVER)
def test_long(cp: Examiner) -> None:
    """Slots whose ids of up to 250 characters differ in the last one are different, and so listed."""
    see_apart(cp, *long_pairs(cp, LONG))


@clause("IDENT-4", "2", Need.SERVER, Need.THOROUGH)
def test_longer(cp: Examiner) -> None:
    """So are those of up to 1,400 characters, which a frame can have."""
    see_apart(cp, *long_pairs(cp, LONGER))


@clause("IDENT-5", "2", Need.SERVER)
def test_single_commands(cp: Examiner) -> None:
    """A single command is for the slot that it names, and for none whose id looks alike."""
    name = cp.new()
    cp.accept("alloc", f"{name}-A")
    for other in (f"{name}-a", f"{name}-A ", f"{name}-Á", f"{name}-%41", f"{name}-", name, f"{name}-A1"):
        cp.refuse("discard", other)
        cp.refuse("claim", other, machine=cp.new("machine"))
    cp.see_listed(f"{name}-A")


@clause("IDENT-6", "2", Need.SERVER, Need.ACCOUNTS)
def test_machines(cp: Examiner) -> None:
    """Machines whose ids look alike are different ones."""
    first, second = pairs_of(cp, (*ALIKE, *BLANKS))
    longer = long_pairs(cp, LONG)
    machines = [*first, *second, *longer[0], *longer[1]]
    slots = [cp.new() for _ in machines]
    cp.bulk(
        {
            "alloc": [{"slot": slot, "credits": number} for number, slot in enumerate(slots, 1)],
            "claim": [{"slot": slot, "machine": machine} for slot, machine in zip(slots, machines, strict=True)],
        }
    )
    for number, machine in enumerate(machines, 1):
        cp.see_machine(machine, credits=number)


@clause("IDENT-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_counters(cp: Examiner) -> None:
    """Counters whose names look alike are different ones, on the slot and on the machine."""
    slot, machine = cp.new(), cp.new("machine")
    first, second = pairs_of(cp, (*ALIKE, *BLANKS))
    longer = long_pairs(cp, LONG)
    counters: dict[str, object] = {
        name: number for number, name in enumerate([*first, *second, *longer[0], *longer[1]], 1)
    }
    cp.accept("alloc", slot)
    cp.accept("counters", slot, counters)
    cp.see_slot(slot, counters=counters)
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, counters=counters)


@clause("IDENT-8", "2", Need.SERVER, Need.ACCOUNTS, quirks=["meta-dropped"])
def test_metadata(cp: Examiner) -> None:
    """Names and values of metadata are kept as they were sent."""
    slot = cp.new()
    first, second = pairs_of(cp, (*ALIKE, *BLANKS))
    longer = long_pairs(cp, LONG)
    names = [*first, *second, *longer[0], *longer[1]]
    meta: dict[str, object] = {name: f"{name}  Ä{'z' * 300} " for name in names}
    cp.accept("alloc", slot)
    cp.accept("meta", slot, meta)
    cp.see_slot(slot, Known("meta-dropped", {"meta": {}}), meta=meta)


@clause("IDENT-13", "2", Need.SERVER, Need.ACCOUNTS, quirks=["ascii-only"])
def test_reasons(cp: Examiner) -> None:
    """Reasons are kept, and counted, as they were sent."""
    first, second = pairs_of(cp, (*ALIKE, *BLANKS))
    longer = long_pairs(cp, LONG)
    reasons = [*first, *second, *longer[0], *longer[1]]
    slots = [{"slot": cp.new()} for _ in reasons]
    discards = [{**slot, "reason": reason} for slot, reason in zip(slots, reasons, strict=True)]
    cp.bulk({"alloc": slots, "discard": discards}, Known("ascii-only", 500))
    totals = cp.accounts.totals(cp.project[0]).get("reasons", {})
    counted = {reason: totals.get(reason) for reason in reasons}
    refused = Known("ascii-only", {reason: None for reason in reasons if not reason.isascii()})
    cp.check("reasons that are not counted once", {}, {reason: n for reason, n in counted.items() if n != 1}, refused)
    cp.see_slot(slots[0]["slot"], reason=reasons[0])
    cp.see_slot(slots[-1]["slot"], reason=reasons[-1])


@clause("IDENT-9", "2", Need.SERVER, Need.ACCOUNTS)
def test_users(cp: Examiner) -> None:
    """Users whose ids look alike are different ones."""
    first, second = pairs_of(cp, ALIKE[:4])
    for credits, user in enumerate((*first, *second), 1):
        slot, machine = cp.new(), cp.new("machine")
        cp.link(machine, user)
        cp.accept("alloc", slot, credits=credits)
        cp.accept("claim", slot, machine=machine)
    for credits, user in enumerate((*first, *second), 1):
        cp.see_user(user, credits=credits)


@clause("IDENT-10", "2", Need.SERVER, level=Level.SHOULD)
def test_a_name_of_both_kinds(cp: Examiner) -> None:
    """A machine may have the id of a slot, and a counter that of a machine."""
    name = cp.new()
    cp.accept("alloc", name)
    cp.accept("counters", name, {name: 1})
    cp.accept("claim", name, machine=name)


@clause("IDENT-11", "2", Need.SERVER, Need.THOROUGH, level=Level.SHOULD)
def test_open_characters(cp: Examiner) -> None:
    """Ids with characters that a frame cannot have are told apart, if they are taken at all."""
    name = cp.new()
    ids = [f"{name}-a\tb", f"{name}-a b", f"{name}-a,b", f"{name}-a=b", f"{name}-a"]
    taken = [slot for slot in ids if cp.command("alloc", slot).outcome == "accepted"]
    cp.check("slots", sorted(taken), sorted(cp.listing()))


@clause("IDENT-12", "4", Need.SERVER, Need.THOROUGH, level=Level.SHOULD, quirks=["empty-ids"])
def test_empty_ids(cp: Examiner) -> None:
    """An empty id names nothing: neither a slot of any command, nor a machine."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("counters", "", {"job/events": 1}, quirk="empty-ids")
    cp.refuse("discard", "", quirk="empty-ids")
    cp.refuse("claim", "", machine=cp.new("machine"), quirk="empty-ids")
    cp.refuse("claim", slot, machine="", quirk="empty-ids")
    cp.refuse("alloc", "", quirk="empty-ids")
