"""How operations travel, as the engine sees it: a wire sends without blocking, and reads when there is something."""

from __future__ import annotations

from typing import Final, Protocol

from cpdaemon.errors import NotSent
from cpsim.evidence.journal import Outcome

Answer = tuple[Outcome, str]
"""What became of an operation, and why, unless it was accepted."""

ACCEPTED: Final[Answer] = (Outcome.ACCEPTED, "")
READ_BYTES: Final = 65_536


class BacklogFull(NotSent):
    """The target's queue of connections is full; it may be tried again."""


class Wire(Protocol):
    """What the engine needs of a way to an endpoint."""

    def send(self, payload: bytes) -> int:
        """Begin an operation; returns the descriptor to watch. Raises NotSent."""

    def poll(self, patience_s: float) -> list[int]:
        """Descriptors with something to read, after at most `patience_s` seconds."""

    def receive(self, fd: int) -> Answer | None:
        """Read what has come for an operation: its answer, or None while there is more to come."""

    def abandon(self, fd: int) -> None:
        """Close a connection, with whatever it was doing."""

    def close(self) -> None:
        """Close all connections."""
