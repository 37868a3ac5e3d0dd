"""The engine's interface to a transport: a wire sends and reads without blocking."""

from __future__ import annotations

from typing import Final, Protocol

from cpdaemon.errors import NotSent
from cpsim.evidence.journal import OperationOutcome

Answer = tuple[OperationOutcome, str]
"""The outcome of an operation, and the error; empty if it was accepted."""

ACCEPTED: Final[Answer] = (OperationOutcome.ACCEPTED, "")
READ_BYTES: Final = 65_536


class BacklogFull(NotSent):
    """The target's queue of connections is full; the operation may be retried."""


class Wire(Protocol):
    """A transport to an endpoint."""

    def send(self, payload: bytes) -> int:
        """Send an operation; returns the descriptor of its answer. Raises NotSent."""

    def poll(self, patience_s: float) -> list[int]:
        """Readable descriptors, after at most `patience_s` seconds."""

    def receive(self, fd: int) -> Answer | None:
        """Read from a descriptor: the operation's answer, or None if it is incomplete."""

    def abandon(self, fd: int) -> None:
        """Close a connection and drop its operation."""

    def close(self) -> None:
        """Close all connections."""
