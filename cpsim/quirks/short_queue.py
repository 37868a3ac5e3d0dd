"""The listen queue is 5, from which one client is accepted at a time: of many at once, some are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cpsim.quirks.policies.reading import ReadingPolicy

BACKLOG: Final = 5


def reading(reading: ReadingPolicy) -> ReadingPolicy:
    """Return how the listener reads with it."""
    return replace(reading, backlog=BACKLOG, accepts=1)
