"""How far a replay is."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """How far a replay is."""

    elapsed_s: float
    accepted: int
    refused: int
    unknown: int
