"""Concurrency: many at once, and a silent one beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner

AT_ONCE = 50
CLAIMANTS = 4
"""Few enough for a server that lets five wait, as many do."""


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


@clause("CONCUR-6", "2", Need.SERVER, quirks=["reclaim"])
def test_one_claim_of_many(cp: Examiner) -> None:
    """Of machines that claim a slot at the same time, one gets it."""
    slot = cp.new()
    cp.accept("alloc", slot)
    machines = [cp.new("machine") for _ in range(CLAIMANTS)]
    with ThreadPoolExecutor(CLAIMANTS) as pool:
        outcomes = list(pool.map(lambda machine: cp.command("claim", slot, machine=machine).outcome, machines))
    expected = ["accepted", *["refused"] * (CLAIMANTS - 1)]
    cp.check("answers to the claims", expected, sorted(outcomes), Known("reclaim", ["accepted"] * CLAIMANTS))


@clause("CONCUR-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_counters_at_once(cp: Examiner) -> None:
    """Counters that come at the same time all add up."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.accept("alloc", slot)
    with ThreadPoolExecutor(CLAIMANTS) as pool:
        outcomes = list(pool.map(lambda _: cp.command("counters", slot, {counter: 1}).outcome, range(3 * CLAIMANTS)))
    cp.check("answers to the counters", ["accepted"], sorted(set(outcomes)))
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, counters={counter: 3 * CLAIMANTS})
