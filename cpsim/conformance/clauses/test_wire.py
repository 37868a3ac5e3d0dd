"""The wire format: frames in, two bytes out, and no more than that."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cpdaemon.wire import MAX_FRAME_BYTES as LONGEST_FRAME_BYTES
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.frames import CLOSED, NO_REPLY
from cpsim.conformance.segments import CUT, send_in_two, try_at_once

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


def padded(start: str, size_bytes: int) -> str:
    """A frame of exactly that size: its last value is made as long as it takes."""
    return start + "x" * (size_bytes - len(start.encode()))


@clause("WIRE-1", "3", Need.DAEMON)
def test_each_command(cp: Examiner) -> None:
    """Each of the five commands is answered OK."""
    slot = cp.new()
    cp.send(f"alloc,slot={slot},min=1,max=10")
    cp.send(f"counters,slot={slot},job/events=1000,job/success=1")
    cp.send(f"meta,slot={slot},site=here")
    cp.send(f"claim,slot={slot},machine={cp.new('machine')},credits=5")
    cp.send(f"discard,slot={cp.new()},reason=lost")


@clause("WIRE-2", "3", Need.DAEMON)
def test_arguments_of_alloc(cp: Examiner) -> None:
    """Alloc needs a slot only, and takes credits, min, max and expire."""
    cp.send(f"alloc,slot={cp.new()}")
    cp.send(f"alloc,slot={cp.new()},credits=5")
    cp.send(f"alloc,slot={cp.new()},min=1")
    cp.send(f"alloc,slot={cp.new()},max=9")
    cp.send(f"alloc,min=1,max=9,expire=60,slot={cp.new()}")


@clause("WIRE-3", "3", Need.DAEMON)
def test_optional_arguments(cp: Examiner) -> None:
    """Claim needs no credits, discard no reason."""
    cp.send(f"claim,slot={cp.new()},machine={cp.new('machine')}")
    cp.send(f"discard,slot={cp.new()}")


@clause("WIRE-4", "3", Need.DAEMON)
def test_newline(cp: Examiner) -> None:
    """A newline at the end changes nothing, whether LF or CRLF."""
    cp.send(f"alloc,slot={cp.new()}\n")
    cp.send(f"alloc,slot={cp.new()}\r\n")
    cp.send(f"claim,slot={cp.new()},machine={cp.new('machine')}\n")


@clause("WIRE-5", "3", Need.DAEMON)
def test_white_space(cp: Examiner) -> None:
    """White space around a frame changes nothing."""
    cp.send(f"  alloc,slot={cp.new()}")
    cp.send(f"alloc,slot={cp.new()}  \n")
    cp.send(f"\t alloc,slot={cp.new()} \t")


@clause("WIRE-6", "3", Need.DAEMON)
def test_case(cp: Examiner) -> None:
    """A command may be written in either case."""
    cp.send(f"ALLOC,slot={cp.new()}")
    cp.send(f"Alloc,slot={cp.new()}")
    cp.send(f"CLAIM,slot={cp.new()},machine={cp.new('machine')}\n")


@clause("WIRE-7", "3", Need.DAEMON)
def test_unknown_command(cp: Examiner) -> None:
    """An unknown command is answered ER."""
    cp.send(f"allot,slot={cp.new()}\n", "ER")
    cp.send(f"allocate,slot={cp.new()}\n", "ER")
    cp.send("hello\n", "ER")
    cp.send(f"slot={cp.new()}\n", "ER")


@clause("WIRE-8", "3", Need.DAEMON, quirks=["control-characters"])
def test_no_slot(cp: Examiner) -> None:
    """A command without a slot, or with an empty one, is answered ER."""
    cp.send("alloc\n", "ER")
    cp.send("alloc,credits=5\n", "ER")
    cp.send("alloc,slot=\n", "ER", Known("control-characters", "OK"))
    cp.send(f"claim,machine={cp.new('machine')}\n", "ER")
    cp.send("counters,job/events=1\n", "ER")
    cp.send("meta,site=here\n", "ER")
    cp.send("discard,reason=lost\n", "ER")


@clause("WIRE-9", "3", Need.DAEMON, quirks=["control-characters"])
def test_no_machine(cp: Examiner) -> None:
    """A claim without a machine, or with an empty one, is answered ER."""
    cp.send(f"claim,slot={cp.new()}\n", "ER")
    cp.send(f"claim,slot={cp.new()},credits=5\n", "ER")
    cp.send(f"claim,slot={cp.new()},machine=\n", "ER", Known("control-characters", "OK"))


@clause("WIRE-10", "3", Need.DAEMON)
def test_two_bytes(cp: Examiner) -> None:
    """A reply is two bytes and no more, and then the daemon closes, though the client does not."""
    for frame, reply in ((f"alloc,slot={cp.new()}\n", "OK"), (f"claim,slot={cp.new()}\n", "ER")):
        with cp.connect() as connection:
            connection.send(frame.encode())
            cp.check("all that comes until the daemon closes", reply, connection.everything())


@clause("WIRE-11", "3", Need.DAEMON)
def test_no_terminator(cp: Examiner) -> None:
    """A frame without a newline is answered while the client waits, and the daemon closes."""
    with cp.connect() as connection:
        connection.send(f"alloc,slot={cp.new()}".encode())
        cp.check("all that comes until the daemon closes", "OK", connection.everything())


@clause("WIRE-12", "3", Need.DAEMON)
def test_half_close(cp: Examiner) -> None:
    """A client that has ended its own side is answered."""
    for frame in (f"alloc,slot={cp.new()}", f"alloc,slot={cp.new()}\n"):
        with cp.connect() as connection:
            connection.send(frame.encode())
            connection.end()
            cp.check("answer", "OK", connection.reply())


@clause("WIRE-13", "3", Need.DAEMON)
def test_sizes(cp: Examiner) -> None:
    """Frames of any size up to 1,500 bytes are answered OK."""
    for size in (100, 500, 1_000, 1_448, 1_499, LONGEST_FRAME_BYTES):
        cp.send(padded(f"meta,slot={cp.new()},text=", size))


@clause("WIRE-14", "3", Need.DAEMON, quirks=["single-read"])
def test_two_segments(cp: Examiner) -> None:
    """A frame that comes in two segments is read whole."""
    for first, second in (("al", f"loc,slot={cp.new()}\n"), ("alloc,slot", f"={cp.new()}\n")):
        got = try_at_once("OK", partial(send_in_two, cp, first, second))
        cp.check("answer", "OK", got, *CUT)


@clause("WIRE-15", "3", Need.DAEMON, quirks=["cut-values"])
def test_no_value(cp: Examiner) -> None:
    """An argument without a "=" is answered ER."""
    cp.send(f"alloc,slot={cp.new()},credits\n", "ER", Known("cut-values", CLOSED))
    cp.send(f"claim,{cp.new()},machine={cp.new('machine')}\n", "ER", Known("cut-values", CLOSED))


@clause("WIRE-16", "3", Need.DAEMON, level=Level.SHOULD, quirks=["cut-values"])
def test_two_values(cp: Examiner) -> None:
    """An argument with two "=" is answered ER, for neither a name nor a value can hold one."""
    cp.send(f"alloc,slot={cp.new()}=b\n", "ER", Known("cut-values", "OK"))


@clause("WIRE-17", "3", Need.DAEMON, level=Level.SHOULD, quirks=["control-characters"])
def test_no_text(cp: Examiner) -> None:
    """A frame that is not text, or holds control characters, is answered ER."""
    cp.send(b"alloc,slot=" + cp.new().encode() + b"\xff\xfe\n", "ER")
    cp.send(f"alloc,slot={cp.new()}\0\x01b\n", "ER", Known("control-characters", "OK"))


@clause("WIRE-18", "3", Need.DAEMON)
def test_nonsense_harms_nobody(cp: Examiner) -> None:
    """Whatever a client sends, and if it sends nothing, the next one is answered."""
    cp.connect().close()
    for nonsense in (b"\n", b"\xff\xfe\xfd", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"," * 2_000, b"x" * 10_000):
        with cp.connect() as connection:
            connection.send(nonsense)
            connection.end()
            connection.reply()
    cp.send(f"alloc,slot={cp.new()}")


@clause("WIRE-19", "3", Need.DAEMON)
def test_client_gone(cp: Examiner) -> None:
    """A client that does not wait for its reply harms nobody."""
    for _ in range(5):
        with cp.connect() as connection:
            connection.send(f"alloc,slot={cp.new()}\n".encode())
    cp.send(f"alloc,slot={cp.new()}")


@clause("WIRE-20", "3", Need.DAEMON)
def test_one_command(cp: Examiner) -> None:
    """A connection is for one command: a second one on it is not answered."""
    with cp.connect() as connection:
        connection.send(f"alloc,slot={cp.new()}\n".encode())
        cp.check("first answer", "OK", connection.reply())
        connection.send(f"alloc,slot={cp.new()}\n".encode())
        cp.check("there is a second answer", expected=False, got=connection.reply() not in {CLOSED, NO_REPLY})


@clause("WIRE-21", "3", Need.DAEMON)
def test_acknowledged_is_not_applied(cp: Examiner) -> None:
    """OK means queued: a command that the server will refuse is answered OK too."""
    cp.send(f"claim,slot={cp.new()},machine={cp.new('machine')}")
    cp.send(f"discard,slot={cp.new()}")
    slot = cp.new()
    cp.send(f"alloc,slot={slot}")
    cp.send(f"alloc,slot={slot}")


@clause("WIRE-22", "3", Need.DAEMON, level=Level.SHOULD)
def test_numbers_are_for_the_server(cp: Examiner) -> None:
    """The server checks numbers: the daemon answers OK to any."""
    cp.send(f"alloc,slot={cp.new()},credits=many")
    cp.send(f"alloc,slot={cp.new()},min=9,max=1")


@clause("WIRE-23", "3", Need.DAEMON)
def test_text_beyond_ascii(cp: Examiner) -> None:
    """Names and values may hold any text: spaces inside, letters of any script."""
    cp.send(f"meta,slot={cp.new()},site=CERN Genève,名=価値")


@clause("WIRE-24", "3", Need.DAEMON)
def test_many_arguments(cp: Examiner) -> None:
    """A command may have as many arguments as fit into a frame."""
    values = ",".join(f"c{number}={number}" for number in range(100))
    cp.send(f"counters,slot={cp.new()},{values}")


@clause("WIRE-25", "3", Need.DAEMON)
def test_a_frame_too_long(cp: Examiner) -> None:
    """A frame over 1,500 bytes is answered or closed upon, and harms nobody."""
    with cp.connect() as connection:
        connection.send(padded(f"meta,slot={cp.new()},text=", 100_000).encode())
        got = connection.reply()
        cp.check(
            "a reply, or the end",
            expected=True,
            got=got in {"OK", "ER", CLOSED} or (got != NO_REPLY and "no more" in got),
        )
    cp.send(f"alloc,slot={cp.new()}")
