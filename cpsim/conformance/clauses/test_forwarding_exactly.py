"""What arrives of what was sent to a daemon: to the byte, in order, and whatever its server answers."""

from __future__ import annotations

import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from cpdaemon.wire import MAX_FRAME_BYTES as LONGEST_FRAME_BYTES
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.forwarding import (
    Explanation,
    Forwarding,
    command,
    see_applied_once,
    see_none_dropped,
    text_of,
)
from cpsim.conformance.segments import CUT, send_in_two, try_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.conformance.examiner import Examiner

pytestmark = pytest.mark.xdist_group("the server behind the daemon")

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
        cp.check("answer", "OK", reply, *CUT)
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
