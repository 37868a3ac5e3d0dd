"""How an operation travels: one connection per command to a daemon, or kept-alive HTTP to a server.

A wire sends rendered payloads without blocking and reads answers when its poller says that there is something to read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import ssl
import struct
import sys
from _socket import socket as RawSocket  # noqa: N812 - a class, whose checks-and-enums subclass costs microseconds
from typing import TYPE_CHECKING, Final, Protocol

import httptools
import msgspec

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpdaemon.errors import NotSent
from cpsim.errors import Problem
from cpsim.replay.journal import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    Answer = tuple[Outcome, str]

READ_BYTES: Final = 65_536
EVENTS_A_POLL: Final = 256
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
NOT_YET_CONNECTED: Final = {errno.EAGAIN, errno.ENOTCONN}
MEASURES: Final = {b"content-length", b"transfer-encoding"}
"""Headers that say where a body ends; without them, it ends with the connection."""
MAX_BODY_BYTES: Final = 1 << 20
MESSAGE_CHARACTERS: Final = 300
ACCEPTED: Final = (Outcome.ACCEPTED, "")
QUOTED: Final = re.compile(r"'[^']*'")


class BacklogFull(NotSent):
    """The target's queue of connections is full; it may be tried again."""


class Wire(Protocol):
    """What the engine needs of a way to an endpoint."""

    def send(self, payload: bytes) -> int:
        """Begin an operation; returns the descriptor to watch. Raises NotSent."""

    def poll(self, patience_s: float) -> Iterable[int]:
        """Descriptors with something to read, after at most `patience_s` seconds."""

    def receive(self, fd: int) -> Answer | None:
        """Read what has come for an operation: its answer, or None while there is more to come."""

    def abandon(self, fd: int) -> None:
        """Close a connection, with whatever it was doing."""

    def close(self) -> None:
        """Close all connections."""


if sys.platform == "darwin":

    class _Poller:
        """Descriptors to watch for answers; a descriptor that is closed is forgotten."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def watch(self, fd: int, *, writing: bool = False) -> None:
            filter_ = select.KQ_FILTER_WRITE if writing else select.KQ_FILTER_READ
            self._kqueue.control([select.kevent(fd, filter_, select.KQ_EV_ADD)], 0)

        def written(self, fd: int) -> None:
            self._kqueue.control([select.kevent(fd, select.KQ_FILTER_WRITE, select.KQ_EV_DELETE)], 0)
            self.watch(fd)

        def poll(self, patience_s: float) -> list[int]:
            return [event.ident for event in self._kqueue.control(None, EVENTS_A_POLL, patience_s)]

        def close(self) -> None:
            self._kqueue.close()

else:

    class _Poller:
        """Descriptors to watch for answers; a descriptor that is closed is forgotten."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._poll = self._epoll.poll

        def watch(self, fd: int, *, writing: bool = False) -> None:
            self._epoll.register(fd, select.EPOLLOUT if writing else select.EPOLLIN)

        def written(self, fd: int) -> None:
            self._epoll.modify(fd, select.EPOLLIN)

        def poll(self, patience_s: float) -> list[int]:
            return [fd for fd, _ in self._poll(patience_s, EVENTS_A_POLL)]

        def close(self) -> None:
            self._epoll.close()


class OneShot:
    """A connection per command: connect, send the frame, read `OK` or `ER`, close.

    Args:
        endpoint: the daemon.
    """

    def __init__(self, endpoint: UnixEndpoint | TcpEndpoint) -> None:
        self._poller = _Poller()
        self.poll = self._poller.poll
        self._sockets: dict[int, RawSocket] = {}
        self._connecting: dict[int, bytes] = {}
        self._partial: dict[int, bytes] = {}
        self._address: str | tuple[str, int]
        if isinstance(endpoint, UnixEndpoint):
            self._family, self._address = int(socket.AF_UNIX), endpoint.path
            self._resets = False
        else:
            self._family, self._address = _resolve(endpoint.host, endpoint.port)
            self._resets = True

    def reach(self, timeout_s: float) -> None:
        """Connect once, and say nothing. Raises OSError."""
        with socket.socket(self._family) as sock:
            sock.settimeout(timeout_s)
            sock.connect(self._address)

    def send(self, payload: bytes) -> int:
        """See `Wire`."""
        try:
            sock = RawSocket(self._family, socket.SOCK_STREAM, 0)
        except OSError as full:  # no descriptor is left: others will be given back
            raise BacklogFull(f"cannot connect: {full.strerror}") from full
        sock.settimeout(0.0)
        if self._resets:  # a connection closed by a reset leaves no port in TIME_WAIT
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        error = sock.connect_ex(self._address)
        fd = sock.fileno()
        if error in {0, errno.EINPROGRESS}:
            self._begin(sock, fd, payload)
        else:
            sock.close()
            if error == errno.EAGAIN:
                raise BacklogFull("backlog full")
            raise NotSent(f"cannot connect: {os.strerror(error)}")
        self._sockets[fd] = sock
        return fd

    def _begin(self, sock: RawSocket, fd: int, payload: bytes) -> None:
        """The connection is being made; on loopback it usually is by now."""
        try:
            sock.send(payload)
        except OSError as error:
            if error.errno not in NOT_YET_CONNECTED:
                sock.close()
                raise NotSent(f"cannot connect: {error.strerror}") from error
            self._connecting[fd] = payload
            self._poller.watch(fd, writing=True)
        else:
            self._poller.watch(fd)

    def receive(self, fd: int) -> Answer | None:
        """See `Wire`."""
        sock = self._sockets[fd]
        if fd in self._connecting:
            return self._connected(sock, fd)
        try:
            data = sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._ended(fd, (Outcome.UNKNOWN, f"reply lost: {error.strerror}"))
        if data == b"OK" and fd not in self._partial:
            del self._sockets[fd]
            sock.close()
            return ACCEPTED
        reply = self._partial.pop(fd, b"") + data
        if data and reply in {b"O", b"E"}:
            self._partial[fd] = reply
            return None
        return self._ended(fd, _daemon_answer(reply))

    def abandon(self, fd: int) -> None:
        """See `Wire`."""
        self._connecting.pop(fd, None)
        self._partial.pop(fd, None)
        sock = self._sockets.pop(fd, None)
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """See `Wire`."""
        for fd in list(self._sockets):
            self.abandon(fd)
        self._poller.close()

    def _connected(self, sock: RawSocket, fd: int) -> Answer | None:
        payload = self._connecting.pop(fd)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return self._ended(fd, (Outcome.REFUSED, f"cannot connect: {os.strerror(error)}"))
        try:
            sock.send(payload)
        except OSError as broken:
            return self._ended(fd, (Outcome.REFUSED, f"cannot connect: {broken.strerror}"))
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
            return Outcome.REFUSED, "ER"
        case b"":
            return Outcome.UNKNOWN, "reply lost: closed without an answer"
        case _:
            return Outcome.UNKNOWN, "garbage reply"


class KeepAlive:
    """HTTP/1.1 with as many connections as operations are in flight, each used again and again.

    Args:
        endpoint: the server.
        timeout_s: how long connecting and the TLS handshake may take.
    """

    def __init__(self, endpoint: UrlEndpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._poller = _Poller()
        self.poll = self._poller.poll
        self._connections: dict[int, _HttpConnection] = {}
        self._idle: list[int] = []
        self._tls = ssl.create_default_context() if endpoint.scheme == "https" else None

    def send(self, payload: bytes) -> int:
        """See `Wire`."""
        fd = self._take()
        try:
            self._connections[fd].sock.sendall(payload)
        except OSError as error:
            self.abandon(fd)
            raise NotSent(f"cannot send: {error.strerror or error}") from error
        return fd

    def receive(self, fd: int) -> Answer | None:
        """See `Wire`."""
        connection = self._connections[fd]
        try:
            data = connection.sock.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            self.abandon(fd)
            return Outcome.UNKNOWN, f"reply lost: {error.strerror or error}"
        try:
            connection.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abandon(fd)
            return Outcome.UNKNOWN, "garbage reply"
        if not connection.complete:
            if data:
                return None
            self.abandon(fd)
            return Outcome.UNKNOWN, "reply lost: cut short" if connection.body else "reply lost: closed"
        answer = _http_answer(connection.status, bytes(connection.body))
        if connection.keeps_alive:
            connection.begin()
            self._idle.append(fd)
        else:
            self.abandon(fd)
        return answer

    def abandon(self, fd: int) -> None:
        """See `Wire`."""
        connection = self._connections.pop(fd, None)
        if connection is not None:
            connection.sock.close()
        with contextlib.suppress(ValueError):
            self._idle.remove(fd)

    def close(self) -> None:
        """See `Wire`."""
        for fd in list(self._connections):
            self.abandon(fd)
        self._poller.close()

    def _take(self) -> int:
        """A connection ready for a request; one that the server has closed meanwhile is not used again."""
        while self._idle:
            fd = self._idle.pop()
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(0):
                return fd
            self.abandon(fd)
        return self._connect()

    def _connect(self) -> int:
        sock = None
        try:
            sock = socket.create_connection((self._endpoint.host, self._endpoint.port), self._timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._endpoint.host)
            sock.settimeout(0.0)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise NotSent(f"cannot connect: {error.strerror or error}") from error
        fd = sock.fileno()
        self._connections[fd] = _HttpConnection(sock)
        self._poller.watch(fd)
        return fd


class _HttpConnection:
    """One connection and the response being read from it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.begin()

    def begin(self) -> None:
        """Be ready for the next response."""
        self.body = bytearray()
        self.status = 0
        self.complete = self.keeps_alive = False
        self._measured = self._ends_with_connection = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take what was received; nothing is the end of the connection, and may be that of the response."""
        if data:
            self._parser.feed_data(data)
        else:
            self.complete = self._ends_with_connection

    def on_header(self, name: bytes, _: bytes) -> None:
        self._measured = self._measured or name.lower() in MEASURES

    def on_message_begin(self) -> None:
        self._measured = False

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._ends_with_connection = not self._measured

    def on_body(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > MAX_BODY_BYTES:
            raise OverflowError

    def on_message_complete(self) -> None:
        if self.status >= 200:  # else it is interim, such as 100 Continue
            self.complete = True
            self.keeps_alive = self._parser.should_keep_alive()


def _http_answer(status: int, body: bytes) -> Answer:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = None
    match document:
        case {"result": "ok"} if status == 200:
            return ACCEPTED
        case {"result": "error", "message": message} if status <= 500:
            return Outcome.REFUSED, f"HTTP {status}: {QUOTED.sub('...', str(message))[:MESSAGE_CHARACTERS]}"
        case _ if 300 <= status < 500:
            return Outcome.REFUSED, f"HTTP {status} with a body that is not the API's"
        case _:
            return Outcome.UNKNOWN, f"HTTP {status} with a body that is not the API's"


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return int(family), (str(address[0]), int(address[1]))


def open_wire(endpoint: UnixEndpoint | TcpEndpoint | UrlEndpoint, timeout_s: float) -> Wire:
    """The wire to an endpoint that can be reached.

    Raises:
        Problem: nobody answers there.
    """
    try:
        if isinstance(endpoint, UrlEndpoint):
            socket.create_connection((endpoint.host, endpoint.port), timeout_s).close()
            return KeepAlive(endpoint, timeout_s)
        wire = OneShot(endpoint)
        wire.reach(timeout_s)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one of a host
        said = error.strerror if isinstance(error, OSError) else None
        raise Problem(f"cannot reach {endpoint}: {said or error}; is it running there?") from error
    return wire
