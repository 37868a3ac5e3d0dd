"""The wire to a daemon: a connection per command."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from _socket import socket as RawSocket  # noqa: N812 - a class, whose checks-and-enums subclass costs microseconds
from itertools import cycle
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint
from cpdaemon.errors import NotSent
from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.wires.poller import FEW, Few, Many
from cpsim.replay.wires.wire import ACCEPTED, READ_BYTES, Answer, BacklogFull, was_dropped

if TYPE_CHECKING:
    from collections.abc import Iterator

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
NOT_YET_CONNECTED: Final = {errno.EAGAIN, errno.ENOTCONN}
FULL: Final = {errno.EAGAIN: "backlog full", errno.EADDRNOTAVAIL: "cannot connect: no port is free here"}
NONBLOCKING: Final[int] = getattr(socket, "SOCK_NONBLOCK", 0)
"""Flag of a non-blocking socket, if the system has one."""
STREAM: Final = int(socket.SOCK_STREAM) | NONBLOCKING
SOURCES: Final = 16
"""Loopback addresses to connect from, each with its own ports, used when the first has none left."""
PORT_WHEN_CONNECTED: Final[int] = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
"""Defers the choice of a port to connect, which needs it unique per destination only."""


class OneShot:
    """A connection per command: connect, send the frame, read `OK` or `ER`, close.

    Args:
        endpoint: the daemon.
        in_flight: expected commands in flight.
        shared: the wire to another daemon whose poller this one shares.
    """

    def __init__(self, endpoint: UnixEndpoint | TcpEndpoint, in_flight: int, shared: OneShot | None = None) -> None:
        if shared is None:
            self._sockets: dict[int, RawSocket] = {}
            self._connecting: dict[int, bytes] = {}
            self._poller: Few | Many = Few(self._sockets, self._connecting) if in_flight <= FEW else Many()
        else:
            self._sockets, self._connecting = shared._sockets, shared._connecting  # noqa: SLF001 - of its own class
            self._poller = shared._poller  # noqa: SLF001
        self.dropped = 0
        self.poll = self._poller.poll
        self._watch = self._poller.watch
        self._forget = self._poller.forget
        self._partial: dict[int, bytes] = {}
        self._address: str | tuple[str, int]
        self._source: tuple[str, int] | None = None
        self._sources: Iterator[tuple[str, int]] | None = None
        if isinstance(endpoint, UnixEndpoint):
            self._family, self._address = int(socket.AF_UNIX), endpoint.path
            self._resets = False
        else:
            self._family, self._address = _resolve(endpoint.host, endpoint.port)
            self._resets = True
            if sys.platform == "linux" and self._address[0].startswith("127."):  # where all of 127.0.0.0/8 is loopback
                self._sources = cycle((f"127.0.0.{number}", 0) for number in range(2, 2 + SOURCES))

    def reach(self, timeout_s: float) -> None:
        """Connect once, and send nothing. Raises OSError."""
        with socket.socket(self._family) as sock:
            sock.settimeout(timeout_s)
            sock.connect(self._address)

    def send(self, payload: bytes) -> int:
        """See `Wire`."""
        try:
            sock = RawSocket(self._family, STREAM, 0)
        except OSError as full:  # no descriptor is free: others will be closed
            raise BacklogFull(f"cannot connect: {full.strerror}") from full
        if not NONBLOCKING:
            sock.settimeout(0.0)
        if self._resets:  # a connection closed by a reset leaves no port in TIME_WAIT
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            if self._source is not None:
                sock.setsockopt(socket.IPPROTO_IP, PORT_WHEN_CONNECTED, 1)
                sock.bind(self._source)
        error = sock.connect_ex(self._address)
        if error and error != errno.EINPROGRESS:
            sock.close()
            if error == errno.EADDRNOTAVAIL and self._sources is not None:
                self._source = next(self._sources)
            if error in FULL:
                raise BacklogFull(FULL[error])
            raise NotSent(f"cannot connect: {os.strerror(error)}")
        fd = sock.fileno()
        try:
            sock.send(payload)  # usually, the connection is established by now
        except OSError as broken:
            if broken.errno not in NOT_YET_CONNECTED:
                sock.close()
                raise NotSent(f"cannot connect: {broken.strerror}") from broken
            self._connecting[fd] = payload
            self._watch(fd, writing=True)
        else:
            self._watch(fd)
        self._sockets[fd] = sock
        return fd

    def receive(self, fd: int) -> Answer | None:
        """See `Wire`."""
        sock = self._sockets[fd]
        if self._connecting and fd in self._connecting:
            return self._connected(sock, fd)
        try:
            data = sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._ended(fd, (OperationOutcome.UNKNOWN, f"reply lost: {error.strerror}"))
        if data == b"OK" and fd not in self._partial:
            del self._sockets[fd]
            self._forget(fd)
            sock.close()
            return ACCEPTED
        reply = self._partial.pop(fd, b"") + data
        if data and reply in {b"O", b"E"}:
            self._partial[fd] = reply
            return None
        return self._ended(fd, _daemon_answer(reply))

    def abandon(self, fd: int) -> bool:
        """See `Wire`."""
        is_unsent = self._connecting.pop(fd, None) is not None
        self._partial.pop(fd, None)
        sock = self._sockets.pop(fd, None)
        if sock is not None:
            self.dropped += is_unsent and was_dropped(sock)
            self._forget(fd)
            sock.close()
        return is_unsent

    def close(self) -> None:
        """See `Wire`."""
        for fd in list(self._sockets):
            self.abandon(fd)
        self._poller.close()

    def _connected(self, sock: RawSocket, fd: int) -> Answer | None:
        payload = self._connecting.pop(fd)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return self._ended(fd, (OperationOutcome.REFUSED, f"cannot connect: {os.strerror(error)}"))
        self.dropped += was_dropped(sock)
        try:
            sock.send(payload)
        except OSError as broken:
            return self._ended(fd, (OperationOutcome.REFUSED, f"cannot connect: {broken.strerror}"))
        self._poller.written(fd)
        return None

    def _ended(self, fd: int, answer: Answer) -> Answer:
        self.abandon(fd)
        return answer


def _daemon_answer(reply: bytes) -> Answer:
    match reply:
        case b"OK":
            return ACCEPTED
        case b"ER":
            return OperationOutcome.REFUSED, "ER"
        case b"":
            return OperationOutcome.UNKNOWN, "reply lost: closed without an answer"
        case _:
            return OperationOutcome.UNKNOWN, "garbage reply"


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return int(family), (str(address[0]), int(address[1]))
