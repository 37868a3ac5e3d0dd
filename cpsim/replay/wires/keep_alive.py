"""The wire to a server: reused HTTP/1.1 connections."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from _socket import socket as RawSocket  # noqa: N812 - a class, as in one_shot.py
from select import POLLIN, poll
from typing import TYPE_CHECKING, Final

import httptools
import msgspec

from cpdaemon.errors import NotSent
from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.wires.poller import Many
from cpsim.replay.wires.wire import ACCEPTED, READ_BYTES, Answer

if TYPE_CHECKING:
    from cpdaemon.endpoint import UrlEndpoint

LENGTH_HEADERS: Final = {b"content-length", b"transfer-encoding"}
"""Headers that delimit a body; without them, the body ends with the connection."""
MAX_BODY_BYTES: Final = 1 << 20
KNOWN_RESPONSES: Final = 256
MESSAGE_CHARACTERS: Final = 300
QUOTED: Final = re.compile(r"'[^']*'")


class KeepAlive:
    """HTTP/1.1 with one reused connection per operation in flight.

    Args:
        endpoint: the server.
        timeout_s: seconds to wait for a connection and its TLS handshake.
    """

    def __init__(self, endpoint: UrlEndpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._poller = Many()
        self.poll = self._poller.poll
        self._connections: dict[int, _HttpConnection] = {}
        self._idle: list[int] = []
        self._known: dict[bytes, Answer] = {}
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
            return OperationOutcome.UNKNOWN, f"reply lost: {error.strerror or error}"
        if connection.at_rest and data in self._known:
            self._idle.append(fd)
            return self._known[data]
        return self._parsed(fd, connection, data)

    def _parsed(self, fd: int, connection: _HttpConnection, data: bytes) -> Answer | None:
        is_first_read = connection.at_rest
        try:
            connection.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abandon(fd)
            return OperationOutcome.UNKNOWN, "garbage reply"
        if not connection.complete:
            if data:
                return None
            self.abandon(fd)
            return OperationOutcome.UNKNOWN, "reply lost: cut short" if connection.body else "reply lost: closed"
        answer = _http_answer(connection.status, bytes(connection.body))
        if connection.keeps_alive:
            if is_first_read:
                self._remember(data, answer)
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

    def _remember(self, response: bytes, answer: Answer) -> None:
        """Cache a response's answer: most responses equal an earlier one byte for byte."""
        if len(self._known) >= KNOWN_RESPONSES:
            self._known.clear()
        self._known[response] = answer

    def _take(self) -> int:
        """A connection ready for a request; skips idle connections that the server has closed."""
        while self._idle:
            fd = self._idle.pop()
            if not self._connections[fd].poll(0):
                return fd
            self.abandon(fd)
        return self._connect()

    def _connect(self) -> int:
        sock: socket.socket | RawSocket | None = None
        try:
            if self._tls is None:
                sock = _connected(self._endpoint.host, self._endpoint.port, self._timeout_s)
            else:
                sock = socket.create_connection((self._endpoint.host, self._endpoint.port), self._timeout_s)
                sock = self._tls.wrap_socket(sock, server_hostname=self._endpoint.host)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(0.0)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise NotSent(f"cannot connect: {error.strerror or error}") from error
        fd = sock.fileno()
        self._connections[fd] = _HttpConnection(sock)
        self._poller.watch(fd)
        return fd


def _connected(host: str, port: int, timeout_s: float) -> RawSocket:
    """A connection to the first of a host's addresses that accepts one. Raises OSError."""
    failure = OSError(f"{host} has no address")
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = RawSocket(int(family), int(socket.SOCK_STREAM), 0)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


class _HttpConnection:
    """A connection and its current response."""

    def __init__(self, sock: socket.socket | RawSocket) -> None:
        self.sock = sock
        watching = poll()
        watching.register(sock.fileno(), POLLIN)
        self.poll = watching.poll
        self._parser = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Reset for the next response."""
        self.body = bytearray()
        self.status = 0
        self.complete = self.keeps_alive = False
        self.at_rest = True
        """Whether no byte of the response has been received."""
        self._measured = self._ends_with_connection = False

    def feed(self, data: bytes) -> None:
        """Parse received bytes; empty bytes are the end of the connection, which may end the response."""
        self.at_rest = False
        if data:
            self._parser.feed_data(data)
        else:
            self.complete = self._ends_with_connection

    def on_header(self, name: bytes, _: bytes) -> None:
        self._measured = self._measured or name.lower() in LENGTH_HEADERS

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
        if self.status >= 200:  # lower ones are interim, such as 100 Continue
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
            return OperationOutcome.REFUSED, f"HTTP {status}: {QUOTED.sub('...', str(message))[:MESSAGE_CHARACTERS]}"
        case _ if 300 <= status < 500:
            return OperationOutcome.REFUSED, f"HTTP {status} with a body that is not the API's"
        case _:
            return OperationOutcome.UNKNOWN, f"HTTP {status} with a body that is not the API's"
