"""discard: a slot is given up, and nobody earns anything by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("DISCARD-1", "2", Need.SERVER)
def test_an_allocated_slot(cp: Examiner) -> None:
    """An allocated slot is discarded, with a reason or without, and is not outstanding any more."""
    first, second = cp.new(), cp.new()
    cp.accept("alloc", first)
    cp.accept("discard", first)
    cp.see_unlisted(first)
    cp.accept("alloc", second)
    cp.accept("discard", second, reason="lost")
    cp.see_unlisted(second)


@clause("DISCARD-2", "2", Need.SERVER, Need.ACCOUNTS)
def test_the_reason(cp: Examiner) -> None:
    """The reason is kept, and counted."""
    reason = cp.new("reason")
    slots = [cp.new(), cp.new()]
    for slot in slots:
        cp.accept("alloc", slot)
        cp.accept("discard", slot, reason=reason)
    cp.see_slot(slots[0], state="discarded", reason=reason, machine=None)
    cp.see_total("reasons", reason, 2)


@clause("DISCARD-3", "2", Need.SERVER, Need.ACCOUNTS)
def test_no_reason(cp: Examiner) -> None:
    """Without a reason, the reason is "unspecified"."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("discard", slot)
    cp.see_slot(slot, state="discarded", reason="unspecified")


@clause("DISCARD-4", "2", Need.SERVER)
def test_an_unknown_slot(cp: Examiner) -> None:
    """A discard of a slot that was never allocated, or without a slot, is refused."""
    cp.refuse("discard", cp.new(), reason="lost")
    cp.refuse("discard", None, reason="lost")


@clause("DISCARD-5", "2", Need.SERVER, quirks=["discard-settled"])
def test_a_discarded_slot(cp: Examiner) -> None:
    """A discard of a discarded slot is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("discard", slot)
    cp.refuse("discard", slot, quirk="discard-settled")


@clause("DISCARD-6", "2", Need.SERVER, quirks=["discard-settled"])
def test_a_claimed_slot(cp: Examiner) -> None:
    """A discard of a claimed slot is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=cp.new("machine"))
    cp.refuse("discard", slot, quirk="discard-settled")


@clause("DISCARD-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_grants_nothing(cp: Examiner) -> None:
    """Neither credits nor counters of a discarded slot are granted."""
    slot, counter = cp.new(), cp.new("counter")
    cp.accept("alloc", slot, credits=50)
    cp.accept("counters", slot, {counter: 7})
    cp.accept("discard", slot)
    cp.see_slot(slot, state="discarded", granted=None, machine=None)
    cp.see_total("counters", counter, None)


@clause("DISCARD-8", "2", Need.SERVER, Need.ACCOUNTS, quirks=["discard-settled"])
def test_takes_nothing_back(cp: Examiner) -> None:
    """A discard of a claimed slot takes nothing back: it stays claimed, and its reason is not counted."""
    slot, machine, reason = cp.new(), cp.new("machine"), cp.new("reason")
    cp.accept("alloc", slot, credits=5)
    cp.accept("claim", slot, machine=machine)
    cp.command("discard", slot, reason=reason)
    cp.see_machine(machine, credits=5)
    cp.see_slot(
        slot,
        Known("discard-settled", {"state": "discarded", "granted": 5}),
        state="claimed",
        granted=5,
    )
    cp.see_total("reasons", reason, None)


@clause("DISCARD-9", "2", Need.SERVER, quirks=["ascii-only"])
def test_any_reason(cp: Examiner) -> None:
    """Any reason is taken: those of every day, a sentence, letters of any script, a number."""
    for reason in (
        "unknown-vmid",
        "expired",
        "lost",
        "Unspecified",
        "it was 5 o'clock",
        "Zeit überschritten",
        "42",
        "x/y",
    ):
        slot = cp.new()
        cp.accept("alloc", slot)
        known = Known("" if reason.isascii() else "ascii-only", "refused")
        cp.check("answer to discard", "accepted", cp.command("discard", slot, reason=reason).outcome, known)
        cp.see_unlisted(slot)


@clause("DISCARD-10", "2", Need.SERVER)
def test_after_other_commands(cp: Examiner) -> None:
    """A slot with terms, counters and metadata can be discarded."""
    slot = cp.new()
    cp.accept("alloc", slot, min=1, max=5, expire=60)
    cp.accept("counters", slot, {"job/events": 5})
    cp.accept("meta", slot, {"site": "here"})
    cp.accept("discard", slot)
    cp.see_unlisted(slot)


@clause("DISCARD-11", "2", Need.SERVER, Need.ACCOUNTS)
def test_reasons_apart(cp: Examiner) -> None:
    """Each reason is counted for itself."""
    reasons = [cp.new("reason") for _ in range(2)]
    reasons += [reasons[0].upper(), f"{reasons[1]} x", f"{reasons[0]}u"]
    for count, reason in enumerate(reasons, 1):
        slots = [{"slot": cp.new()} for _ in range(count)]
        cp.bulk({"alloc": slots, "discard": [{**slot, "reason": reason} for slot in slots]})
    for count, reason in enumerate(reasons, 1):
        cp.see_total("reasons", reason, count)
