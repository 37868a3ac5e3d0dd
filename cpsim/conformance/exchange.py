"""Raw HTTP: a request's exact bytes out, on a connection of its own, and the server's reply."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cpsim.conformance.findings import CannotRun

if TYPE_CHECKING:
    from cpdaemon.endpoint import UrlEndpoint


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

    def encode(self, authority: str) -> bytes:
        """Its bytes."""
        headers = {"Host": authority, "Connection": "close", **self.headers}
        if self.method != "GET":
            headers["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass(frozen=True)
class Reply:
    """A server's reply; without one, `status` is 0 and `body` says what came instead."""

    status: int
    content_type: str
    body: bytes

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


def ask(server: UrlEndpoint, request: HttpRequest, timeout_s: float) -> Reply:
    """Send a request and read the reply, whatever version of HTTP it is in.

    Raises:
        CannotRun: there is no connection to be had.
    """
    try:
        sock = socket.create_connection((server.host, server.port), timeout_s)
    except (OSError, UnicodeError) as error:
        raise CannotRun(f"cannot reach {server}: {getattr(error, 'strerror', None) or error}") from error
    with sock:
        try:
            if server.scheme == "https":
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=server.host)
        except OSError as error:
            raise CannotRun(f"cannot reach {server}: {error}") from error
        with sock:
            try:
                sock.sendall(request.encode(server.authority))
                response = http.client.HTTPResponse(sock, method=request.method)
                response.begin()
                return Reply(response.status, response.getheader("Content-Type", ""), response.read())
            except TimeoutError:
                return Reply(0, "", b"no reply in time")
            except (OSError, http.client.HTTPException) as error:
                return Reply(0, "", f"no HTTP reply: {error or type(error).__name__}".encode())
