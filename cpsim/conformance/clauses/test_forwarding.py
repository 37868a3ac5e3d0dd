"""A daemon between a job manager and a server, both of which are ours: the commands sent against those delivered."""

from __future__ import annotations

import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.forwarding import SLACK_S, Explanation, Forwarding, command, text_of
from cpsim.conformance.segments import ATTEMPTS, send_in_two, try_at_once
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
LONGEST_FRAME_BYTES: Final = 1_500
MANY: Final = 3_000
"""Enough to see, nineteen times in twenty, one in a thousand that is lost."""
MANY_S: Final = 10.0
SPELLINGS: Final = ("1e3", "0x10", "1_000", "true", "1.5", "2.0", "٣", "two")
"""What a library may take for a number, and is no whole number in digits."""
TEXTS: Final = (
    *("007", "1e3", "1_000", "0x10", "1.50", "+5", "-0", "true", "null", "None", "nan", "inf", "٣"),
    *(
        "abc",
        "ABC",
        "Abc",
        "straße",
        "STRASSE",
        "ﬁ",
        "fi",
        "İx",
        "é",
        "e\u0301",
        "\u212b",
        "Å",
        "\uff21\uff22",
        "①",
        "😀",
    ),
    *("a b", "a  b", "a   b", " a", "a ", "a-b", "a_b", "a.b", "a/b", "a//b", "../a", "/a", "a/"),
    *("%2C", "a%20b", "a+b", "%s", "{0}", "$HOME", "&amp;", "<b>", "a&b", "a;b", "#a", "a:b", "[1]", "{}", "*", "?"),
    *("'a'", '"a"', '"', "\\n", "\\u0041", "a\\", "~", "`a`", "|", "@a", "!"),
)
"""What is rewritten by who takes a text for a number, folds, trims, decodes, escapes or normalises it."""


def counted(size: int) -> str:
    """A text of so many bytes in which no part is like another."""
    return "".join(f"{number}." for number in range(size))[:size]


def numerals(seed: int) -> list[str]:
    """Ids that are different, and would be one number."""
    digits = f"{seed % 90_000_000 + 10_000_000}"
    return [
        digits,
        f"00{digits}",
        f"+{digits}",
        f"{digits}.0",
        f"{digits}e0",
        f"{digits[:5]}_{digits[5:]}",
        f"-{digits}",
    ]


@pytest.fixture
def forwarding(cp: Examiner) -> Iterator[Forwarding]:
    """Commands on their way through the daemon."""
    with Forwarding(cp) as forwarding:
        yield forwarding


def see_none_dropped(forwarding: Forwarding, *answers: str) -> None:
    """Check that no batch with one of these answers is lost."""
    for answer in answers:
        forwarding.fail(answer)
        forwarding.send_some()
        forwarding.wait_answered(answer)
        forwarding.drain()
        dropped = Explanation("drop-on-error", forwarding.answered(*answers))
        forwarding.see_each_once(lost=dropped, during=f"a batch was answered {answer}")


def see_applied_once(forwarding: Forwarding, answer: str, quirk: str = "") -> None:
    """Check that a batch whose answer does not come, or comes late, has its effect once."""
    slots = forwarding.open_slots(3)
    forwarding.fail(answer)
    for number, slot in enumerate(slots):
        forwarding.send("counters", slot, **{"job/events": 1 + number})
    forwarding.wait_answered(answer)
    forwarding.drain()
    twice = Explanation(quirk, forwarding.answered(answer)) if quirk else None
    forwarding.see_each_once(twice=twice, during=f"the answer to a batch was {answer}")


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


@clause("FORWARD-16", "3", Need.DAEMON, Need.BEHIND)
def test_whole_frames(cp: Examiner, forwarding: Forwarding) -> None:
    """A frame of any size up to 1,500 bytes arrives whole: every argument, to the last byte."""
    slot, counters = forwarding.open_slots(2)
    for size in (60, 200, 300, 600, 1_020, 1_030, 1_450, 1_470, 1_499, LONGEST_FRAME_BYTES):
        start = f"meta,slot={slot},size={size},text="
        forwarding.send("meta", slot, size=size, text=counted(size - len(start)))
    forwarding.send("meta", slot, **{f"n{number}": counted(5) for number in range(100)})
    forwarding.send("counters", counters, **{f"c{number}": number for number in range(110)})
    forwarding.send("meta", slot, **{counted(1_000): "a long name"})
    forwarding.send("alloc", cp.new() + counted(1_000))
    forwarding.send("claim", slot, machine=cp.new("machine") + counted(900))
    forwarding.send("discard", counters, reason=counted(900))
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-17", "3", Need.DAEMON, Need.BEHIND)
def test_texts(cp: Examiner, forwarding: Forwarding) -> None:
    """Ids, names and values are texts that nobody rewrites: numbers, case, blanks inside, escapes, normal forms."""
    slots = [cp.new(), f" {cp.new()} ", cp.mark + cp.mark.upper()]
    slots += [f"{cp.mark}{'.'.join(TEXTS[place : place + 3])}.x" for place in range(0, len(TEXTS), 3)]
    for slot in slots:
        forwarding.send("alloc", slot, credits=5)
    for place in range(0, len(TEXTS), 8):
        some = TEXTS[place : place + 8]
        forwarding.send("meta", slots[0], **dict.fromkeys(some, "name"), last="x")
        forwarding.send("meta", slots[0], **{f"n{number}": text for number, text in enumerate(some)}, last="x")
        forwarding.send("counters", slots[0], **dict.fromkeys(some, place), last=1)
    for text in ("a b", " a", "007", "ABC", "é", "e\u0301"):
        forwarding.send("claim", cp.new(), machine=f"{text}", credits=1)
        forwarding.send("discard", cp.new(), reason=f"x{text}x")
    for number in numerals(zlib.crc32(cp.mark.encode())):
        forwarding.send("alloc", number)
        forwarding.send("counters", number, **{number: 1})
        forwarding.send("claim", number, machine=number)
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-18", "3", Need.DAEMON, Need.BEHIND)
def test_what_is_no_part_of_a_command(cp: Examiner, forwarding: Forwarding) -> None:
    """White space around a frame, the case of its command and the order of its arguments change nothing."""
    for start, end in (("", "\n"), ("", "\r\n"), ("  ", "  \n"), ("\t ", " \t"), ("", "\n\n")):
        slot = cp.new()
        forwarding.send_as(f"{start}alloc,slot={slot},min=1,max=9{end}", "alloc", slot, min=1, max=9)
        forwarding.send_as(f"{start}META,text=A b,slot={slot}{end}", "meta", slot, text="A b")
        forwarding.send_as(f"{start}Counters,n=2,slot={slot},N=3{end}", "counters", slot, n=2, N=3)
        machine = cp.new("machine")
        forwarding.send_as(f"{start}cLAIM,machine={machine},slot={slot}{end}", "claim", slot, machine=machine)
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-19", "3", Need.DAEMON, Need.BEHIND)
def test_numbers(cp: Examiner, forwarding: Forwarding) -> None:
    """Numbers arrive to the last digit; what is no number, and acknowledged, does not become one."""
    slot = cp.new()
    forwarding.send("alloc", slot, min=0, max=2**63 - 1, expire=525_600)
    for number in (0, 2**31 - 1, 2**31, 2**32 + 1, 2**53 + 1, 10**18 + 1, 2**63 - 1):
        forwarding.send("counters", slot, low=-number, high=number)
        forwarding.send("meta", slot, text=number)
        forwarding.send("alloc", cp.new(), credits=number)
    for spelling in SPELLINGS:
        for kind, argument in (("alloc", "credits"), ("counters", "n"), ("claim", "credits")):
            machine = {"machine": cp.new("machine")} if kind == "claim" else {}
            forwarding.offer(kind, cp.new(), **machine, **{argument: spelling})
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-20", "3", Need.DAEMON, Need.BEHIND)
def test_equal_commands(cp: Examiner, forwarding: Forwarding) -> None:
    """Commands that are equal, could be added up or cancel one another all arrive, each by itself."""
    slot, other = forwarding.open_slots(2)
    forwarding.refuse()  # so that they leave together
    cancelled = cp.new()
    forwarding.send("alloc", cancelled)
    forwarding.send("discard", cancelled)
    for number in (1, 1, 1, 2, -1, 0):
        forwarding.send("counters", slot, **{"job/events": number})
        forwarding.send("counters", other, **{"job/events": number, "job/success": 1})
    for text in ("a", "a", "b", "a"):
        forwarding.send("meta", slot, site=text)
        forwarding.send("meta", slot, **{f"site-{text}": text})
    for name in (slot, slot, other, cp.new()):
        forwarding.send("alloc", name)
    for name in (slot, slot, other):
        forwarding.send("discard", name)
    forwarding.send("claim", slot, machine="m")
    forwarding.send("claim", slot, machine="m")
    forwarding.upstream.serve_normally()
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-21", "3", Need.DAEMON, Need.BEHIND)
def test_order_of_a_kind(forwarding: Forwarding) -> None:
    """The commands of a slot that are of one kind take effect in the order in which they came, after an error too."""
    slots = forwarding.open_slots(2)
    for answer in ("ok", "503"):
        forwarding.refuse()  # so that they leave together
        for number in range(12):
            for slot in slots:
                forwarding.send("meta", slot, text=f"{answer} {number * 7 % 12}")
        forwarding.fail(answer)
        forwarding.upstream.start()
        for slot in slots:
            forwarding.send("meta", slot, text=f"{answer} then")
        forwarding.wait_for_all()
        forwarding.drain()
    for slot in slots:
        forwarding.see_order(slot)


@clause("FORWARD-22", "3", Need.DAEMON, Need.BEHIND, quirks=["single-read"])
def test_segments(cp: Examiner, forwarding: Forwarding) -> None:
    """A frame that comes in two segments arrives as one command."""
    for begins in ("al", "alloc,slot", "alloc,slot={},credits"):
        slot = cp.new()
        first = begins.format(slot)
        rest = f"alloc,slot={slot},credits=123456789\n".removeprefix(first)
        reply = try_at_once("OK", partial(send_in_two, cp, first, rest))
        cp.check("answer", "OK", reply, Known("single-read", "ER"))
        forwarding.acknowledged(command("alloc", slot, {"credits": 123456789}))
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-23", "3", Need.DAEMON, Need.BEHIND, quirks=["cut-values", "single-read"])
def test_malformed_frames_are_not_delivered(cp: Examiner, forwarding: Forwarding) -> None:
    """Of a frame that is malformed or too long, no part arrives."""
    for kind in ("allot", "counter", "slots", ""):
        cp.send(f"{kind},slot={cp.new()},n=1\n", "ER")
    cp.send(f"claim,slot={cp.new()}\n", "ER")
    cut, long = cp.new(), cp.new() + counted(1_600)
    for frame in (f"alloc,slot={cut}=b\n", f"alloc,slot={long}\n"):
        with cp.connect() as connection:
            connection.send(frame.encode())
            connection.reply()
    forwarding.may_come(command("alloc", f"{cut}=b", {}))
    forwarding.may_come(command("alloc", long, {}))
    forwarding.drain()
    read = long[: LONGEST_FRAME_BYTES - len("alloc,slot=")]
    seen = forwarding.strangers()
    known = {text_of("alloc", cut): "cut-values", text_of("alloc", read): "single-read"}
    quirk = next((known[each] for each in seen if each in known), "") if set(seen) <= known.keys() else ""
    cp.check("what arrived of them", [], seen, *([Known(quirk, seen)] if quirk else []))
    forwarding.see_each_once()


@clause("FORWARD-24", "3", Need.DAEMON, Need.BEHIND)
def test_clients_that_leave(cp: Examiner, forwarding: Forwarding) -> None:
    """A client that leaves early, with its reply unread, harms no other; one that ends its side is served."""
    for number in range(6):
        early = command("alloc", cp.new(), {"credits": 123456789})
        forwarding.may_come(early)
        with cp.connect() as connection:
            connection.send(f"{early}\n".encode() if number % 2 else str(early).encode())
            if number > 3:
                connection.reset()
        with cp.connect() as connection:
            made = command("alloc", cp.new(), {"min": 1, "max": 10})
            connection.send(made.frame.encode())
            connection.end()
            cp.check("answer", "OK", connection.reply())
            forwarding.acknowledged(made)
        cp.connect().close()
        forwarding.send("alloc", cp.new())
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-25", "3", Need.DAEMON, Need.BEHIND, level=Level.SHOULD)
def test_what_a_client_that_leaves_has_sent(cp: Examiner, forwarding: Forwarding) -> None:
    """The command of a client that does not wait for its reply arrives all the same."""
    for _ in range(5):
        made = command("alloc", cp.new(), {"credits": 5})
        with cp.connect() as connection:
            connection.send(f"{made}\n".encode())
        forwarding.acknowledged(made)
    forwarding.drain()
    forwarding.see_each_once()


@clause("FORWARD-26", "4", Need.DAEMON, Need.BEHIND, quirks=["drop-on-error"])
def test_a_server_that_does_not_know_the_project(forwarding: Forwarding) -> None:
    """A batch that is answered 401 or 404 is not lost: the server may be set right."""
    see_none_dropped(forwarding, "401", "404")


@clause("FORWARD-27", "4", Need.DAEMON, Need.BEHIND, level=Level.SHOULD, quirks=["drop-on-error"])
def test_a_batch_that_is_refused(forwarding: Forwarding) -> None:
    """A batch of several commands that is answered 400 is not lost as a whole."""
    forwarding.open_slots(1)
    forwarding.refuse()
    forwarding.send_some()
    forwarding.fail("400")
    forwarding.upstream.start()
    forwarding.wait_answered("400")
    forwarding.drain()
    dropped = Explanation("drop-on-error", forwarding.answered("400"))
    forwarding.see_each_once(lost=dropped, during="a batch was answered 400")


@clause("FORWARD-28", "4", Need.DAEMON, Need.BEHIND)
def test_a_late_reply(forwarding: Forwarding) -> None:
    """A batch whose reply takes some seconds is applied once, and what comes after it arrives."""
    see_applied_once(forwarding, "late")


@clause("FORWARD-29", "3", Need.DAEMON, Need.BEHIND)
def test_thousands(cp: Examiner, forwarding: Forwarding) -> None:
    """Of thousands of commands of every kind, none is lost, repeated, or mixed up with another."""
    slots = forwarding.open_slots(20)
    made = []
    for number in range(MANY):
        kind = ("counters", "alloc", "counters", "meta", "counters")[number % 5]
        arguments = {"n": number} if kind != "alloc" else {"min": number, "max": 2 * number}
        slot = cp.new() if kind == "alloc" else slots[number % len(slots)]
        made.append(command(kind, slot, arguments))
    half = len(made) // 2
    sent = forwarding.send_for(MANY_S, made[:half])
    forwarding.drain()
    forwarding.see_each_once()
    forwarding.see_none_repeated()
    forwarding.refuse()  # so that they leave together
    sent += forwarding.send_for(MANY_S, made[half:])
    forwarding.upstream.serve_normally()
    forwarding.drain()
    cp.measure("commands of which none may be lost", f"{sent:,}")
    forwarding.see_each_once()
