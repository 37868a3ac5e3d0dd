"""NUL, tab and newline in a frame pass, and so do empty ids; a client that closes without a frame is answered ER."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.reading import ReadingPolicy


def reading(reading: ReadingPolicy) -> ReadingPolicy:
    """Return how the listener reads with it."""
    return replace(reading, passes=True, answers_silence=True)
