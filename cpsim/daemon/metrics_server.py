"""`/metrics` at an address of its own, for a daemon."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from cpsim.daemon.site import address_of
from cpsim.errors import CpsimError
from cpsim.metrics.exposition import METRICS_PATH, exposition
from cpsim.net.addresses import listen_tcp
from cpsim.net.http.carrier import Carrier
from cpsim.net.http.messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.metrics.exposition import Family
    from cpsim.net.http.application import Caller

PLAIN = b"text/plain; charset=utf-8"


class MetricsServer:
    """Serves metrics over HTTP, in a thread of its own, within its context.

    Args:
        address: where to listen; port 0 takes a free one. Or a socket that is bound already.
        metrics: returns the metrics at each scrape; raises CpsimError. Called in the server's thread.

    Attributes:
        url: of the metrics.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, address: TcpEndpoint | socket.socket, metrics: Callable[[], Iterable[Family]]) -> None:
        sock = address if isinstance(address, socket.socket) else listen_tcp(address.host, address.port)
        self.url = f"http://{address_of(sock)}{METRICS_PATH}"
        self._carrier = Carrier(_Scrapes(metrics), [sock], "cpsim-metrics")

    def __enter__(self) -> str:
        """Begin to serve; return the URL."""
        self._carrier.start()
        self._carrier.call(self._carrier.accept)
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._carrier.stop()
        self._carrier.check()


class _Scrapes:
    """The `Application` of a server of metrics."""

    def __init__(self, metrics: Callable[[], Iterable[Family]]) -> None:
        self._metrics = metrics

    def answer(self, request: Request, _: Caller, /) -> Response:
        """Answer a scrape; with 503 if a figure cannot be read."""
        if request.path != METRICS_PATH:
            return self.refusal(404, f"there is no {request.path!r}, only {METRICS_PATH}")
        if request.method not in {"GET", "HEAD"}:
            return Response(405, b"use GET\n", PLAIN, ((b"allow", b"GET, HEAD"),))
        accept = request.headers.get(b"accept", b"").decode("latin-1")
        try:
            content_type, text = exposition(self._metrics(), accept)
        except CpsimError as error:
            return self.refusal(503, str(error))
        return Response(200, text, content_type)

    def finish(self, commands: Sequence[Response], /) -> Sequence[Response]:
        """No request waits for others."""
        return commands

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not a scrape."""
        return Response(status, f"{message}\n".encode(), PLAIN)
