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
    """The number of allocated slots changes with the sum of outstanding, claimed, discarded and expired slots."""
    parts = ("outstanding", "claimed", "discarded", "expired")

    def difference() -> int:
        totals: dict[str, int] = cp.accounts.totals(cp.project[0])
        return totals.get("allocated", 0) - sum(totals.get(part, 0) for part in parts)

    before = difference()
    live(cp, cp.new("counter"))
    cp.check(f"allocated - ({' + '.join(parts)})", before, difference())


def beyond(cp: Examiner) -> tuple[int, dict[str, int]]:
    """The credits and counters that all machines have beyond those of users, and those that wait."""
    credits, counters = 0, Counter[str]()
    for held in cp.accounts.holdings(cp.project[0]):
        if held["type"] == "machine":
            credits += held["credits"] - held["waiting_credits"]
            counters.update(held["counters"])
            counters.subtract(held["waiting_counters"])
        else:
            credits -= held["credits"]
            counters.subtract(held["counters"])
    return credits, {name: value for name, value in counters.items() if value}


@clause("CONSERVE-2", "2", Need.SERVER, Need.ACCOUNTS)
def test_credits(cp: Examiner) -> None:
    """The credits of all machines change with the sum of all users' credits and waiting credits."""
    before, _ = beyond(cp)
    live(cp, cp.new("counter"))
    cp.check("credits of machines beyond those of users and waiting", before, beyond(cp)[0])


@clause("CONSERVE-3", "2", Need.SERVER, Need.ACCOUNTS)
def test_counters(cp: Examiner) -> None:
    """Each counter of all machines changes with the sum of all users' counters and waiting counters."""
    _, before = beyond(cp)
    live(cp, cp.new("counter"))
    cp.check("counters of machines beyond those of users and waiting", before, beyond(cp)[1])


@clause("CONSERVE-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_what_was_granted_is_held(cp: Examiner) -> None:
    """Machines hold what their slots granted, and the project's total is the sum."""
    counter = cp.new("counter")
    (free, owned), (user,) = live(cp, counter)
    cp.see_machine(free, credits=6, counters={counter: 6}, waiting_credits=6, waiting_counters={counter: 6})
    cp.see_machine(owned, credits=7, counters={counter: 8}, waiting_credits=0, waiting_counters={})
    cp.see_user(user, credits=7, counters={counter: 8})
    cp.see_total("counters", counter, 14)
