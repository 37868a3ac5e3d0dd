"""Projects: each has its own slots and accounts, and its own secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpdaemon.signing import token
from cpsim.conformance.clause import Known, Need, clause
from cpsim.conformance.examiner import compact

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("PROJECT-1", "2", Need.SERVER, Need.OTHER, quirks=["global-slot-ids"])
def test_same_id(cp: Examiner) -> None:
    """An id that one project uses is free in another."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("alloc", slot, {}, Known("global-slot-ids", "refused"), project=cp.other)
    cp.see_listed(slot)
    cp.see_listed(slot, project=cp.other)


@clause("PROJECT-2", "2", Need.SERVER, Need.OTHER, quirks=["meta-dropped"])
def test_a_slot_of_another_project(cp: Examiner) -> None:
    """No command of one project reaches a slot of another: each is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("counters", slot, {"job/events": 1}, project=cp.other)
    cp.refuse("meta", slot, {"site": "here"}, project=cp.other, quirk="meta-dropped")
    cp.refuse("discard", slot, project=cp.other)
    cp.refuse("claim", slot, machine=cp.new("machine"), project=cp.other)
    cp.see_listed(slot)


@clause("PROJECT-3", "4", Need.SERVER, Need.OTHER)
def test_listing(cp: Examiner) -> None:
    """A project sees its own slots only."""
    mine, theirs = cp.new(), cp.new()
    cp.accept("alloc", mine)
    cp.accept("alloc", theirs, project=cp.other)
    cp.see_unlisted(theirs)
    cp.see_unlisted(mine, project=cp.other)


@clause("PROJECT-4", "2", Need.SERVER, Need.OTHER, Need.ACCOUNTS)
def test_accounts(cp: Examiner) -> None:
    """What a machine earns in one project does not show in another."""
    machine, slots, counter = cp.new("machine"), (cp.new(), cp.new()), cp.new("counter")
    cp.accept("alloc", slots[0], credits=5)
    cp.accept("counters", slots[0], {counter: 2})
    cp.accept("claim", slots[0], machine=machine)
    cp.see_machine(machine, credits=0, counters={}, project=cp.other)
    cp.accept("alloc", slots[1], credits=7, project=cp.other)
    cp.accept("claim", slots[1], machine=machine, project=cp.other)
    cp.see_machine(machine, credits=5, counters={counter: 2})
    cp.see_machine(machine, credits=7, counters={}, project=cp.other)


@clause("PROJECT-5", "2", Need.SERVER, Need.OTHER, quirks=["global-slot-ids"])
def test_settling_one(cp: Examiner) -> None:
    """A slot that is settled in one project is left alone in the other, whatever its id."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("alloc", slot, {}, Known("global-slot-ids", "refused"), project=cp.other)
    cp.accept("discard", slot)
    cp.see_listed(slot, project=cp.other)
    cp.accept("claim", slot, machine=cp.new("machine"), project=cp.other)


@clause("PROJECT-6", "4", Need.SERVER, Need.OTHER)
def test_secrets(cp: Examiner) -> None:
    """One project's secret does not sign for another."""
    slot = cp.new()
    body = compact({"slot": slot})
    forged = token((cp.other[0], cp.project[1]), body)
    reply = cp.request("/batch/alloc", body, authorization=forged)
    cp.check("status", 401, reply.status)
    cp.see_unlisted(slot)
    cp.see_unlisted(slot, project=cp.other)


@clause("PROJECT-7", "2", Need.SERVER, Need.OTHER, Need.ACCOUNTS)
def test_counters(cp: Examiner) -> None:
    """Counters and reasons of one name are counted in each project for itself, with the user's and the machine's."""
    counter, reason, machine, user = cp.new("counter"), cp.new("reason"), cp.new("machine"), cp.new("user")
    cp.link(machine, user)
    for value, project in ((2, cp.project), (30, cp.other)):
        slot, other = f"{cp.new()}-{value}", f"{cp.new()}-{value}"
        cp.accept("alloc", slot, {"credits": value}, project=project)
        cp.accept("counters", slot, {counter: value}, project=project)
        cp.accept("claim", slot, {"machine": machine}, project=project)
        cp.accept("alloc", other, project=project)
        cp.accept("discard", other, {"reason": reason}, project=project)
    cp.see_total("counters", counter, 2)
    cp.see_total("reasons", reason, 1)
    for value, project in ((2, cp.project), (30, cp.other)):
        cp.see_machine(machine, credits=value, counters={counter: value}, project=project)
        cp.see_user(user, credits=value, counters={counter: value}, project=project)


@clause("PROJECT-8", "2", Need.SERVER, Need.OTHER, Need.ACCOUNTS, quirks=["global-slot-ids"])
def test_terms_of_the_same_id(cp: Examiner) -> None:
    """Slots of one id in two projects have terms, counters and claims of their own."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.accept("alloc", slot, credits=3)
    cp.accept("alloc", slot, {"credits": 40}, Known("global-slot-ids", "refused"), project=cp.other)
    cp.accept("counters", slot, {counter: 1})
    cp.accept("counters", slot, {counter: 20}, project=cp.other)
    cp.accept("claim", slot, machine=machine)
    cp.accept("claim", slot, {"machine": machine}, project=cp.other)
    cp.see_machine(machine, credits=3, counters={counter: 1})
    cp.see_machine(machine, credits=40, counters={counter: 20}, project=cp.other)
