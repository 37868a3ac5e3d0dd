"""One HTTP request on a connection of its own."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpdaemon.endpoint import UrlEndpoint


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
        timeout_s: seconds that the response may then pause.

    Raises:
        CannotReach: there is no response.
    """
    connection = (
        http.client.HTTPSConnection(server.host, server.port, timeout=connect_s, context=ssl.create_default_context())
        if server.scheme == "https"
        else http.client.HTTPConnection(server.host, server.port, timeout=connect_s)
    )
    try:
        connection.connect()
        connection.sock.settimeout(timeout_s)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CannotReach(f"cannot reach {server}: {reason}; is it running there?") from error
    finally:
        connection.close()
