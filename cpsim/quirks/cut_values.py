"""slot=a=b becomes a; an argument without = closes the connection unanswered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.reading import ReadingPolicy


def reading(reading: ReadingPolicy) -> ReadingPolicy:
    """Return how the listener reads with it."""
    return replace(reading, cuts=True)
