"""The progress of a replay."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """The progress of a replay: seconds since its start, and operations by outcome."""

    elapsed_s: float
    accepted: int
    refused: int
    unknown: int
