"""What comes in on a socket, in a time for the whole of it: a byte now and then does not make it last."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from cpsim.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    import socket


class Incoming(io.RawIOBase):
    """The bytes of a socket as a raw file; a read raises TimeoutError once the time is over.

    Args:
        sock: the socket, which stays open.
        timeout_s: seconds that all reads may take together, since this was made or `restart` was called.
        pace: bytes for which there is one second more; 0 for none.
    """

    def __init__(self, sock: socket.socket, timeout_s: float, pace: int = 0) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._pace = pace
        self.restart()

    def restart(self) -> None:
        """Begin the time anew."""
        self._end_s = SYSTEM_CLOCK.monotonic() + self._timeout_s

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Read what there is, or wait for it; 0 at the end."""
        left_s = self._end_s - SYSTEM_CLOCK.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)
        try:
            count = self._sock.recv_into(buffer)
        finally:
            self._sock.settimeout(self._timeout_s)  # for what is sent
        if self._pace:
            self._end_s += count / self._pace
        return count
