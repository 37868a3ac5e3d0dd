"""Conservation: nothing is lost and nothing is made, whatever else goes on at the server."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cpsim.conformance.clause import Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


def live(cp: Examiner, counter: str) -> tuple[list[str], list[str]]:
    """Let slots of every state come to be; returns two machines, the second with a user, and those users."""
    machines, user = [cp.new("machine"), cp.new("machine")], cp.new("user")
    cp.link(machines[1], user)
    for number, ending in enumerate(("claim", "claim", "discard", "nothing", "claim", "claim")):
        slot = cp.new()
        cp.accept("alloc", slot, min=2)
        cp.accept("counters", slot, {counter: number + 1})
        if ending == "claim":
            cp.accept("claim", slot, machine=machines[number % 2], credits=number)
        elif ending == "discard":
            cp.accept("discard", slot)
    return machines, [user]


@clause("CONSERVE-1", "2", Need.SERVER, Need.ACCOUNTS)
def test_slots(cp: Examiner) -> None:
    """The number of allocated slots is the sum of outstanding, claimed, discarded and expired slots."""
    live(cp, cp.new("counter"))
    totals = cp.accounts.totals(cp.project[0])
    parts = ("outstanding", "claimed", "discarded", "expired")
    cp.check(" + ".join(parts), totals.get("allocated"), sum(totals.get(part, 0) for part in parts))


@clause("CONSERVE-2", "2", Need.SERVER, Need.ACCOUNTS)
def test_credits(cp: Examiner) -> None:
    """The credits of all machines are the sum of all users' credits and waiting credits."""
    live(cp, cp.new("counter"))
    machines = others = 0
    for held in cp.accounts.holdings(cp.project[0]):
        if held["type"] == "machine":
            machines += held["credits"]
            others += held["waiting_credits"]
        else:
            others += held["credits"]
    cp.check("credits of users and waiting", machines, others)


@clause("CONSERVE-3", "2", Need.SERVER, Need.ACCOUNTS)
def test_counters(cp: Examiner) -> None:
    """Each counter of all machines is the sum of all users' counters and waiting counters."""
    live(cp, cp.new("counter"))
    machines, others = Counter[str](), Counter[str]()
    for held in cp.accounts.holdings(cp.project[0]):
        if held["type"] == "machine":
            machines.update(held["counters"])
            others.update(held["waiting_counters"])
        else:
            others.update(held["counters"])
    unequal = {name: (machines[name], others[name]) for name in machines | others if machines[name] != others[name]}
    cp.check("counters that machines hold otherwise than users and waiting", {}, unequal)


@clause("CONSERVE-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_what_was_granted_is_held(cp: Examiner) -> None:
    """Machines hold what their slots granted, and the project's total is the sum."""
    counter = cp.new("counter")
    (free, owned), (user,) = live(cp, counter)
    cp.see_machine(free, credits=6, counters={counter: 6}, waiting_credits=6, waiting_counters={counter: 6})
    cp.see_machine(owned, credits=7, counters={counter: 8}, waiting_credits=0, waiting_counters={})
    cp.see_user(user, credits=7, counters={counter: 8})
    cp.see_total("counters", counter, 14)
