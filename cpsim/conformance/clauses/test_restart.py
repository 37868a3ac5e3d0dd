"""Restart: what a server accepted is there when it has been killed and started again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("RESTART-1", "4", Need.SERVER, Need.RESTART)
def test_slots(cp: Examiner) -> None:
    """Slots that were allocated before a restart are outstanding after it, and can be settled."""
    slots = [cp.new() for _ in range(20)]
    for slot in slots[:5]:
        cp.accept("alloc", slot)
    cp.check("errors", [], cp.bulk({"alloc": [{"slot": slot} for slot in slots[5:]]}))
    cp.restart_server()
    cp.check("slots", sorted(slots), sorted(cp.outstanding()))
    cp.refuse("alloc", slots[0])
    cp.accept("claim", slots[0], machine=cp.new("machine"))
    cp.check("errors", [], cp.bulk({"discard": [{"slot": slot} for slot in slots[1:]]}))


@clause("RESTART-2", "4", Need.SERVER, Need.RESTART, quirks=["reclaim", "claim-settled", "slots-list-claimed"])
def test_settled_slots(cp: Examiner) -> None:
    """Slots that were settled before a restart are settled after it."""
    claimed, discarded = cp.new(), cp.new()
    for slot in (claimed, discarded):
        cp.accept("alloc", slot)
    cp.accept("claim", claimed, machine=cp.new("machine"))
    cp.accept("discard", discarded)
    cp.restart_server()
    cp.see_unlisted(discarded)
    cp.see_unlisted(claimed, Known("slots-list-claimed", seen=True))
    for slot, quirk in ((claimed, "reclaim"), (discarded, "claim-settled")):
        cp.refuse("alloc", slot)
        cp.refuse("claim", slot, machine=cp.new("machine"), quirk=quirk)


@clause("RESTART-3", "4", Need.SERVER, Need.RESTART, Need.ACCOUNTS)
def test_accounts(cp: Examiner) -> None:
    """Credits, counters and terms are after a restart what they were before."""
    earned, open_slot = cp.new(), cp.new()
    machine, user, counter = cp.new("machine"), cp.new("user"), cp.new("counter")
    cp.link(machine, user)
    cp.accept("alloc", earned, credits=5)
    cp.accept("counters", earned, {counter: 3})
    cp.accept("claim", earned, machine=machine)
    cp.accept("alloc", open_slot, max=4)
    cp.accept("counters", open_slot, {counter: 2})
    cp.restart_server()
    cp.see_user(user, credits=5, counters={counter: 3})
    cp.accept("claim", open_slot, machine=machine, credits=9)
    cp.see_machine(machine, credits=9, counters={counter: 5})
    cp.see_user(user, credits=9, counters={counter: 5})
