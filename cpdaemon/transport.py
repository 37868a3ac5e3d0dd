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
    ConnectFailed,
    ConnectTimeout,
    CreditPiggyError,
    NoSuchSocket,
    NotSent,
    ReplyLost,
    ReplyTimeout,
)
from cpdaemon.http import ReplyParser, request

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from cpdaemon.endpoint import Endpoint

__all__ = ["HttpPool", "exchange"]

_REPLY_BYTES = 2
MAX_PAUSE_S = 0.05
_LATE_S = 0.001
"""Seconds by which an operation may exceed a deadline: to set a socket's timeout anew is a system call."""
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}
"""OpenSSL's names for a reply that is none of TLS."""
_CERTIFICATE_ALERTS = {
    *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE"),
    *("SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
}
"""Its names for what a server says of a client's certificate."""


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

    def bound(self, sock: socket.socket) -> None:
        """Have a socket's next operation end with the time that is left, or raise TimeoutError."""
        left_s = self.left_s()
        if not left_s <= (sock.gettimeout() or 0) <= left_s + _LATE_S:
            sock.settimeout(left_s)


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
        self._tls = tls_of(endpoint)

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
            BadReply: the reply is not HTTP/1.x, or is larger than the limits of `cpdaemon.http`.
        """
        deadline = Deadline(self._timeout_s)
        connection = self._take() or _HttpConnection(self._endpoint, self._tls, deadline)
        try:
            data = request(self._endpoint, path, authorization, body, more)
            status, reply, place = connection.post(data, deadline)
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

    def renew(self) -> None:
        """Read the files for TLS anew, for further connections.

        Raises:
            EndpointError: one cannot be used; all is as it was.
        """
        self._tls = tls_of(self._endpoint)
        while (connection := self._take()) is not None:
            connection.close()

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
        self._sock = _connect(endpoint, deadline, tls)
        self._pid = os.getpid()
        self.reusable = False

    def fresh(self) -> bool:
        """Return whether this process opened the connection, and no data or end has come since the last reply."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return self._pid == os.getpid() and not poll.poll(0)

    def close(self) -> None:
        self._sock.close()

    def post(self, data: bytes, deadline: Deadline) -> tuple[int, bytes, str]:
        """Send a request; return status, body, and the place that a redirect names."""
        self.reusable = False
        _send(self._sock, data, self._endpoint, deadline)
        parser = ReplyParser(self._endpoint)
        steps = parser.steps()
        try:
            next(steps)
            while True:
                try:
                    piece = _receive(self._sock, self._endpoint, deadline)
                except CreditPiggyError as error:
                    steps.throw(error)
                else:
                    steps.send(piece)
        except StopIteration as end:
            status, reply = end.value
        self.reusable = parser.reusable
        return status, reply, parser.location


def tls_of(endpoint: "Endpoint") -> "ssl.SSLContext | None":
    """Return what verifies the certificate of an https server; None for any other endpoint.

    Raises:
        EndpointError: a file that it needs cannot be used.
    """
    if not isinstance(endpoint, UrlEndpoint) or endpoint.scheme != "https":
        return None
    from cpdaemon.tls import client_context  # noqa: PLC0415 - takes longer to import than the rest of the package

    return client_context(endpoint)


def reason_of(error: Exception) -> str:
    """Return why there is no connection, or none any more: of TLS, without the names that OpenSSL has for it."""
    problem = getattr(error, "verify_message", None)
    if problem:
        return f"certificate verify failed: {problem}"
    if refuses_certificate(error):
        return f"it does not accept the client's certificate: {error}"
    if getattr(error, "reason", None) in _NO_TLS:
        return "it does not speak TLS: is it http:// there?"
    return getattr(error, "strerror", None) or str(error)


def refuses_certificate(error: Exception) -> bool:
    """Return whether a server has ended a handshake because of the client's certificate, so that it applied nothing.

    With TLS 1.3, that comes when the client has sent its request already.
    """
    return getattr(error, "reason", None) in _CERTIFICATE_ALERTS


def unix_socket(path: str) -> "socket.socket | None":
    """Return a socket that is connected and does not block; None if the daemon's backlog is full now.

    Raises:
        OSError: it cannot be connected.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)  # noqa: FBT003
        sock.connect(path)
    except BlockingIOError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def connect_error(error: OSError, endpoint: "Endpoint") -> CreditPiggyError:
    """Return the error of this package for a connection that could not be made."""
    if isinstance(error, TimeoutError):
        return with_errno(ConnectTimeout, error, f"no connection to {endpoint} in time")
    if isinstance(error, FileNotFoundError):
        return with_errno(NoSuchSocket, error, f"there is no socket {endpoint}: is the daemon running?")
    return with_errno(ConnectFailed, error, f"cannot connect to {endpoint}: {reason_of(error)}")


def receive_error(error: OSError, endpoint: "Endpoint") -> CreditPiggyError:
    """Return the error of this package for a reply that did not come."""
    if isinstance(error, TimeoutError):
        return with_errno(ReplyTimeout, error, f"no reply from {endpoint} in time")
    if refuses_certificate(error):
        return connect_error(error, endpoint)
    text = f"{endpoint} broke the connection before the end of its reply: {error.strerror or error}"
    return with_errno(ReplyLost, error, text)


def _connect(endpoint: "Endpoint", deadline: Deadline, tls: "ssl.SSLContext | None" = None) -> socket.socket:
    try:
        if isinstance(endpoint, UnixEndpoint):
            return _connect_unix(endpoint.path, deadline)
        sock = _connect_tcp(endpoint.host, endpoint.port, deadline)
        if tls is None:
            return sock
        try:
            deadline.bound(sock)
            return tls.wrap_socket(sock, server_hostname=endpoint.host)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise connect_error(error, endpoint) from error


def _connect_unix(path: str, deadline: Deadline) -> socket.socket:
    pause_s = 0.001
    while (sock := unix_socket(path)) is None:
        sleep(min(pause_s, deadline.left_s()))
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
    return sock


def _connect_tcp(host: str, port: int, deadline: Deadline) -> socket.socket:
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            deadline.bound(sock)
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
            if sock.gettimeout():
                deadline.bound(sock)
            try:
                sent += sock.send(memoryview(data)[sent:] if sent else data)
            except BlockingIOError:
                sock.settimeout(deadline.left_s())  # from now on it waits
    except TimeoutError as error:
        kind = ReplyTimeout if sent else ConnectTimeout
        raise with_errno(kind, error, f"{endpoint} took {sent} of {len(data)} bytes in time") from error
    except OSError as error:
        lost = ReplyLost if sent else NotSent
        text = f"{endpoint} broke the connection after {sent} of {len(data)} bytes: {error.strerror or error}"
        raise with_errno(lost, error, text) from error


def _receive(sock: socket.socket, endpoint: "Endpoint", deadline: Deadline) -> bytes:
    try:
        deadline.bound(sock)
        return sock.recv(65_536)
    except OSError as error:
        raise receive_error(error, endpoint) from error


def with_errno(kind: type[CreditPiggyError], error: OSError, text: str) -> CreditPiggyError:
    """Return an error of this package with the system's errno, which Python's own TimeoutErrors lack."""
    number = error.errno or (errno.ETIMEDOUT if isinstance(error, TimeoutError) else None)
    return kind(number, text) if number else kind(text)
