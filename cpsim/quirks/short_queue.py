"""The listen queue is 5, from which one client is accepted at a time: of many at once, some are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cpsim.quirks.policies.reading import ReadingPolicy

BACKLOG: Final = 5
TURN_S: Final = 0.0005
"""In production, the daemon answers some 2,000 commands a second."""


def reading(reading: ReadingPolicy) -> ReadingPolicy:
    """Return how the listener reads with it."""
    return replace(reading, backlog=BACKLOG, accepts=1, turn_s=TURN_S)
