"""One read of at most 1,500 bytes, whatever has arrived."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpdaemon.wire import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from cpsim.quirks.policies.reading import ReadingPolicy


def reading(reading: ReadingPolicy) -> ReadingPolicy:
    """Return how the listener reads with it."""
    return replace(reading, once=True, read_bytes=MAX_FRAME_BYTES)
