"""One HTTP request on a connection of its own."""

from __future__ import annotations

import http.client
import io
import ssl
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from cpdaemon.transport import reason_of, tls_of
from cpsim.errors import CpsimError, reason
from cpsim.net.http.incoming import Incoming

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

    from cpdaemon.endpoint import UrlEndpoint


PIECE_BYTES: Final = 1 << 20
PACE: Final = 1_000
"""Bytes of a response for which there is one second more; a slower one is none."""


NO_RESPONSE: Final = (OSError, ValueError, OverflowError, MemoryError, http.client.HTTPException)
"""What Python raises where there is no response: a length, or a chunk's size, can be any number."""


class CannotReach(CpsimError):
    """A server cannot be reached, or answers no HTTP."""


def fetch(
    server: UrlEndpoint,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    connect_s: float,
    timeout_s: float,
) -> tuple[int, bytes]:
    """Send a request; returns the status and the body of the response.

    Args:
        server: where to connect; its own path is not used.
        method: GET or POST.
        path: with the query.
        body: of the request.
        headers: of the request.
        connect_s: seconds that connecting may take.
        timeout_s: seconds that the response may then take, and one more for each `PACE` bytes.

    Raises:
        CannotReach: there is no response.
    """
    with _response(server, method, path, body, headers=headers, connect_s=connect_s, timeout_s=timeout_s) as response:
        return response.status, response.read()


def download(server: UrlEndpoint, path: str, into: BinaryIO, *, connect_s: float, timeout_s: float) -> int:
    """Write the body of the response to a GET to a file, a piece at a time; returns the status.

    Args:
        server: where to connect; its own path is not used.
        path: with the query.
        into: takes the body.
        connect_s: seconds that connecting may take.
        timeout_s: seconds that the response may then take, and one more for each `PACE` bytes.

    Raises:
        CannotReach: there is no response, or it is not whole.
    """
    with _response(server, "GET", path, connect_s=connect_s, timeout_s=timeout_s) as response:
        missing = response.length or 0
        while piece := response.read(PIECE_BYTES):
            into.write(piece)
            missing -= len(piece)
        if missing > 0:  # `read` of a number of bytes does not say so itself
            raise http.client.IncompleteRead(b"", missing)
        return response.status


class _Made(NamedTuple):
    """What a response takes for a socket: it asks for nothing but its file."""

    incoming: Any

    def makefile(self, *_: object) -> Any:  # noqa: ANN401 - a buffered reader
        return self.incoming


@contextmanager
def _response(
    server: UrlEndpoint,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    connect_s: float,
    timeout_s: float,
) -> Iterator[http.client.HTTPResponse]:
    connection = (
        http.client.HTTPSConnection(server.host, server.port, timeout=connect_s, context=tls_of(server))
        if server.scheme == "https"
        else http.client.HTTPConnection(server.host, server.port, timeout=connect_s)
    )
    try:
        connection.connect()
        connection.sock.settimeout(timeout_s)
        connection.request(method, path, body, headers or {})
        incoming = io.BufferedReader(Incoming(connection.sock, timeout_s, PACE))
        with closing(http.client.HTTPResponse(cast("socket.socket", _Made(incoming)), method=method)) as response:
            response.begin()
            yield response
    except NO_RESPONSE as error:
        why = reason_of(error) or reason(error) or type(error).__name__
        advice = "" if isinstance(error, ssl.SSLError) else "; is it running there?"
        raise CannotReach(f"cannot reach {server}: {why}{advice}") from error
    finally:
        connection.close()
