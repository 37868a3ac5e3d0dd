"""Links: what a machine earned before it had a user, while it has one, and after it was released."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


def earn(cp: Examiner, machine: str, credits: int, counters: dict[str, object]) -> None:
    """Let a machine claim a slot."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("counters", slot, counters)
    cp.accept("claim", slot, machine=machine, credits=credits)


@clause("LINK-1", "2", Need.SERVER, Need.ACCOUNTS)
def test_late(cp: Examiner) -> None:
    """What waited on a machine goes to its new user, and stays in the machine's own total."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    earn(cp, machine, 10, {counter: 3})
    earn(cp, machine, 5, {counter: 4})
    cp.see_machine(machine, waiting_credits=15, waiting_counters={counter: 7})
    cp.link(machine, user)
    cp.see_user(user, credits=15, counters={counter: 7})
    cp.see_machine(machine, credits=15, counters={counter: 7}, waiting_credits=0, waiting_counters={})


@clause("LINK-2", "2", Need.SERVER, Need.ACCOUNTS)
def test_early(cp: Examiner) -> None:
    """What a machine that has a user earns goes to the user at once, and never waits."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    cp.link(machine, user)
    earn(cp, machine, 10, {counter: 3})
    cp.see_user(user, credits=10, counters={counter: 3})
    cp.see_machine(machine, credits=10, waiting_credits=0, waiting_counters={})


@clause("LINK-3", "2", Need.SERVER, Need.ACCOUNTS)
def test_release(cp: Examiner) -> None:
    """A release takes nothing back, and what the machine earns after it waits."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    cp.link(machine, user)
    earn(cp, machine, 10, {counter: 3})
    cp.release(machine)
    cp.see_user(user, credits=10, counters={counter: 3})
    earn(cp, machine, 4, {counter: 1})
    cp.see_user(user, credits=10, counters={counter: 3})
    cp.see_machine(machine, credits=14, waiting_credits=4, waiting_counters={counter: 1})


@clause("LINK-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_another_user(cp: Examiner) -> None:
    """What waited since the release goes to the next user alone."""
    machine, first, second, counter = cp.new("machine"), cp.new("user"), cp.new("user"), cp.new("counter")
    cp.link(machine, first)
    earn(cp, machine, 10, {counter: 3})
    cp.release(machine)
    earn(cp, machine, 4, {counter: 1})
    cp.link(machine, second)
    earn(cp, machine, 2, {counter: 2})
    cp.see_user(first, credits=10, counters={counter: 3})
    cp.see_user(second, credits=6, counters={counter: 3})
    cp.see_machine(machine, credits=16, counters={counter: 6}, waiting_credits=0)


@clause("LINK-5", "2", Need.SERVER, Need.ACCOUNTS)
def test_one_user_at_a_time(cp: Examiner) -> None:
    """A machine that has a user goes to no other, until it is released."""
    machine, first, second = cp.new("machine"), cp.new("user"), cp.new("user")
    cp.link(machine, first)
    cp.see_no_link(machine, second)
    earn(cp, machine, 10, {"job/events": 1})
    cp.see_user(first, credits=10)
    cp.see_user(second, credits=0)


@clause("LINK-6", "2", Need.SERVER, Need.ACCOUNTS)
def test_several_machines(cp: Examiner) -> None:
    """A user gets what all of the user's machines earn."""
    user, counter = cp.new("user"), cp.new("counter")
    for credits in (3, 4):
        machine = cp.new("machine")
        cp.link(machine, user)
        earn(cp, machine, credits, {counter: credits})
    cp.see_user(user, credits=7, counters={counter: 7})


@clause("LINK-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_waiting_once(cp: Examiner) -> None:
    """What waited goes to a user once: not again after a release and a link to the same user."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    earn(cp, machine, 10, {counter: 3})
    cp.link(machine, user)
    cp.release(machine)
    cp.link(machine, user)
    cp.see_user(user, credits=10, counters={counter: 3})
    earn(cp, machine, 2, {counter: 1})
    cp.see_user(user, credits=12, counters={counter: 4})
    cp.see_machine(machine, credits=12, counters={counter: 4}, waiting_credits=0, waiting_counters={})


@clause("LINK-8", "2", Need.SERVER, Need.ACCOUNTS)
def test_one_machine_of_two(cp: Examiner) -> None:
    """A release of one machine leaves a user's other machine, and what waits on one is not on another."""
    first, second, user, counter = cp.new("machine"), cp.new("machine"), cp.new("user"), cp.new("counter")
    for machine in (first, second):
        cp.link(machine, user)
    cp.release(first)
    earn(cp, first, 3, {counter: 1})
    earn(cp, second, 5, {counter: 2})
    cp.see_user(user, credits=5, counters={counter: 2})
    cp.see_machine(first, credits=3, waiting_credits=3, waiting_counters={counter: 1})
    cp.see_machine(second, credits=5, waiting_credits=0)


@clause("LINK-9", "2", Need.SERVER, Need.OTHER, Need.ACCOUNTS)
def test_two_projects(cp: Examiner) -> None:
    """What waits in two projects goes to the user in each, and the two are kept apart; so is what follows."""
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    for round in range(2):
        for credits, project in ((3, cp.project), (40, cp.other)):
            slot = f"{cp.new()}-{credits}"
            cp.accept("alloc", slot, {"credits": credits}, project=project)
            cp.accept("counters", slot, {counter: credits}, project=project)
            cp.accept("claim", slot, {"machine": machine}, project=project)
        if not round:
            cp.link(machine, user)
    cp.see_user(user, credits=6, counters={counter: 6})
    cp.see_user(user, credits=80, counters={counter: 80}, project=cp.other)
    cp.see_machine(machine, credits=6, counters={counter: 6}, waiting_credits=0)
    cp.see_machine(machine, credits=80, counters={counter: 80}, waiting_credits=0, project=cp.other)


@clause("LINK-10", "2", Need.SERVER, Need.ACCOUNTS)
def test_what_is_not_granted(cp: Examiner) -> None:
    """A link gives a user nothing of slots that are outstanding, discarded, or another machine's."""
    machine, stranger, user, counter = cp.new("machine"), cp.new("machine"), cp.new("user"), cp.new("counter")
    earn(cp, stranger, 50, {counter: 9})
    for ending in ("discard", "nothing"):
        slot = cp.new()
        cp.accept("alloc", slot, credits=20)
        cp.accept("counters", slot, {counter: 5})
        if ending == "discard":
            cp.accept("discard", slot)
    earn(cp, machine, 2, {counter: 1})
    cp.link(machine, user)
    cp.see_user(user, credits=2, counters={counter: 1})
    cp.see_machine(stranger, credits=50, waiting_credits=50)
