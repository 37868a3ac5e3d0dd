"""The wire to a server: reused HTTP/1.1 connections."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
from _socket import socket as RawSocket  # noqa: N812 - a class, as in one_shot.py
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools
import msgspec

from cpdaemon.errors import NotSent
from cpdaemon.transport import reason_of, refuses_certificate, tls_of
from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.wires.poller import Many
from cpsim.replay.wires.wire import ACCEPTED, READ_BYTES, Answer, was_dropped

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

    It connects, and shakes hands for TLS, without waiting: other operations go on meanwhile.

    Args:
        endpoint: the server.
        timeout_s: seconds to wait for each address of a host that has several, to find one that answers.

    Raises:
        OSError, UnicodeError: the host has no address.
        EndpointError: a file for TLS cannot be used.
    """

    def __init__(self, endpoint: UrlEndpoint, timeout_s: float) -> None:
        self._host = endpoint.host
        self._addresses = _resolve(endpoint.host, endpoint.port, timeout_s)
        self.dropped = 0
        self._poller = Many()
        self.poll = self._poller.poll
        self._connections: dict[int, _HttpConnection] = {}
        self._idle: dict[int, None] = {}
        self._has_rested = False
        """Whether connections have become idle since the last look for closed ones."""
        self._opening: dict[int, bytes] = {}
        self._known: dict[bytes, Answer] = {}
        self._tls = tls_of(endpoint)

    def send(self, payload: bytes) -> int:
        """See `Wire`."""
        if self._has_rested:
            self._drop_closed()
        if not self._idle:
            return self._connect(payload)
        fd, _ = self._idle.popitem()
        try:
            self._connections[fd].sock.sendall(payload)
        except OSError as error:
            self.abandon(fd)
            raise NotSent(f"cannot send: {error.strerror or error}") from error
        return fd

    def receive(self, fd: int) -> Answer | None:
        """See `Wire`."""
        connection = self._connections[fd]
        if self._opening and fd in self._opening:
            return self._opened(fd, connection)
        try:
            data = connection.sock.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            self.abandon(fd)
            if refuses_certificate(error):
                return OperationOutcome.REFUSED, f"cannot connect: {reason_of(error)}"
            return OperationOutcome.UNKNOWN, f"reply lost: {error.strerror or error}"
        if connection.at_rest and data in self._known:
            self._rest(fd)
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
            self._rest(fd)
        else:
            self.abandon(fd)
        return answer

    def abandon(self, fd: int) -> bool:
        """See `Wire`."""
        is_unsent = self._opening.pop(fd, None) is not None
        connection = self._connections.pop(fd, None)
        if connection is not None:
            if is_unsent:
                self._pass_over(connection.address)
                self.dropped += not isinstance(connection.sock, ssl.SSLSocket) and was_dropped(connection.sock)
            connection.sock.close()
        self._idle.pop(fd, None)
        return is_unsent

    def close(self) -> None:
        """See `Wire`."""
        for fd in list(self._connections):
            self.abandon(fd)
        self._poller.close()

    def _rest(self, fd: int) -> None:
        self._idle[fd] = None
        self._has_rested = True

    def _drop_closed(self) -> None:
        """Close idle connections that the server has closed: one look for all requests of a turn of the engine.

        Whoever polls is told of those that are closed later.
        """
        self._has_rested = False
        for fd in self._poller.poll(0.0, len(self._connections)):
            if fd in self._idle:
                self.abandon(fd)

    def _remember(self, response: bytes, answer: Answer) -> None:
        """Cache a response's answer: most responses equal an earlier one byte for byte."""
        if len(self._known) >= KNOWN_RESPONSES:
            self._known.clear()
        self._known[response] = answer

    def _connect(self, payload: bytes) -> int:
        """Begin to connect, for a request to be sent as soon as that is done."""
        family, address = self._addresses[0]
        try:
            sock = RawSocket(family, int(socket.SOCK_STREAM), 0)
        except OSError as error:
            raise NotSent(f"cannot connect: {error.strerror}") from error
        sock.settimeout(0.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error_number = sock.connect_ex(address)
        if error_number not in {0, errno.EINPROGRESS}:
            sock.close()
            self._pass_over(address)
            raise NotSent(f"cannot connect: {os.strerror(error_number)}")
        fd = sock.fileno()
        self._connections[fd] = _HttpConnection(sock, address)
        self._opening[fd] = payload
        self._poller.watch(fd, writing=True)
        return fd

    def _pass_over(self, address: Any) -> None:  # noqa: ANN401 - as the family has it
        """Connect to the next address of the host from now on, if connections still went to this one."""
        if self._addresses[0][1] == address:
            self._addresses.rotate(-1)

    def _opened(self, fd: int, connection: _HttpConnection) -> Answer | None:
        """Go on with a connection that is being made; send its request once it is."""
        sock = connection.sock
        if error_number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abandon(fd)
            return OperationOutcome.REFUSED, f"cannot connect: {os.strerror(error_number)}"
        try:
            if self._tls is None:
                self.dropped += was_dropped(sock)
                self._poller.written(fd)
            elif not self._shake_hands(fd, connection, self._tls):
                return None
            connection.sock.sendall(self._opening[fd])
        except OSError as error:
            self.abandon(fd)
            return OperationOutcome.REFUSED, f"cannot connect: {reason_of(error)}"
        del self._opening[fd]
        return None

    def _shake_hands(self, fd: int, connection: _HttpConnection, tls: ssl.SSLContext) -> bool:
        """Begin a handshake, or go on with it; returns whether it is over."""
        sock = connection.sock
        if not isinstance(sock, ssl.SSLSocket):
            self.dropped += was_dropped(sock)
            plain = socket.socket(sock.family, socket.SOCK_STREAM, 0, sock.detach())
            plain.settimeout(0.0)
            sock = tls.wrap_socket(plain, server_hostname=self._host, do_handshake_on_connect=False)
            connection.sock = sock
            self._poller.written(fd)  # once: kqueue knows of nothing to delete the second time
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


def _resolve(host: str, port: int, timeout_s: float) -> deque[tuple[int, Any]]:
    """The families and addresses of a host, the first that accepts a connection before the others. Raises OSError."""
    names = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = deque((int(family), address) for family, _, _, _, address in names)
    for family, address in [*found] if len(found) > 1 else ():
        with socket.socket(family, socket.SOCK_STREAM) as sock, contextlib.suppress(OSError):
            sock.settimeout(timeout_s)
            sock.connect(address)
            break
        found.rotate(-1)
    return found


class _HttpConnection:
    """A connection and its current response."""

    def __init__(self, sock: socket.socket | RawSocket, address: Any) -> None:  # noqa: ANN401 - as the family has it
        self.sock = sock
        self.address = address
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
