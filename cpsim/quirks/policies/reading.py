"""What quirks of the daemon replace in how it reads frames; the defaults are the protocol's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import REQUIRED
from cpdaemon.wire import MAX_FRAME_BYTES, MalformedFrame, parse
from cpsim.net.listen import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = tuple[str, dict[str, str]]

READ_BYTES: Final = 2 * MAX_FRAME_BYTES
ACCEPTS_A_TURN: Final = 256


@dataclass(frozen=True)
class ReadingPolicy:
    """How a listener reads frames.

    Attributes:
        cuts: whether a value ends at a second `=`, and an argument without one closes the connection unanswered.
        repeats: whether a name may be given twice; the last counts.
        passes: whether control characters, empty names and empty values pass.
        once: whether a frame is what one read brings.
        read_bytes: the most bytes of one read.
        answers_silence: whether a client that closes without a frame is answered ER.
        backlog: length of the listen queue.
        accepts: the most clients accepted from it in one turn.
        turn_s: seconds that a turn of the loop takes at least.
    """

    cuts: bool = False
    repeats: bool = False
    passes: bool = False
    once: bool = False
    read_bytes: int = READ_BYTES
    answers_silence: bool = False
    backlog: int = BACKLOG
    accepts: int = ACCEPTS_A_TURN
    turn_s: float = 0.0

    def parser(self) -> Callable[[bytes], Call]:
        """Return the function that parses a frame, or raises MalformedFrame."""
        return partial(parse_loosely, self) if self.cuts or self.repeats or self.passes else parse

    def hangs_up(self, frame: bytes) -> bool:
        """Return whether a refused frame closes the connection unanswered."""
        return self.cuts and any(b"=" not in pair for pair in frame.split(b",")[1:])


DOCUMENTED: Final = ReadingPolicy()


def parse_loosely(reading: ReadingPolicy, frame: bytes) -> Call:
    """Parse a frame that may have what `reading` lets pass; raises MalformedFrame."""
    frame = frame.strip()
    try:
        kind, *pairs = frame.decode().split(",")
    except UnicodeDecodeError:
        raise MalformedFrame("the frame is not UTF-8") from None
    kind, arguments = kind.lower(), dict[str, str]()
    for pair in pairs:
        name, *values = pair.split("=")
        if not values or (len(values) > 1 and not reading.cuts) or (name in arguments and not reading.repeats):
            raise MalformedFrame(f"argument {pair[:80]!r} is malformed")
        arguments[name] = values[0]
    if not arguments.keys() >= {*REQUIRED.get(kind, [""])} or len(frame) > MAX_FRAME_BYTES:
        raise MalformedFrame(f"no command, or too long: {kind[:80]!r}")
    if not reading.passes:
        parse(f"{kind},{','.join(f'{name}={value}' for name, value in arguments.items())}".encode())
    return kind, arguments
