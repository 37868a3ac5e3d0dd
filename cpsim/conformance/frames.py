"""Raw connections to a daemon: what is sent, in which pieces, and what comes back, are the caller's."""

from __future__ import annotations

import socket
import struct
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.findings import CannotRun

if TYPE_CHECKING:
    from cpdaemon.endpoint import UnixEndpoint

NO_REPLY: Final = "no reply"
CLOSED: Final = "closed without a reply"
STAYS_OPEN: Final = "the connection stays open"
REPLY_BYTES: Final = 2
MOST_BYTES: Final = 4_096
FIRST_PAUSE_S: Final = 0.001
LONGEST_PAUSE_S: Final = 0.1


def connect(daemon: UnixEndpoint | TcpEndpoint, timeout_s: float) -> socket.socket:
    """Connect to a daemon, again and again while its queue of connections is full.

    Args:
        daemon: where it listens.
        timeout_s: for each step.

    Raises:
        CannotRun: there is no connection to be had.
    """
    try:
        if isinstance(daemon, TcpEndpoint):
            sock = socket.create_connection((daemon.host, daemon.port), timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        try:
            _connect_unix(sock, daemon.path, timeout_s)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        said = error.strerror or str(error)
        raise CannotRun(f"cannot connect to the daemon at {daemon}: {said}") from error
    return sock


def _connect_unix(sock: socket.socket, path: str, timeout_s: float) -> None:
    """Connect, also to a full queue, for which a UNIX socket does not wait by itself; raises OSError."""
    deadline_s, pause_s = SYSTEM_CLOCK.monotonic() + timeout_s, FIRST_PAUSE_S
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if SYSTEM_CLOCK.monotonic() > deadline_s:
                raise
            SYSTEM_CLOCK.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            return


class DaemonConnection(AbstractContextManager["DaemonConnection"]):
    """One connection to a daemon; a context manager that closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes) -> None:
        """Send; a daemon that is gone shows in its reply."""
        with suppress(OSError):  # the reply may have been sent before
            self._sock.sendall(data)

    def end(self) -> None:
        """Say that nothing more will be sent, as nc does at the end of its input."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Have the connection reset when it is closed, where that is possible."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def reply(self) -> str:
        """The first two bytes that come back as text, or what came instead."""
        data, missing = b"", CLOSED
        while len(data) < REPLY_BYTES:
            more = b""
            try:
                more = self._sock.recv(MOST_BYTES)
            except TimeoutError:
                missing = NO_REPLY
            except OSError:
                pass
            if not more:
                return f"{data.decode('latin-1')!r} and no more" if data else missing
            data += more
        return data[:REPLY_BYTES].decode("latin-1")

    def everything(self) -> str:
        """All that comes back until the daemon closes, as text, or what came instead."""
        data = b""
        while len(data) < MOST_BYTES:
            try:
                more = self._sock.recv(MOST_BYTES)
            except TimeoutError:
                return f"{data.decode('latin-1')!r}, and {STAYS_OPEN}" if data else NO_REPLY
            except OSError:
                break
            if not more:
                break
            data += more
        return data.decode("latin-1") if data else CLOSED

    def close(self) -> None:
        """Go away."""
        self._sock.close()

    def __exit__(self, *_: object) -> None:
        self.close()
