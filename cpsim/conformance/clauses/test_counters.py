"""counters: they add up on the slot, and go to machine and user when it is claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Level, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("COUNTER-1", "2", Need.SERVER)
def test_an_allocated_slot(cp: Examiner) -> None:
    """Counters of an allocated slot are accepted: one, several, negative, with a slash in the name."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {"job/events": 1000})
    cp.accept("counters", slot, {"job/success": 1, "smashed/partons": 17, "energy": -5})
    cp.see_listed(slot)


@clause("COUNTER-2", "2", Need.SERVER, Need.ACCOUNTS)
def test_they_add_up(cp: Examiner) -> None:
    """Values of one counter add up, negative ones too; names stay distinct and unchanged."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {"job/events": 1000, "Energy": 7})
    cp.accept("counters", slot, {"job/events": 1, "job/cpuusage": 60})
    cp.accept("counters", slot, {"job/events": -500})
    cp.see_slot(slot, state="allocated", counters={"job/events": 501, "Energy": 7, "job/cpuusage": 60})


@clause("COUNTER-3", "2", Need.SERVER, Need.ACCOUNTS)
def test_machine(cp: Examiner) -> None:
    """A slot's counters go to the machine that claims it."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {counter: 7, "job/diskusage": -2})
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, counters={counter: 7, "job/diskusage": -2})
    cp.see_total("counters", counter, 7)


@clause("COUNTER-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_not_before_the_claim(cp: Examiner) -> None:
    """A slot's counters count for nobody until the slot is claimed."""
    slot, counter = cp.new(), cp.new("counter")
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {counter: 7})
    cp.see_total("counters", counter, None)


@clause("COUNTER-5", "2", Need.SERVER, Need.ACCOUNTS)
def test_machine_adds_up(cp: Examiner) -> None:
    """A machine's counters add up over the slots that it claims."""
    machine, counter = cp.new("machine"), cp.new("counter")
    for value in (5, 11, -3):
        slot = cp.new()
        cp.accept("alloc", slot)
        cp.accept("counters", slot, {counter: value})
        cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, counters={counter: 13}, waiting_counters={counter: 13})


@clause("COUNTER-6", "2", Need.SERVER, Need.ACCOUNTS)
def test_user(cp: Examiner) -> None:
    """A slot's counters go to the user of the machine that claims it, and add up there."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    cp.link(machine, user)
    for value in (5, 11):
        slot = cp.new()
        cp.accept("alloc", slot)
        cp.accept("counters", slot, {counter: value})
        cp.accept("claim", slot, machine=machine)
    cp.see_user(user, counters={counter: 16})
    cp.see_machine(machine, counters={counter: 16}, waiting_counters={})


@clause("COUNTER-7", "2", Need.SERVER)
def test_an_unknown_slot(cp: Examiner) -> None:
    """Counters of a slot that was never allocated are refused."""
    cp.refuse("counters", cp.new(), {"job/events": 1})


@clause("COUNTER-8", "2", Need.SERVER, quirks=["counters-settled"])
def test_a_claimed_slot(cp: Examiner) -> None:
    """Counters of a claimed slot are refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=cp.new("machine"))
    cp.refuse("counters", slot, {"job/events": 1}, quirk="counters-settled")


@clause("COUNTER-9", "2", Need.SERVER, quirks=["counters-settled"])
def test_a_discarded_slot(cp: Examiner) -> None:
    """Counters of a discarded slot are refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("discard", slot)
    cp.refuse("counters", slot, {"job/events": 1}, quirk="counters-settled")


@clause("COUNTER-10", "2", Need.SERVER, quirks=["float-credits"])
def test_no_number(cp: Examiner) -> None:
    """A counter that is not a whole number is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("counters", slot, {"job/events": "many"})
    cp.refuse("counters", slot, {"job/events": "1.5"}, quirk="float-credits")
    cp.refuse("counters", slot, {"job/events": ""})


@clause("COUNTER-11", "2", Need.SERVER, quirks=["counters-empty"])
def test_no_counter(cp: Examiner) -> None:
    """Counters without a counter, or without a slot, are refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("counters", slot, quirk="counters-empty")
    cp.refuse("counters", None, {"job/events": 1})


@clause("COUNTER-12", "2", Need.SERVER, Need.ACCOUNTS, level=Level.SHOULD)
def test_all_or_nothing(cp: Examiner) -> None:
    """Where one counter of a command is not a number, none of its counters is added."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("counters", slot, {"job/events": 1, "job/cpuusage": "many"})
    cp.see_slot(slot, counters={})


@clause("COUNTER-13", "2", Need.SERVER, Need.ACCOUNTS, quirks=["counters-settled"])
def test_after_the_claim(cp: Examiner) -> None:
    """Counters after the claim change neither the slot nor the machine's account."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {counter: 5})
    cp.accept("claim", slot, machine=machine)
    cp.command("counters", slot, {counter: 3})
    cp.see_machine(machine, counters={counter: 5})
    cp.see_slot(slot, Known("counters-settled", {"counters": {counter: 8}}), counters={counter: 5})


@clause("COUNTER-14", "2", Need.SERVER, level=Level.SHOULD)
def test_numbers_as_text(cp: Examiner) -> None:
    """Numbers are taken as text too, as a frame has them."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {"job/events": "1000", "energy": "-5"})


@clause("COUNTER-15", "2", Need.SERVER)
def test_again(cp: Examiner) -> None:
    """Counters may come again, equal ones too, be 0, and bring a sum below zero."""
    slot = cp.new()
    cp.accept("alloc", slot)
    for value in (5, 5, 0, -20, -1, 1_000_000):
        cp.accept("counters", slot, {"job/events": value, "energy": 0})
    cp.see_listed(slot)
    cp.accept("claim", slot, machine=cp.new("machine"))


@clause("COUNTER-16", "2", Need.SERVER, Need.ACCOUNTS)
def test_equal_ones(cp: Examiner) -> None:
    """Two equal counters commands both count, one after the other or with others in between."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.accept("alloc", slot)
    for values in ({counter: 5}, {counter: 5}, {counter: 1, "job/events": 2}, {counter: 5}, {counter: 0}):
        cp.accept("counters", slot, dict[str, object](values))
    cp.see_slot(slot, counters={counter: 16, "job/events": 2})
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, counters={counter: 16, "job/events": 2})
    cp.see_total("counters", counter, 16)


@clause("COUNTER-17", "2", Need.SERVER, Need.ACCOUNTS)
def test_below_zero(cp: Examiner) -> None:
    """Counters below zero are granted like others: to the machine, to what waits, to the user, to the project."""
    counter, user = cp.new("counter"), cp.new("user")
    for machine, values in ((cp.new("machine"), (-7, 3)), (cp.new("machine"), (-1, -1))):
        for value in values:
            slot = cp.new()
            cp.accept("alloc", slot)
            cp.accept("counters", slot, {counter: value})
            cp.accept("claim", slot, machine=machine)
        cp.see_machine(machine, counters={counter: sum(values)}, waiting_counters={counter: sum(values)})
        cp.link(machine, user)
    cp.see_user(user, counters={counter: -6})
    cp.see_total("counters", counter, -6)


@clause("COUNTER-18", "2", Need.SERVER, Need.ACCOUNTS)
def test_names_of_arguments(cp: Examiner) -> None:
    """A counter may be named like an argument of another command, and is a counter."""
    slot, machine, names = cp.new(), cp.new("machine"), {"machine": 5, "reason": 1, "min": 2, "max": 3, "expire": 4}
    cp.accept("alloc", slot)
    cp.accept("counters", slot, dict[str, object](names))
    cp.see_slot(slot, counters=names)
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, credits=1, counters=names)


@clause("COUNTER-19", "2", Need.SERVER, Need.ACCOUNTS, Need.THOROUGH, quirks=["shared-names"])
def test_names_of_sums(cp: Examiner) -> None:
    """Nor does a counter named like a sum of the server's own add to that."""
    slot, machine, user = cp.new(), cp.new("machine"), cp.new("user")
    names = {"credits": 5, "slots/completed": 6, "slots/allocated": 7, "slots/discarded": 8}
    before = cp.accounts.totals(cp.project[0])
    cp.accept("alloc", slot, credits=2)
    cp.accept("counters", slot, dict[str, object](names))
    cp.accept("claim", slot, machine=machine)
    cp.link(machine, user)
    cp.see_machine(machine, credits=2, counters=names)
    added = {name: count for name, count in names.items() if name not in {"credits", "slots/completed"}}
    cp.see_user(user, Known("shared-names", {"credits": 2, "counters": added}), credits=2, counters=names)
    after = cp.accounts.totals(cp.project[0])
    cp.check("slots claimed", before.get("claimed", 0) + 1, after.get("claimed"))
    cp.check("slots discarded", before.get("discarded", 0), after.get("discarded"))
