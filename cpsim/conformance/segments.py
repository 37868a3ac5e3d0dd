"""Frames in two segments, of which the second is sent at once, however busy this machine is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.clause import Known
from cpsim.conformance.findings import NotVerifiable
from cpsim.conformance.frames import CLOSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.conformance.examiner import Examiner

BETWEEN_SEGMENTS_S: Final = 0.02
AT_ONCE_S: Final = 0.04
"""A second segment that is sent within this time follows the first at once."""
ATTEMPTS: Final = 50
CUT: Final = (Known("single-read", "ER"), Known("single-read", CLOSED))
"""What comes of a first segment that is read alone; its ER is lost where the second one meets a closed socket."""


def send_in_two(cp: Examiner, first: str, second: str) -> tuple[str, bool]:
    """Send a frame in two segments; returns the answer, and whether the second segment was sent at once."""
    with cp.connect() as connection:
        began_s = SYSTEM_CLOCK.monotonic()
        connection.send(first.encode())
        cp.pause(BETWEEN_SEGMENTS_S)
        connection.send(second.encode())
        at_once = SYSTEM_CLOCK.monotonic() - began_s < AT_ONCE_S
        return connection.reply(), at_once


def try_at_once(expected: object, attempt: Callable[[], tuple[object, bool]]) -> object:
    """What an attempt gives, repeated while this machine is too busy to send the second segment at once.

    Args:
        expected: what is right however late the second segment is.
        attempt: returns what it got, and whether the second segment was sent at once.

    Raises:
        NotVerifiable: no attempt was in time.
    """
    for _ in range(ATTEMPTS):
        got, at_once = attempt()
        if at_once or got == expected:
            return got
    raise NotVerifiable(f"this machine is too busy to send two segments within {AT_ONCE_S:g} s")
