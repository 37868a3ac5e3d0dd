"""The only sockets of this package: one command to a daemon, one request to a server.

One deadline bounds each exchange as a whole, except name resolution. Nothing is ever sent twice: a closed idle
connection is detected before sending, and an error says whether any byte was sent.
"""

import errno
import os
import select
import socket
from time import CLOCK_MONOTONIC, clock_gettime, sleep

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpdaemon.errors import (
    BadReply,
    ConnectFailed,
    ConnectTimeout,
    CreditPiggyError,
    NoSuchSocket,
    NotSent,
    ReplyLost,
    ReplyTimeout,
)

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from cpdaemon.endpoint import Endpoint

__all__ = ["HttpPool", "exchange"]

MAX_LINE_BYTES = 8_192
MAX_HEADER_LINES = 100
MAX_BODY_BYTES = 16 * 1024 * 1024

_REPLY_BYTES = 2
_MAX_PAUSE_S = 0.05
_HEX_DIGITS = b"0123456789abcdefABCDEF"


class Deadline:
    """The end of the time for an exchange.

    A test that freezes time with freezegun or time-machine does not change it: they leave this clock alone.

    Args:
        timeout_s: seconds from now.
    """

    # In a class, not in the module, whose names of functions of `time` freezegun binds anew.
    _now_s = staticmethod(clock_gettime)

    def __init__(self, timeout_s: float) -> None:
        self._end_s = self._now_s(CLOCK_MONOTONIC) + timeout_s

    def left_s(self) -> float:
        """Return the seconds left, more than 0, or raise TimeoutError."""
        left_s = self._end_s - self._now_s(CLOCK_MONOTONIC)
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the timeout passed")
        return left_s


def exchange(endpoint: UnixEndpoint | TcpEndpoint, frame: bytes, timeout_s: float) -> bytes:
    """Send one frame to a daemon on a new connection.

    Returns:
        The reply: two bytes, or more if they arrived together.

    Raises:
        NotSent: the frame was not sent.
        ReplyLost: the frame was sent, at least in part, and less than two bytes came back.
    """
    deadline = Deadline(timeout_s)
    with _connect(endpoint, deadline) as sock:
        _send(sock, frame, endpoint, deadline)
        reply = b""
        while len(reply) < _REPLY_BYTES:
            piece = _receive(sock, endpoint, deadline)
            if not piece:
                raise ReplyLost(f"{endpoint} closed the connection after {len(reply)} bytes of its reply")
            reply += piece
        return reply


class HttpPool:
    """Keep-alive HTTP/1.1 connections to one server, for any number of threads.

    The pool grows to the number of connections in use at once. A forked process opens its own.

    Args:
        endpoint: the server. Its certificate is verified if the URL is https.
        timeout_s: seconds that one request may take, from connecting to the last byte of the reply.
    """

    def __init__(self, endpoint: UrlEndpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        # Its append and pop are atomic: a fork cannot copy a held lock.
        self._idle: list[_HttpConnection] = []
        self._closed = False
        self.on_redirect: Callable[[str], object] = str
        """Called with the place that a reply redirects to."""
        self._tls = None
        if endpoint.scheme == "https":
            import ssl  # noqa: PLC0415 - takes longer to import than the rest of the package

            self._tls = ssl.create_default_context()

    def post(self, path: str, authorization: str, body: bytes, more: str = "") -> tuple[int, bytes]:
        """Send one POST request and wait for its reply.

        Args:
            path: what follows the endpoint's base path.
            authorization: value of the Authorization header.
            body: JSON.
            more: further header lines, each with its CRLF.

        Returns:
            HTTP status, body.

        Raises:
            NotSent: the request was not sent.
            ReplyLost: it was sent, at least in part, and the reply is missing or cut short.
            BadReply: the reply is not HTTP/1.x, or is larger than the limits of this module.
        """
        deadline = Deadline(self._timeout_s)
        connection = self._take() or _HttpConnection(self._endpoint, self._tls, deadline)
        try:
            status, reply, place = connection.post(path, authorization, body, more, deadline)
            if place:
                self.on_redirect(place)
            return status, reply
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()
            if self._closed:
                self.close()

    def close(self) -> None:
        """Close idle connections at once, and busy ones when their replies have come."""
        self._closed = True
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread took the last one
                return

    def _take(self) -> "_HttpConnection | None":
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.fresh():
                return connection
            connection.close()
        return None


class _HttpConnection:
    def __init__(self, endpoint: UrlEndpoint, tls: "ssl.SSLContext | None", deadline: Deadline) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._sock = _connect(endpoint, deadline, tls)
        self._pid = os.getpid()
        self._buffer = bytearray()
        self.reusable = False

    def fresh(self) -> bool:
        """Return whether this process opened the connection, and no data or end has come since the last reply."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return self._pid == os.getpid() and not poll.poll(0)

    def close(self) -> None:
        self._sock.close()

    def post(self, path: str, authorization: str, body: bytes, more: str, deadline: Deadline) -> tuple[int, bytes, str]:
        self.reusable = False
        self._deadline = deadline
        head = (
            f"POST {self._endpoint.path}{path} HTTP/1.1\r\n"
            f"Host: {self._endpoint.authority}\r\n"
            f"Authorization: {authorization}\r\n"
            f"Content-Type: application/json\r\n{more}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        _send(self._sock, head.encode() + body, self._endpoint, deadline)
        status = 100
        while status < 200:  # interim replies, such as 100 Continue
            minor, status = self._status()
            try:
                headers = self._headers()
                reply, is_delimited = self._body(status, headers) if status >= 200 else (b"", True)
            except CreditPiggyError as error:
                error.answered = True
                raise
        options = headers.get("connection", "").lower()
        keep_alive = "close" not in options if minor == 1 else "keep-alive" in options
        self.reusable = keep_alive and is_delimited and not self._buffer
        return status, reply, headers.get("location", "") if 300 <= status < 400 else ""

    def _status(self) -> tuple[int, int]:
        line = self._line()
        version, _, rest = line.partition(b" ")
        code, _, _ = rest.partition(b" ")
        if version not in {b"HTTP/1.0", b"HTTP/1.1"} or not (len(code) == 3 and code.isdigit()):
            error = self._bad(f"a reply that is not HTTP/1: {line[:60]!r}")
            error.answered = False
            raise error
        return int(version[-1:]), int(code)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADER_LINES):
            line = self._line()
            if not line:
                return headers
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise self._bad(f"a malformed header line: {line[:60]!r}")
            name, value = name.lower(), value.strip()
            if name == "content-length" and headers.get(name, value) != value:
                raise self._bad("two different Content-Length headers")
            headers[name] = f"{headers[name]}, {value}" if name == "transfer-encoding" and name in headers else value
        raise self._bad(f"more than {MAX_HEADER_LINES} header lines")

    def _body(self, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
        """Return the body, and whether it ended before the connection did."""
        if status in {204, 304}:
            return b"", True
        if coding := headers.get("transfer-encoding"):
            if coding.lower() != "chunked":
                raise self._bad(f"an unknown Transfer-Encoding: {coding[:60]!r}")
            return self._chunks(), True
        if length := headers.get("content-length"):
            if not (length.isascii() and length.isdigit() and len(length) <= 10):
                raise self._bad(f"a Content-Length that is no number, or too large: {length[:60]!r}")
            return self._exactly(int(length)), True
        while self._fill(at_end=False):
            self._check_size(len(self._buffer))
        return self._cut(len(self._buffer)), False

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = self._line()
            digits = line.partition(b";")[0].strip()
            if not 1 <= len(digits) <= 8 or digits.translate(None, _HEX_DIGITS):
                raise self._bad(f"a chunk without a size: {line[:60]!r}")
            size = int(digits, 16)
            if size == 0:
                self._headers()  # trailers
                return bytes(body)
            self._check_size(len(body) + size)
            body += self._exactly(size)
            if self._line():
                raise self._bad("a chunk longer than its size")

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0 and len(self._buffer) <= MAX_LINE_BYTES:
            self._fill()
        if not 0 <= end <= MAX_LINE_BYTES:
            raise self._bad(f"a line of more than {MAX_LINE_BYTES:,} bytes")
        return self._cut(end + 2)[:-2]

    def _exactly(self, size: int) -> bytes:
        self._check_size(size)
        while len(self._buffer) < size:
            self._fill()
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    def _fill(self, *, at_end: bool = True) -> int:
        """Receive and return the number of bytes: 0 at the end, which raises unless `at_end` is False."""
        piece = _receive(self._sock, self._endpoint, self._deadline)
        if not piece and at_end:
            raise ReplyLost(f"{self._endpoint} closed the connection before the end of its reply")
        self._buffer += piece
        return len(piece)

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise self._bad(f"a body of more than {MAX_BODY_BYTES:,} bytes")

    def _bad(self, what: str) -> BadReply:
        return BadReply(f"{self._endpoint} sent {what}")


def _connect(endpoint: "Endpoint", deadline: Deadline, tls: "ssl.SSLContext | None" = None) -> socket.socket:
    try:
        if isinstance(endpoint, UnixEndpoint):
            return _connect_unix(endpoint.path, deadline)
        sock = _connect_tcp(endpoint.host, endpoint.port, deadline)
        if tls is None:
            return sock
        try:
            sock.settimeout(deadline.left_s())
            return tls.wrap_socket(sock, server_hostname=endpoint.host)
        except BaseException:
            sock.close()
            raise
    except TimeoutError as error:
        raise _with_errno(ConnectTimeout, error, f"no connection to {endpoint} in time") from error
    except FileNotFoundError as error:
        raise _with_errno(NoSuchSocket, error, f"there is no socket {endpoint}: is the daemon running?") from error
    except OSError as error:
        raise _with_errno(ConnectFailed, error, f"cannot connect to {endpoint}: {error.strerror or error}") from error


def _connect_unix(path: str, deadline: Deadline) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    pause_s = 0.001
    try:
        while True:
            sock.settimeout(deadline.left_s())
            try:
                sock.connect(path)
            except BlockingIOError:  # the backlog is full: connect() of a socket with a timeout does not wait
                sleep(min(pause_s, deadline.left_s()))
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


def _connect_tcp(host: str, port: int, deadline: Deadline) -> socket.socket:
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(deadline.left_s())
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _send(sock: socket.socket, data: bytes, endpoint: "Endpoint", deadline: Deadline) -> None:
    sent = 0
    try:
        while sent < len(data):
            sock.settimeout(deadline.left_s())
            sent += sock.send(memoryview(data)[sent:])
    except TimeoutError as error:
        kind = ReplyTimeout if sent else ConnectTimeout
        raise _with_errno(kind, error, f"{endpoint} took {sent} of {len(data)} bytes in time") from error
    except OSError as error:
        lost = ReplyLost if sent else NotSent
        text = f"{endpoint} broke the connection after {sent} of {len(data)} bytes: {error.strerror or error}"
        raise _with_errno(lost, error, text) from error


def _receive(sock: socket.socket, endpoint: "Endpoint", deadline: Deadline) -> bytes:
    try:
        sock.settimeout(deadline.left_s())
        return sock.recv(65_536)
    except TimeoutError as error:
        raise _with_errno(ReplyTimeout, error, f"no reply from {endpoint} in time") from error
    except OSError as error:
        text = f"{endpoint} broke the connection before the end of its reply: {error.strerror or error}"
        raise _with_errno(ReplyLost, error, text) from error


def _with_errno(kind: type[CreditPiggyError], error: OSError, text: str) -> CreditPiggyError:
    """Return an error of this package with the system's errno, which Python's own TimeoutErrors lack."""
    number = error.errno or (errno.ETIMEDOUT if isinstance(error, TimeoutError) else None)
    return kind(number, text) if number else kind(text)
