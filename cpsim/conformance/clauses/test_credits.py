"""Credits: what a claim grants, at the boundaries of what alloc allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


def grants(cp: Examiner, terms: dict[str, object], asked: int | None, granted: int) -> None:
    """A claim of a slot with these terms has to grant this, to the slot's books and the machine's alike."""
    slot, machine = cp.new(), cp.new("machine")
    cp.accept("alloc", slot, terms)
    cp.accept("claim", slot, {} if asked is None else {"credits": asked}, machine=machine)
    cp.see_slot(slot, granted=granted)
    cp.see_machine(machine, credits=granted)


@clause("CREDIT-1", "2", Need.SERVER, Need.ACCOUNTS)
def test_fixed(cp: Examiner) -> None:
    """A claim grants the credits of the alloc."""
    grants(cp, {"credits": 7}, None, 7)
    grants(cp, {"credits": 1}, None, 1)


@clause("CREDIT-2", "2", Need.SERVER, Need.ACCOUNTS)
def test_fixed_whatever_the_claim_says(cp: Examiner) -> None:
    """Credits given at alloc are granted whatever the claim asks for."""
    grants(cp, {"credits": 7}, 6, 7)
    grants(cp, {"credits": 7}, 8, 7)
    grants(cp, {"credits": 7}, 0, 7)


@clause("CREDIT-3", "2", Need.SERVER, Need.ACCOUNTS)
def test_fixed_and_a_range(cp: Examiner) -> None:
    """With credits and a range at alloc, the credits win and the range is ignored."""
    grants(cp, {"credits": 50, "min": 1, "max": 10}, 5, 50)
    grants(cp, {"credits": 1, "min": 5}, 9, 1)
    grants(cp, {"credits": 20, "max": 10}, None, 20)


@clause("CREDIT-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_nobody_says(cp: Examiner) -> None:
    """Where neither alloc nor claim says anything, 1 is granted."""
    grants(cp, {}, None, 1)


@clause("CREDIT-5", "2", Need.SERVER, Need.ACCOUNTS)
def test_the_claim_says(cp: Examiner) -> None:
    """Where alloc says nothing, what the claim asks for is granted."""
    grants(cp, {}, 1, 1)
    grants(cp, {}, 2, 2)
    grants(cp, {}, 12_345, 12_345)


@clause("CREDIT-6", "2", Need.SERVER, Need.ACCOUNTS)
def test_lower_bound(cp: Examiner) -> None:
    """In a range, no less than its min is granted."""
    grants(cp, {"min": 5, "max": 10}, 3, 5)
    grants(cp, {"min": 5, "max": 10}, 4, 5)
    grants(cp, {"min": 5, "max": 10}, 5, 5)
    grants(cp, {"min": 5, "max": 10}, 6, 6)


@clause("CREDIT-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_upper_bound(cp: Examiner) -> None:
    """In a range, no more than its max is granted."""
    grants(cp, {"min": 5, "max": 10}, 9, 9)
    grants(cp, {"min": 5, "max": 10}, 10, 10)
    grants(cp, {"min": 5, "max": 10}, 11, 10)
    grants(cp, {"min": 5, "max": 10}, 1_000, 10)


@clause("CREDIT-8", "2", Need.SERVER, Need.ACCOUNTS)
def test_min_only(cp: Examiner) -> None:
    """With a min alone, there is no upper bound."""
    grants(cp, {"min": 5}, 4, 5)
    grants(cp, {"min": 5}, 5, 5)
    grants(cp, {"min": 5}, 6, 6)
    grants(cp, {"min": 5}, 1_000_000, 1_000_000)


@clause("CREDIT-9", "2", Need.SERVER, Need.ACCOUNTS)
def test_max_only(cp: Examiner) -> None:
    """With a max alone, there is no lower bound."""
    grants(cp, {"max": 10}, 0, 0)
    grants(cp, {"max": 10}, 9, 9)
    grants(cp, {"max": 10}, 10, 10)
    grants(cp, {"max": 10}, 11, 10)


@clause("CREDIT-10", "2", Need.SERVER, Need.ACCOUNTS)
def test_the_default_is_limited_too(cp: Examiner) -> None:
    """The 1 of a claim that asks for nothing is limited like any other."""
    grants(cp, {"min": 5, "max": 10}, None, 5)
    grants(cp, {"min": 2}, None, 2)
    grants(cp, {"min": 0, "max": 3}, None, 1)
    grants(cp, {"max": 0}, None, 0)


@clause("CREDIT-11", "2", Need.SERVER, Need.ACCOUNTS)
def test_a_range_of_one(cp: Examiner) -> None:
    """Where min and max are equal, that number is granted."""
    grants(cp, {"min": 4, "max": 4}, 3, 4)
    grants(cp, {"min": 4, "max": 4}, 4, 4)
    grants(cp, {"min": 4, "max": 4}, 5, 4)


@clause("CREDIT-12", "2", Need.SERVER, Need.ACCOUNTS)
def test_zero(cp: Examiner) -> None:
    """Zero is a number: as credits, as what a claim asks for, and as a bound."""
    grants(cp, {"credits": 0}, 5, 0)
    grants(cp, {}, 0, 0)
    grants(cp, {"min": 0, "max": 0}, 5, 0)


@clause("CREDIT-13", "2", Need.SERVER, Need.ACCOUNTS, Need.THOROUGH)
def test_large_numbers(cp: Examiner) -> None:
    """Large numbers are granted to the last digit."""
    grants(cp, {"credits": 2**31 - 1}, None, 2**31 - 1)
    grants(cp, {}, 2_000_000_011, 2_000_000_011)


@clause("CREDIT-14", "2", Need.SERVER, Need.ACCOUNTS)
def test_credits_add_up(cp: Examiner) -> None:
    """The credits of a machine's claims add up."""
    machine = cp.new("machine")
    for asked in (3, 5, 9):
        slot = cp.new()
        cp.accept("alloc", slot)
        cp.accept("claim", slot, machine=machine, credits=asked)
    cp.see_machine(machine, credits=17, waiting_credits=17)


@clause("CREDIT-15", "2", Need.SERVER)
def test_no_claim_is_refused_for_its_credits(cp: Examiner) -> None:
    """A claim whose credits are outside the range, or other than those of the alloc, is limited, and not refused."""
    machine = cp.new("machine")
    for terms, asked in (
        ({"min": 5, "max": 10}, 1),
        ({"min": 5, "max": 10}, 11),
        ({"min": 5, "max": 10}, 0),
        ({"min": 5, "max": 10}, None),
        ({"min": 5}, 4),
        ({"max": 5}, 6),
        ({"max": 0}, None),
        ({"max": 0}, 1),
        ({"min": 0, "max": 0}, 7),
        ({"credits": 7}, 8),
        ({"credits": 7}, 0),
        ({"credits": 0}, 5),
        ({"credits": 0}, None),
        ({"credits": 50, "min": 1, "max": 10}, 5),
        ({"credits": 1, "min": 5}, None),
        ({}, 0),
        ({}, 1),
        ({}, 12_345),
    ):
        slot = cp.new()
        cp.accept("alloc", slot, dict[str, object](terms))
        cp.accept("claim", slot, {} if asked is None else {"credits": asked}, machine=machine)


@clause("CREDIT-16", "2", Need.SERVER, Need.ACCOUNTS)
def test_project(cp: Examiner) -> None:
    """Credits of one slot are no other slot's: each is granted by its own terms, in whatever order."""
    machine = cp.new("machine")
    slots = [cp.new() for _ in range(5)]
    terms = [{"credits": 7}, {}, {"min": 5}, {"max": 3}, {"min": 2, "max": 4}]
    for slot, given in zip(slots, terms, strict=True):
        cp.accept("alloc", slot, dict[str, object](given))
    for slot, granted in reversed([*zip(slots, (7, 6, 6, 3, 4), strict=True)]):
        cp.accept("claim", slot, machine=machine, credits=6)
        cp.see_slot(slot, granted=granted)
    cp.see_machine(machine, credits=26)
