"""The engine's interface to a transport: a wire sends and reads without blocking."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol

from cpdaemon.errors import NotSent
from cpsim.evidence.journal import OperationOutcome

if TYPE_CHECKING:
    from _socket import socket as RawSocket  # noqa: N812 - a class, of which `socket.socket` is a subclass

Answer = tuple[OperationOutcome, str]
"""The outcome of an operation, and the error; empty if it was accepted."""

ACCEPTED: Final[Answer] = (OperationOutcome.ACCEPTED, "")
READ_BYTES: Final = 65_536
TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
TOTAL_RETRANSMISSIONS: Final = 100
"""Offset of `tcpi_total_retrans`, a 32-bit number, in Linux's `struct tcp_info`."""


class BacklogFull(NotSent):
    """The target's queue of connections is full; the operation may be retried."""


class Wire(Protocol):
    """A transport to an endpoint."""

    @property
    def dropped(self) -> int:
        """Connections whose first request for one was lost, usually because the target's queue was full.

        Only Linux tells.
        """

    def send(self, payload: bytes) -> int:
        """Send an operation; returns the descriptor of its answer. Raises NotSent."""

    def poll(self, patience_s: float) -> list[int]:
        """Readable descriptors, after at most `patience_s` seconds."""

    def receive(self, fd: int) -> Answer | None:
        """Read from a descriptor: the operation's answer, or None if it is incomplete."""

    def abandon(self, fd: int) -> bool:
        """Close a connection and drop its operation; returns whether nothing of the operation was sent."""

    def close(self) -> None:
        """Close all connections."""


def was_dropped(sock: RawSocket) -> bool:
    """Return whether a TCP connection was requested more than once, as far as the system tells."""
    if TCP_INFO is None or sock.family == socket.AF_UNIX:
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TOTAL_RETRANSMISSIONS + 4)
    return len(info) >= TOTAL_RETRANSMISSIONS + 4 and struct.unpack_from("I", info, TOTAL_RETRANSMISSIONS)[0] > 0
