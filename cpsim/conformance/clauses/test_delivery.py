"""Delivery: what the daemon acknowledged reaches the server, unaltered and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpdaemon.wire import MAX_FRAME_BYTES as LONGEST_FRAME_BYTES
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.segments import send_in_two, try_at_once

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner

STEADY_INTERVALS = 4
"""For how many of the daemon's flush intervals steady traffic is kept up."""
STEADY_COMMANDS = 20
SHORTEST_GAP_S = 0.015
"""Who delivers within twice that delivers at once: traffic that is steadier than that is a flood."""
LONGEST_GAP_S = 1.0
LONG_ENOUGH_S = 3.0
"""For how long steady traffic is kept up at least, where nothing arrives: a busy machine is slow without starving."""


@clause("DELIVER-1", "3", Need.DAEMON, Need.SERVER)
def test_alloc(cp: Examiner) -> None:
    """An acknowledged alloc reaches the server."""
    slot = cp.new()
    cp.send(f"alloc,slot={slot}")
    cp.wait_for(f"slot {slot}, which the daemon acknowledged, at the server", lambda: cp.listed(slot))


@clause("DELIVER-2", "3", Need.DAEMON, Need.SERVER)
def test_exact_ids(cp: Examiner) -> None:
    """Ids arrive as they were given: without the white space around the frame, whatever the command's case."""
    slots = [cp.new() for _ in range(6)]
    cp.send(f"alloc,slot={slots[0]}\n")
    cp.send(f"alloc,slot={slots[1]}\r\n")
    cp.send(f"  alloc,slot={slots[2]}  ")
    cp.send(f"ALLOC,slot={slots[3]}")
    cp.send(f"alloc,credits=5,slot={slots[4]}\n")
    cp.send(f"alloc,slot={slots[5]}/é {slots[5]}")
    cp.wait_until_applied()
    expected = [*slots[:5], f"{slots[5]}/é {slots[5]}"]
    got = cp.outstanding()
    cp.check("slots at the server", sorted(expected), sorted(got))


@clause("DELIVER-3", "3", Need.DAEMON, Need.SERVER)
def test_malformed_is_not_delivered(cp: Examiner) -> None:
    """A command answered ER never reaches the server."""
    slot = cp.new()
    cp.send(f"allocate,slot={slot}\n", "ER")
    cp.send(f"claim,slot={slot}\n", "ER")
    cp.wait_until_applied()
    cp.see_unlisted(slot)


@clause("DELIVER-4", "3", Need.DAEMON, Need.SERVER)
def test_refused_stops_nothing(cp: Examiner) -> None:
    """A command that the server refuses does not hold up later commands."""
    slot, used = cp.new(), cp.new()
    cp.send(f"alloc,slot={used}")
    cp.send(f"claim,slot={cp.new()},machine={cp.new('machine')}")
    cp.send(f"alloc,slot={used}")
    cp.send(f"alloc,slot={cp.new()},min=2,max=1")
    cp.send(f"alloc,slot={slot}")
    cp.wait_until_applied()
    cp.see_listed(slot)


@clause("DELIVER-5", "3", Need.DAEMON, Need.SERVER, Need.ACCOUNTS)
def test_a_whole_life(cp: Examiner) -> None:
    """A slot's whole life through the daemon ends as the same commands do at the server."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.send(f"alloc,slot={slot},min=2,max=10")
    cp.send(f"counters,slot={slot},{counter}=1000,job/success=1\n")
    cp.send(f"counters,slot={slot},{counter}=-1")
    cp.send(f"claim,slot={slot},machine={machine},credits=25\n")
    cp.wait_until_applied()
    cp.see_machine(machine, credits=10, counters={counter: 999, "job/success": 1})
    cp.see_slot(slot, state="claimed", machine=machine, granted=10, counters={counter: 999, "job/success": 1})


@clause("DELIVER-6", "3", Need.DAEMON, Need.SERVER, Need.ACCOUNTS, quirks=["meta-dropped"])
def test_text(cp: Examiner) -> None:
    """Metadata and reasons arrive as they were given."""
    slot, reason = cp.new(), cp.new("reason")
    cp.send(f"alloc,slot={slot}")
    cp.send(f"meta,slot={slot},site=CERN Genève,job/kind=a b")
    cp.send(f"discard,slot={slot},reason={reason}\n")
    cp.wait_until_applied()
    cp.see_slot(slot, state="discarded", reason=reason)
    given = {"site": "CERN Genève", "job/kind": "a b"}
    cp.see_slot(slot, Known("meta-dropped", {"meta": {}}), meta=given)


@clause("DELIVER-7", "3", Need.DAEMON, Need.SERVER, Need.ACCOUNTS)
def test_once(cp: Examiner) -> None:
    """Each acknowledged command arrives once."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.send(f"alloc,slot={slot}")
    for _ in range(20):
        cp.send(f"counters,slot={slot},{counter}=1")
    cp.send(f"claim,slot={slot},machine={machine}")
    cp.wait_until_applied()
    cp.see_machine(machine, credits=1, counters={counter: 20})


@clause("DELIVER-8", "5", Need.DAEMON, Need.SERVER, Need.ACCOUNTS, quirks=["reorder-classes"])
def test_order(cp: Examiner) -> None:
    """Commands on a slot take effect in the order in which they were acknowledged."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    frames = (
        f"alloc,slot={slot},credits=5",
        f"claim,slot={slot},machine={machine}",
        f"counters,slot={slot},{counter}=1",
    )
    open_connections = []
    for frame in frames:  # who stays on the line may hold up what is acknowledged, so that all go together
        connection = cp.connect()
        open_connections.append(connection)
        connection.send(frame.encode())
        cp.check("answer", "OK", connection.reply())
    for connection in reversed(open_connections):
        connection.close()
    cp.wait_until_applied()
    cp.see_machine(machine, Known("reorder-classes", {"credits": 5, "counters": {counter: 1}}), credits=5, counters={})


@clause("DELIVER-9", "3", Need.DAEMON, Need.SERVER, quirks=["cut-values"])
def test_a_value_is_never_cut(cp: Examiner) -> None:
    """A value with a "=" is never cut at the "="."""
    slot = cp.new()
    with cp.connect() as connection:
        connection.send(f"alloc,slot={slot}=b\n".encode())
        connection.reply()
    cp.wait_until_applied()
    cp.see_unlisted(slot, Known("cut-values", seen=True))


@clause("DELIVER-10", "3", Need.DAEMON, Need.SERVER, quirks=["single-read"])
def test_a_long_frame_is_never_cut(cp: Examiner) -> None:
    """A frame over 1,500 bytes is taken whole or not at all."""
    slot, length = cp.new(), 1_600
    whole = slot + "x" * (length - len(slot))
    with cp.connect() as connection:
        connection.send(f"alloc,slot={whole}\n".encode())
        connection.reply()
    cp.wait_until_applied()
    cut = [got for got in cp.outstanding() if whole.startswith(got) and got != whole]
    expected = whole[: LONGEST_FRAME_BYTES - len("alloc,slot=")]
    cp.check("slots made of a part of the frame", [], cut, Known("single-read", [expected]))


@clause("DELIVER-11", "3", Need.DAEMON, Need.SERVER, quirks=["single-read"], level=Level.SHOULD)
def test_segments_that_look_whole(cp: Examiner) -> None:
    """A frame whose first segment could be one by itself is read whole, if the second follows at once."""

    def ends() -> tuple[list[str], bool]:
        """What follows the first segment in the ids of the slots that are made of the frame."""
        slot = cp.new()
        _, at_once = send_in_two(cp, f"alloc,slot={slot}", "-whole\n")
        cp.wait_until_applied()
        return [each.removeprefix(slot) for each in cp.outstanding() if each.startswith(slot)], at_once

    got = try_at_once(["-whole"], ends)
    cp.check("slots made of the frame, without its first segment", ["-whole"], got, Known("single-read", [""]))


@clause("DELIVER-12", "5", Need.DAEMON, Need.SERVER, quirks=["flush-starves"])
def test_steady_traffic(cp: Examiner) -> None:
    """Steady traffic does not keep acknowledged commands from the server."""
    first = cp.new()
    interval_s = max(_delay_s(cp), _delay_s(cp))  # the second probe leaves just after a delivery
    gap_s = max(interval_s / (STEADY_COMMANDS / STEADY_INTERVALS), SHORTEST_GAP_S)
    if gap_s > LONGEST_GAP_S:
        cp.give_up(f"the daemon delivers after {interval_s:.1f} s: to keep up steady traffic that long takes too much")
    cp.send(f"alloc,slot={first}\n")
    sent_s, longest_s = SYSTEM_CLOCK.monotonic(), 0.0

    def has_arrived() -> bool:
        """Send one more command; whether the first is at the server."""
        nonlocal sent_s, longest_s
        cp.pause(gap_s)
        cp.send(f"alloc,slot={cp.new()}\n")
        before_s, sent_s = sent_s, SYSTEM_CLOCK.monotonic()
        longest_s = max(longest_s, sent_s - before_s)
        return cp.listed(first)

    looks = [has_arrived() for _ in range(STEADY_COMMANDS)]
    seen = any(looks) or cp.repeat(has_arrived, LONG_ENOUGH_S)
    if seen and longest_s >= interval_s > 2 * SHORTEST_GAP_S:
        cp.give_up(f"{longest_s:.3f} s between two commands is no steady traffic: a higher --max-rate may do")
    arrived = "is at the server" if seen else "is not at the server"
    cp.check(
        f"{first} under steady traffic", "is at the server", arrived, Known("flush-starves", "is not at the server")
    )


def _delay_s(cp: Examiner) -> float:
    """How long a slot takes from the daemon's OK to the server."""
    slot = cp.new()
    cp.send(f"alloc,slot={slot}\n")
    return cp.wait_or_give_up(f"alloc of {slot}", lambda: cp.listed(slot))
