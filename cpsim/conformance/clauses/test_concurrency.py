"""Concurrency: many at once, and a silent one beside them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause
from cpsim.conformance.examiner import MOST_AT_ONCE, compact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.exchange import HttpRequest

AT_ONCE = 50
CLAIMANTS = 4
"""Few enough for a server that lets five wait, as many do."""
ROUNDS = 4


@clause("CONCUR-1", "3", Need.DAEMON)
def test_many_clients(cp: Examiner) -> None:
    """Fifty clients that are connected at the same time are all answered."""
    with ExitStack() as stack:
        connections = [stack.enter_context(cp.connect()) for _ in range(AT_ONCE)]
        for connection in connections:
            connection.send(f"alloc,slot={cp.new()}\n".encode())
        answers = {connection.reply() for connection in connections}
    cp.check("answers", ["OK"], sorted(answers))


@clause("CONCUR-2", "3", Need.DAEMON)
def test_a_silent_client(cp: Examiner) -> None:
    """A client that is connected and silent keeps nobody waiting."""
    with cp.connect():
        cp.send(f"alloc,slot={cp.new()}")
        cp.send(f"alloc,slot={cp.new()}\n")


@clause("CONCUR-3", "3", Need.DAEMON)
def test_a_client_that_stops(cp: Examiner) -> None:
    """A client that stops in the middle of its frame keeps nobody waiting."""
    with cp.connect() as connection:
        connection.send(b"alloc,slo")
        cp.send(f"alloc,slot={cp.new()}")
        cp.send(f"alloc,slot={cp.new()}\n")


@clause("CONCUR-4", "3", Need.DAEMON)
def test_a_client_that_does_not_read(cp: Examiner) -> None:
    """A client that does not read its reply keeps nobody waiting."""
    with cp.connect() as connection:
        connection.send(f"alloc,slot={cp.new()}\n".encode())
        cp.send(f"alloc,slot={cp.new()}")
        cp.send(f"alloc,slot={cp.new()}\n")


@clause("CONCUR-5", "3", Need.DAEMON, Need.SERVER)
def test_many_arrive(cp: Examiner) -> None:
    """Commands acknowledged to many clients at the same time all reach the server."""
    slots = [cp.new() for _ in range(AT_ONCE)]
    with ExitStack() as stack:
        connections = [stack.enter_context(cp.connect()) for _ in slots]
        for connection, slot in zip(connections, slots, strict=True):
            connection.send(f"alloc,slot={slot}\n".encode())
        for connection in connections:
            cp.check("answer", "OK", connection.reply())
    cp.wait_until_applied()
    got = set(cp.outstanding())
    cp.check("slots that are missing", [], sorted(set(slots) - got))


def races(cp: Examiner, requests: Sequence[HttpRequest]) -> list[str]:
    """What comes of commands that are sent at the same time."""
    return [reply.outcome for reply in cp.ask_together(requests)]


@clause("CONCUR-6", "2", Need.SERVER, quirks=["reclaim"])
def test_one_claim_of_many(cp: Examiner) -> None:
    """Of machines that claim a slot at the same time, one gets it."""
    for _ in range(ROUNDS):
        slot = cp.new()
        cp.accept("alloc", slot)
        outcomes = races(cp, [cp.signed_command("claim", slot, machine=cp.new("machine")) for _ in range(CLAIMANTS)])
        expected = ["accepted", *["refused"] * (CLAIMANTS - 1)]
        known = []
        if cp.sees and outcomes == ["accepted"] * CLAIMANTS:  # and another one that comes later, alone?
            later = cp.command("claim", slot, machine=cp.new("machine")).outcome
            known = [Known("reclaim", outcomes)] if later == "accepted" else []
        cp.check("answers to the claims", expected, sorted(outcomes), *known)


@clause("CONCUR-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_counters_at_once(cp: Examiner) -> None:
    """Counters that come at the same time all add up."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.accept("alloc", slot)
    for _ in range(ROUNDS):
        outcomes = races(cp, [cp.signed_command("counters", slot, **{counter: 1}) for _ in range(CLAIMANTS)])
        cp.check("answers to the counters", ["accepted"], sorted(set(outcomes)))
    cp.see_slot(slot, counters={counter: ROUNDS * CLAIMANTS})
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, counters={counter: ROUNDS * CLAIMANTS})


@clause("CONCUR-8", "2", Need.SERVER)
def test_one_alloc_of_many(cp: Examiner) -> None:
    """Of allocs of one id at the same time, one is accepted."""
    for _ in range(ROUNDS):
        slot = cp.new()
        outcomes = races(cp, [cp.signed_command("alloc", slot, credits=number) for number in range(CLAIMANTS)])
        cp.check("answers to the allocs", ["accepted", *["refused"] * (CLAIMANTS - 1)], sorted(outcomes))
        cp.accept("discard", slot)


@clause("CONCUR-9", "2", Need.SERVER)
def test_claim_and_discard(cp: Examiner) -> None:
    """Of a claim and a discard at the same time, one is accepted, unless both are one after the other."""
    orders = []
    for first, second in (("claim", "discard"), ("discard", "claim")):
        slot = cp.new()
        cp.accept("alloc", slot)
        settle(cp, first, slot)
        orders.append(settle(cp, second, slot))
    for number in range(ROUNDS):
        slot = cp.new()
        cp.accept("alloc", slot)
        requests = [
            cp.signed_command("claim", slot, machine=cp.new("machine")),
            cp.signed_command("discard", slot),
        ]
        outcomes = sorted(races(cp, requests[:: 1 if number % 2 else -1]))
        if "accepted" not in orders:
            cp.check("answers", ["accepted", "refused"], outcomes)
        cp.check("one of them is accepted", expected=True, got="accepted" in outcomes)


def settle(cp: Examiner, kind: str, slot: str) -> str:
    """Claim or discard a slot; returns what comes of it."""
    return cp.command(kind, slot, {"machine": cp.new("machine")} if kind == "claim" else {}).outcome


@clause("CONCUR-10", "2", Need.SERVER, quirks=["discard-settled"])
def test_one_discard_of_many(cp: Examiner) -> None:
    """Of discards of one slot at the same time, one is accepted."""
    for _ in range(ROUNDS):
        slot = cp.new()
        cp.accept("alloc", slot)
        outcomes = races(cp, [cp.signed_command("discard", slot) for _ in range(CLAIMANTS)])
        known = Known("discard-settled", ["accepted"] * CLAIMANTS)
        cp.check("answers to the discards", ["accepted", *["refused"] * (CLAIMANTS - 1)], sorted(outcomes), known)


@clause("CONCUR-11", "2", Need.SERVER)
def test_allocs_at_once(cp: Examiner) -> None:
    """Slots that are allocated, and settled, at the same time are all there, and all gone."""
    for _ in range(ROUNDS):
        slots = [cp.new() for _ in range(CLAIMANTS)]
        outcomes = races(cp, [cp.signed_command("alloc", slot) for slot in slots])
        cp.check("answers to the allocs", ["accepted"], sorted(set(outcomes)))
        cp.check("slots", sorted(slots), sorted(cp.outstanding()))
        outcomes = races(cp, [cp.signed_command("discard", slot) for slot in slots])
        cp.check("answers to the discards", ["accepted"], sorted(set(outcomes)))
        cp.check("slots", [], cp.outstanding())


@clause("CONCUR-12", "2", Need.SERVER, Need.ACCOUNTS)
def test_claims_of_one_machine_at_once(cp: Examiner) -> None:
    """What a machine, its user, and the project get at the same time all adds up."""
    counter = cp.new("counter")
    machine, owned, user = cp.new("machine"), cp.new("machine"), cp.new("user")
    cp.link(owned, user)
    for _ in range(ROUNDS):
        for claimant in (machine, owned):
            slots = [cp.new() for _ in range(CLAIMANTS)]
            counters = [{"slot": slot, counter: 2} for slot in slots]
            cp.bulk({"alloc": [{"slot": slot, "credits": 3} for slot in slots], "counters": counters})
            outcomes = races(cp, [cp.signed_command("claim", slot, machine=claimant) for slot in slots])
            cp.check("answers to the claims", ["accepted"], sorted(set(outcomes)))
    credits, count = 3 * ROUNDS * CLAIMANTS, 2 * ROUNDS * CLAIMANTS
    cp.see_machine(machine, credits=credits, counters={counter: count}, waiting_credits=credits)
    cp.see_machine(owned, credits=credits, counters={counter: count}, waiting_credits=0)
    cp.see_user(user, credits=credits, counters={counter: count})
    cp.see_total("counters", counter, 2 * count)


@clause("CONCUR-13", "2", Need.SERVER, Need.ACCOUNTS, quirks=["counters-settled"])
def test_counters_and_a_claim(cp: Examiner) -> None:
    """Counters that come at the same time as the claim count if they were accepted, and only then."""
    for number in range(ROUNDS):
        slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
        cp.accept("alloc", slot)
        requests = [cp.signed_command("counters", slot, **{counter: 1}) for _ in range(CLAIMANTS - 1)]
        requests.insert(number % CLAIMANTS, cp.signed_command("claim", slot, machine=machine))
        outcomes = races(cp, requests)
        accepted = outcomes.count("accepted") - 1
        if cp.command("counters", slot, {counter: 1}).outcome == "accepted":  # settled slots are open to counters
            cp.check("counters of a claimed slot", "refused", "accepted", Known("counters-settled", "accepted"))
        cp.see_machine(machine, counters={counter: accepted} if accepted else {})


@clause("CONCUR-14", "2", Need.SERVER, Need.ACCOUNTS, quirks=["reclaim"])
def test_claims_at_once_grant_once(cp: Examiner) -> None:
    """Of claims of a slot at the same time, one is paid, whatever the others are answered."""
    for _ in range(ROUNDS):
        slot, machines = cp.new(), [cp.new("machine") for _ in range(CLAIMANTS)]
        cp.accept("alloc", slot, credits=5)
        outcomes = races(cp, [cp.signed_command("claim", slot, machine=machine) for machine in machines])
        views = [cp.accounts.machine(cp.project[0], machine) for machine in machines]
        paid = sum(view["credits"] for view in views if view is not None)
        known = []
        if cp.sees and paid != 5 and set(outcomes) == {"accepted"}:
            later = cp.command("claim", slot, machine=cp.new("machine")).outcome
            known = [Known("reclaim", paid)] if later == "accepted" else []
        cp.check("credits of the machines", 5, paid, *known)


@clause("CONCUR-15", "2", Need.SERVER, Need.THOROUGH, quirks=["reclaim", "discard-settled"])
def test_bulks_at_once(cp: Examiner) -> None:
    """Of bulks that allocate and discard the same slots at the same time, each slot is in one."""
    for _ in range(4 * ROUNDS):
        slots = [cp.new() for _ in range(20)]
        for kind in ("alloc", "discard"):
            body = compact({kind: [{"slot": slot} for slot in slots]})
            replies = cp.ask_together([cp.signed("/batch/bulk", body) for _ in range(CLAIMANTS)])
            refused = sum(len(reply.document.get("errors", [])) for reply in replies)
            known = Known("discard-settled" if kind == "discard" else "", 0)
            cp.check(f"how many of {kind} are refused", 20 * (CLAIMANTS - 1), refused, known)
        slot = cp.new()
        outcomes = races(cp, [cp.signed_command("alloc", slot) for _ in range(MOST_AT_ONCE)])
        cp.check("answers to the allocs", 1, outcomes.count("accepted"))
        outcomes = races(cp, [cp.signed_command("claim", slot, machine=cp.new("machine")) for _ in range(MOST_AT_ONCE)])
        if cp.sees and outcomes.count("accepted") > 1:
            later = cp.command("claim", slot, machine=cp.new("machine")).outcome
            cp.check("answer to one more claim, alone", "refused", later, Known("reclaim", "accepted"))
        cp.check("how many of the claims are accepted", 1, outcomes.count("accepted"))
