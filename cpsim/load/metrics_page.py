"""`/metrics` of a load, in a greenlet of the master: Locust has patched what `MetricsServer` is made of."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gevent.pywsgi import WSGIServer

from cpsim.metrics.exposition import METRICS_PATH, exposition
from cpsim.net.addresses import listen_tcp
from cpsim.net.listen import Listen, is_loopback
from cpsim.ui.logs import LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cpsim.run.live_figures import LiveFigures


def serve_metrics(address: str, figures: LiveFigures) -> None:
    """Serve metrics until the process ends, and say where on standard error.

    Raises:
        OSError: the address cannot be bound.
    """
    listen = Listen(address)
    if not is_loopback(listen.host):
        LINES.warning(f"other machines can read the metrics at {address}")
    sock = listen_tcp(listen.host, listen.port)

    def answer(request: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
        if request["PATH_INFO"] != METRICS_PATH:
            start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"there is only {METRICS_PATH}\n".encode()]
        content_type, text = exposition(figures.families(), request.get("HTTP_ACCEPT", ""))
        start("200 OK", [("Content-Type", content_type.decode())])
        return [text]

    WSGIServer(sock, answer, log=None).start()
    where = Listen(f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}")
    print(f"cpsim: metrics at http://{where}{METRICS_PATH}", file=sys.stderr, flush=True)
