"""A daemon between a job manager and a server, both of which are ours: the commands sent against those delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.clause import Known, Need, clause
from cpsim.conformance.forwarding import SLACK_S, Explanation, Forwarding, see_applied_once, see_none_dropped
from cpsim.conformance.segments import ATTEMPTS
from cpsim.conformance.upstream import LATE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.conformance.examiner import Examiner

pytestmark = pytest.mark.xdist_group("the server behind the daemon")

DOWN_S: Final = 0.5
HANGS_S: Final = LATE_S
QUEUED: Final = 6_000
"""Past 5,000 commands the deployed daemon is busy when its server is down, once it has tried again; until then it may
acknowledge hundreds more."""
SAMPLE: Final = 320
LONG_ENOUGH_S: Final = 3.0
"""How long beyond two flush intervals nothing has to arrive, under steady traffic, to be held up by it."""
SLOWER: Final = 2.5
LONGEST_S: Final = 40.0
"""How long it may take to have so many commands queued."""


@pytest.fixture
def forwarding(cp: Examiner) -> Iterator[Forwarding]:
    """Commands on their way through the daemon."""
    with Forwarding(cp) as forwarding:
        yield forwarding


@clause("FORWARD-1", "3", Need.DAEMON, Need.BEHIND)
def test_each_arrives_once(forwarding: Forwarding) -> None:
    """Each command that was acknowledged arrives at the server, once."""
    forwarding.send_some(12)
    for number, slot in enumerate(forwarding.open_slots(3)):
        forwarding.send("counters", slot, **{"job/events": number})
    forwarding.drain()
    forwarding.see_each_once()
    forwarding.see_none_repeated()


@clause("FORWARD-2", "3", Need.DAEMON, Need.BEHIND)
def test_unaltered(cp: Examiner, forwarding: Forwarding) -> None:
    """Commands arrive as they were sent: their kind, and the exact value of every name, in any order of the names."""
    slot = cp.new()
    forwarding.send("alloc", slot, min=1, max=10, expire=90)
    forwarding.send(
        "meta", slot, site="Zürich, nämlich".replace(",", ""), **{"job/kind": "two words", "x": "-+.:/'\"\\"}
    )
    forwarding.send("meta", slot, build="007", count=12)
    forwarding.send("counters", slot, **{"job/cpuusage": 86_400, "smashed/partons": -7})
    forwarding.send("claim", slot, machine=cp.new("machine"), credits=5)
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-3", "4", Need.DAEMON, Need.BEHIND)
def test_signed(cp: Examiner, forwarding: Forwarding) -> None:
    """Deliveries are signed by the project, over the exact bytes of the body."""
    forwarding.send_some()
    forwarding.drain()
    cp.check("errors of signatures", [], sorted({seen.signature_error for seen in forwarding.deliveries} - {""}))


@clause("FORWARD-4", "3", Need.DAEMON, Need.BEHIND)
def test_in_time(cp: Examiner, forwarding: Forwarding) -> None:
    """A single command is delivered within the flush interval."""
    for _ in range(5):
        command = forwarding.send("alloc", cp.new())
        forwarding.wait_for([command], cp.timeout_s + cp.flush_interval_s)
    forwarding.drain()
    delays_s = sorted(forwarding.delays_s()) or [0.0]  # a rehearsal has none
    median_s = delays_s[len(delays_s) // 2]  # a busy machine may hold up a few
    bound_s = cp.flush_interval_s + SLACK_S
    cp.measure("from acknowledgement to arrival", f"median {median_s:.3f} s, at most {delays_s[-1]:.3f} s")
    what = f"delays in s, if most are above {bound_s:g} (--flush-interval {cp.flush_interval_s:g}, and {SLACK_S:g})"
    cp.check(what, [], [round(each, 3) for each in delays_s if median_s > bound_s])


@clause("FORWARD-5", "5", Need.DAEMON, Need.BEHIND, quirks=["flush-starves"])
def test_steady_traffic(cp: Examiner, forwarding: Forwarding) -> None:
    """Steady traffic does not put off the flush."""
    interval_s = max(cp.flush_interval_s, 0.2)
    for _ in range(ATTEMPTS):
        first = forwarding.send("alloc", cp.new())
        began_s = sent_s = SYSTEM_CLOCK.monotonic()
        longest_s, arrived = 0.0, False
        while not arrived and sent_s < began_s + 2 * interval_s + LONG_ENOUGH_S:
            arrived = forwarding.wait_for([first], interval_s / 10)
            forwarding.send("alloc", cp.new())
            before_s, sent_s = sent_s, SYSTEM_CLOCK.monotonic()
            longest_s = max(longest_s, sent_s - before_s)
        if not arrived:
            forwarding.drain()  # what is lost, no pause brings back
            forwarding.see_each_once()
        seen = "has arrived" if arrived else "has not arrived"
        cp.check(f"{first}, while others followed,", "has arrived", seen, Known("flush-starves", "has not arrived"))
        if longest_s < interval_s / 2:
            break
    else:
        cp.give_up(f"this machine is too busy to send a command every {interval_s / 2:g} s")
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-6", "3", Need.DAEMON, Need.BEHIND, quirks=["reorder-classes"])
def test_order(cp: Examiner, forwarding: Forwarding) -> None:
    """The commands of a slot take effect in the order in which they came."""
    late, early = cp.new(), cp.new()
    forwarding.refuse()  # so that they leave together
    forwarding.send("alloc", late)
    forwarding.send("claim", late, machine=cp.new("machine"))
    forwarding.send("counters", late, **{"job/events": 1})
    forwarding.send("counters", early, **{"job/events": 1})
    forwarding.send("alloc", early)
    forwarding.upstream.serve_normally()
    forwarding.drain()
    forwarding.see_each_once()
    forwarding.see_order(late, "reorder-classes")
    forwarding.see_order(early, "reorder-classes")


@clause("FORWARD-7", "3", Need.DAEMON, Need.BEHIND)
def test_refused_connections(cp: Examiner, forwarding: Forwarding) -> None:
    """While the server refuses connections, commands are acknowledged and kept; afterwards each arrives, once."""
    forwarding.refuse()
    forwarding.send_some()
    cp.pause(DOWN_S)
    forwarding.upstream.serve_normally()
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-8", "5", Need.DAEMON, Need.BEHIND, quirks=["drop-on-error"])
def test_an_answer_that_is_none(forwarding: Forwarding) -> None:
    """A batch that is answered with an error page is not lost."""
    see_none_dropped(forwarding, "500", "503", "not-json")
    see_none_dropped(forwarding, "503", together=True)


@clause("FORWARD-9", "5", Need.DAEMON, Need.BEHIND, quirks=["resend-duplicates"])
def test_a_lost_reply(forwarding: Forwarding) -> None:
    """A batch whose reply is lost or cut short is applied once."""
    for answer in ("lose", "cut"):
        see_applied_once(forwarding, answer, "resend-duplicates")


@clause("FORWARD-10", "3", Need.DAEMON, Need.BEHIND)
def test_a_server_that_hangs(cp: Examiner, forwarding: Forwarding) -> None:
    """While the server does not answer, commands are acknowledged in time; afterwards each arrives, once."""
    forwarding.fail("hang", count=None)
    forwarding.send_some(2)
    cp.pause(HANGS_S)
    forwarding.send_some(2)
    forwarding.upstream.serve_normally()
    forwarding.drain()
    forwarding.see_each_once(during=f"the server gave no answer for {HANGS_S:g} s")


@clause("FORWARD-11", "4", Need.DAEMON, Need.BEHIND)
def test_refused_commands(forwarding: Forwarding) -> None:
    """Commands refused in a bulk do not stop the others, and are not retried."""
    slots = forwarding.send_some(1)
    forwarding.upstream.answer("errors", refused=frozenset(slots))
    slots += forwarding.send_some(2)
    forwarding.drain()
    forwarding.see_each_once()
    forwarding.see_none_repeated()


@clause("FORWARD-12", "5", Need.DAEMON, Need.BEHIND, Need.FAILED, quirks=["errors-ignored"])
def test_refused_commands_are_reported(cp: Examiner, forwarding: Forwarding) -> None:
    """Commands refused in a bulk are reported at the site."""
    (slot, *_) = slots = [cp.new(), cp.new()]
    forwarding.upstream.answer("errors", refused=frozenset([slot]))
    for name in slots:
        forwarding.send("alloc", name)
    forwarding.drain()
    reported = [name for name in slots if name in cp.failed_commands()]
    cp.check("slots that the daemon reports", [slot], reported, Known("errors-ignored", []))


@clause("FORWARD-13", "3", Need.DAEMON, Need.BEHIND)
def test_a_server_that_starts_anew(forwarding: Forwarding) -> None:
    """After a restart of the server, each command arrives, once."""
    forwarding.send_some()
    forwarding.upstream.stop()
    forwarding.upstream.serve_normally()
    forwarding.send_some()
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-14", "5", Need.DAEMON, Need.BEHIND, quirks=["busy-when-down"])
def test_pace_while_down(cp: Examiner, forwarding: Forwarding) -> None:
    """In an outage with thousands of commands waiting, the daemon keeps its pace."""
    if cp.max_rate is not None:
        cp.give_up(f"the pace would be the client's own, at most {cp.max_rate:g} commands/s: leave out --max-rate")
    up = forwarding.rate(SAMPLE)
    forwarding.drain()
    if up * LONGEST_S < QUEUED:
        cp.give_up(f"at {up:,.0f} commands/s, {QUEUED:,} are not queued within {LONGEST_S:g} s")
    forwarding.refuse()
    forwarding.rate(QUEUED)
    down = max(forwarding.rate(SAMPLE) for _ in range(3))
    forwarding.upstream.serve_normally()
    forwarding.drain()
    up = min(up, max(forwarding.rate(SAMPLE) for _ in range(2)))  # a machine that has become busy is no outage
    cp.measure("acknowledged with the server up", f"{up:,.0f} commands/s")
    cp.measure("acknowledged with the server down and thousands waiting", f"{down:,.0f} commands/s")
    pace = "slower" if up > SLOWER * down else "kept"
    cp.check(f"its pace ({SLOWER:g} times slower is slower)", "kept", pace, Known("busy-when-down", "slower"))
    forwarding.drain()
    forwarding.see_each_once(during=f"the server was away and {QUEUED:,} waited")


@clause("FORWARD-15", "5", Need.DAEMON, Need.BEHIND, Need.RESTART, quirks=["ack-before-delivery"])
def test_what_a_restart_leaves(cp: Examiner, forwarding: Forwarding) -> None:
    """Acknowledged commands survive when the daemon is stopped or killed while the server is out of reach."""
    for signal in ("TERM", "KILL") if cp.kills else ("TERM",):
        forwarding.refuse()
        queued = forwarding.sent_since(forwarding.send_some)
        cp.restart(signal)
        forwarding.upstream.serve_normally()
        forwarding.drain()
        lost = Explanation("ack-before-delivery", queued)
        forwarding.see_each_once(lost=lost, during=f"the server was out of reach, before {signal}")
