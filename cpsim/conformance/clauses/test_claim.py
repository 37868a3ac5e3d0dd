"""claim: a slot is claimed once, by one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Level, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("CLAIM-1", "2", Need.SERVER)
def test_an_allocated_slot(cp: Examiner) -> None:
    """A new machine can claim an allocated slot."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=cp.new("machine"))


@clause("CLAIM-2", "4", Need.SERVER, quirks=["slots-list-claimed"])
def test_claimed_is_not_outstanding(cp: Examiner) -> None:
    """A claimed slot is not outstanding any more."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=cp.new("machine"))
    cp.see_unlisted(slot, Known("slots-list-claimed", seen=True))


@clause("CLAIM-3", "2", Need.SERVER)
def test_an_unknown_slot(cp: Examiner) -> None:
    """A claim of a slot that was never allocated is refused."""
    cp.refuse("claim", cp.new(), machine=cp.new("machine"))


@clause("CLAIM-4", "4", Need.SERVER)
def test_no_machine(cp: Examiner) -> None:
    """A claim without a machine is refused, and the slot stays outstanding."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("claim", slot)
    cp.refuse("claim", slot, credits=5)
    cp.see_listed(slot)


@clause("CLAIM-5", "4", Need.SERVER)
def test_no_slot(cp: Examiner) -> None:
    """A claim without a slot is refused."""
    cp.refuse("claim", None, machine=cp.new("machine"))


@clause("CLAIM-6", "2", Need.SERVER, quirks=["reclaim"])
def test_a_second_claim(cp: Examiner) -> None:
    """A second claim by the same machine is refused."""
    slot, machine = cp.new(), cp.new("machine")
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=machine)
    cp.refuse("claim", slot, machine=machine, quirk="reclaim")


@clause("CLAIM-7", "2", Need.SERVER, quirks=["reclaim"])
def test_a_claim_by_another_machine(cp: Examiner) -> None:
    """A second claim by another machine is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=cp.new("machine"))
    cp.refuse("claim", slot, machine=cp.new("machine"), quirk="reclaim")


@clause("CLAIM-8", "2", Need.SERVER, quirks=["claim-settled"])
def test_a_discarded_slot(cp: Examiner) -> None:
    """A claim of a discarded slot is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("discard", slot)
    cp.refuse("claim", slot, machine=cp.new("machine"), quirk="claim-settled")


@clause("CLAIM-9", "2", Need.SERVER, Need.ACCOUNTS)
def test_what_a_claim_does(cp: Examiner) -> None:
    """A claim gives the slot and its credits to the machine, where the credits wait for a user."""
    slot, machine = cp.new(), cp.new("machine")
    cp.accept("alloc", slot, credits=12)
    cp.accept("claim", slot, machine=machine)
    cp.see_slot(slot, state="claimed", machine=machine, granted=12)
    cp.see_machine(machine, credits=12, waiting_credits=12)


@clause("CLAIM-10", "2", Need.SERVER, Need.ACCOUNTS, quirks=["reclaim"])
def test_a_refused_claim_grants_nothing(cp: Examiner) -> None:
    """A second claim grants nothing, and the slot stays with the first machine."""
    slot, first, second = cp.new(), cp.new("machine"), cp.new("machine")
    counter = cp.new("counter")
    cp.accept("alloc", slot, credits=12)
    cp.accept("counters", slot, {counter: 3})
    cp.accept("claim", slot, machine=first)
    cp.command("claim", slot, machine=first)
    cp.command("claim", slot, machine=second)
    cp.see_machine(
        first,
        Known("reclaim", {"credits": 24, "counters": {counter: 6}}),
        credits=12,
        counters={counter: 3},
    )
    cp.see_machine(second, credits=0, counters={})
    cp.see_slot(slot, state="claimed", machine=first, granted=12)
    cp.see_total("counters", counter, 3)


@clause("CLAIM-11", "2", Need.SERVER, Need.ACCOUNTS)
def test_a_claim_without_a_machine_changes_nothing(cp: Examiner) -> None:
    """A claim that is refused for lack of a machine leaves the slot as it was."""
    slot = cp.new()
    cp.accept("alloc", slot, credits=12)
    cp.refuse("claim", slot)
    cp.see_slot(slot, state="allocated", machine=None)


@clause("CLAIM-12", "2", Need.SERVER, quirks=["float-credits"], level=Level.SHOULD)
def test_credits_that_cannot_be(cp: Examiner) -> None:
    """Where the claim sets the credits, a claim of credits that are negative or not a whole number is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("claim", slot, machine=cp.new("machine"), credits="many")
    cp.refuse("claim", slot, machine=cp.new("machine"), credits="7.9", quirk="float-credits")
    cp.refuse("claim", slot, machine=cp.new("machine"), credits=-1, quirk="float-credits")


@clause("CLAIM-13", "2", Need.SERVER, Need.ACCOUNTS, quirks=["claim-settled"])
def test_a_claim_of_a_discarded_slot_grants_nothing(cp: Examiner) -> None:
    """A claim of a discarded slot grants nothing, and the slot stays discarded."""
    slot, machine = cp.new(), cp.new("machine")
    cp.accept("alloc", slot, credits=12)
    cp.accept("discard", slot)
    cp.command("claim", slot, machine=machine)
    cp.see_machine(machine, Known("claim-settled", {"credits": 12}), credits=0)
    cp.see_slot(slot, state="discarded")


@clause("CLAIM-14", "2", Need.SERVER)
def test_a_machine_again(cp: Examiner) -> None:
    """A machine can claim a second slot, and a third, one after the other and of any terms."""
    machine = cp.new("machine")
    for terms in ({}, {"credits": 5}, {"min": 2}, {}):
        slot = cp.new()
        cp.accept("alloc", slot, dict[str, object](terms))
        cp.accept("claim", slot, machine=machine)


@clause("CLAIM-15", "2", Need.SERVER)
def test_after_a_refused_claim(cp: Examiner) -> None:
    """A slot whose claim, counters or meta were refused can still be claimed."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("claim", slot)
    cp.refuse("counters", slot, {"job/events": "many"})
    cp.refuse("claim", slot, credits=5)
    cp.see_listed(slot)
    cp.accept("counters", slot, {"job/events": 1})
    cp.accept("claim", slot, machine=cp.new("machine"))
