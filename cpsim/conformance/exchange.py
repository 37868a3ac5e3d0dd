"""Raw HTTP: a request's exact bytes out, on a connection of its own or on one that is kept, and the server's reply."""

from __future__ import annotations

import http.client
import io
import json
import socket
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, cast

from cpdaemon.transport import reason_of, tls_of
from cpsim.conformance.findings import CannotRun
from cpsim.net.http.client import NO_RESPONSE
from cpsim.net.http.incoming import Incoming

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpdaemon.endpoint import UrlEndpoint

READY_S: Final = 0.01
"""How long a server has to read all but the end of requests, before their ends are sent at once."""


@dataclass(frozen=True)
class HttpRequest:
    """One request.

    Attributes:
        method: GET or POST.
        path: with the query, if there is one; as it is sent.
        body: the exact bytes.
        headers: beside Host, Connection and Content-Length.
    """

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self, authority: str, *, kept: bool = False) -> bytes:
        """Its bytes; `kept`: the connection is to stay open."""
        headers = {"Host": authority, "Connection": "keep-alive" if kept else "close", **self.headers}
        if self.method != "GET":
            headers["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass(frozen=True)
class Reply:
    """A server's reply.

    Attributes:
        status: 0 without a reply.
        content_type: of the body.
        body: without a reply, what came instead.
        is_late: there was no reply in time, which says nothing of the server.
    """

    status: int
    content_type: str
    body: bytes
    is_late: bool = False

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def document(self) -> dict[str, Any]:
        """The body as a JSON object; empty if it is none."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def outcome(self) -> str:
        """What became of a command: `accepted`, `refused`, or what the server said instead."""
        if self.status == 200 and self.document.get("result") == "ok":
            return "accepted"
        return "refused" if self.status == 500 else str(self)

    def __str__(self) -> str:
        said = " ".join(self.text.split())
        said = said if len(said) <= 200 else f"{said[:199]}…"
        return f"HTTP {self.status} {said}" if self.status else said


LATE: Final = Reply(0, "", b"no reply in time", is_late=True)


class _Incoming(io.BufferedReader):
    """What comes in on a connection; a response that has been read leaves it open for the next one."""

    def close(self) -> None:
        pass


class HttpConnection:
    """A connection to a server, for one request or for several.

    Args:
        server: its address.
        timeout_s: for the connection, and for each reply.

    Raises:
        CannotRun: there is no connection to be had.
    """

    def __init__(self, server: UrlEndpoint, timeout_s: float) -> None:
        self.authority = server.authority
        self.is_open = True
        try:
            self._sock = socket.create_connection((server.host, server.port), timeout_s)
        except (OSError, UnicodeError) as error:
            raise CannotRun(f"cannot reach {server}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if (tls := tls_of(server)) is not None:
                self._sock = tls.wrap_socket(self._sock, server_hostname=server.host)
        except OSError as error:
            self._sock.close()
            raise CannotRun(f"cannot reach {server}: {reason_of(error)}") from error
        self._raw = Incoming(self._sock, timeout_s)
        self._incoming = _Incoming(self._raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes; where the server has closed the connection, its reply says so."""
        with suppress(OSError):
            self._sock.sendall(data)

    def reply(self, method: str) -> Reply:
        """The reply to the next request, whatever version of HTTP it is in; `is_open` says whether one may follow."""
        self.is_open = False
        self._raw.restart()
        with closing(http.client.HTTPResponse(cast("socket.socket", self), method=method)) as response:
            try:
                response.begin()
                reply = Reply(response.status, response.getheader("Content-Type", ""), response.read())
            except TimeoutError:
                return LATE
            except NO_RESPONSE as error:
                return Reply(0, "", f"no HTTP reply: {error or type(error).__name__}".encode())
        self.is_open = not response.will_close
        return reply

    def makefile(self, *_: object) -> io.BufferedReader:
        """What comes in, for a response to be read from."""
        return self._incoming

    def close(self) -> None:
        """Close it."""
        self._sock.close()
        io.BufferedReader.close(self._incoming)


def ask(server: UrlEndpoint, request: HttpRequest, timeout_s: float) -> Reply:
    """Send a request and read the reply, whatever version of HTTP it is in.

    Raises:
        CannotRun: there is no connection to be had.
    """
    with HttpConnection(server, timeout_s) as connection:
        connection.send(request.encode(connection.authority))
        return connection.reply(request.method)


def ask_together(
    server: UrlEndpoint, requests: Sequence[HttpRequest], timeout_s: float, sleep: Callable[[float], object]
) -> list[Reply]:
    """Send requests at the same time, each on a connection of its own, and read the replies.

    All but the last byte of each is sent beforehand, so that all become whole within microseconds.

    Raises:
        CannotRun: there are no connections to be had.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(HttpConnection(server, timeout_s)) for _ in requests]
        encoded = [request.encode(server.authority) for request in requests]
        for connection, data in zip(connections, encoded, strict=True):
            connection.send(data[:-1])
        sleep(READY_S)
        for connection, data in zip(connections, encoded, strict=True):
            connection.send(data[-1:])
        return [connection.reply(request.method) for connection, request in zip(connections, requests, strict=True)]
