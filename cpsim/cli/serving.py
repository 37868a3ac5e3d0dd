"""Options of what serves, and what serves beside a command: sockets that are passed, logs, metrics."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cpsim.cli.options import ListenType
from cpsim.net.listen import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.net.service_manager import PassedSocket
    from cpsim.run.ahead import Ahead
    from cpsim.run.drivers import Wiring

metrics_option = click.option(
    "--metrics",
    type=ListenType(default_host="127.0.0.1"),
    metavar="[HOST:]PORT",
    help="While it runs, answer GET /metrics for Prometheus there, on loopback without a HOST; port 0 takes a free "
    "one.",
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Log as text, in systemd's journal with levels, or as JSON, a document a line.",
)


def refuse_replaced(passed: Iterable[PassedSocket], replaced: Callable[[str], Mapping[str, object]]) -> None:
    """Refuse options in whose place the service manager has passed sockets.

    Args:
        passed: the sockets.
        replaced: returns the options that a socket of some name replaces, with their values; None where not given.

    Raises:
        click.UsageError: one of them is given.
    """
    for name, *_ in passed:
        for option, value in replaced(name).items():
            if value is not None:
                raise click.UsageError(f"{option} and a passed socket {name!r} exclude one another: remove one")


@contextmanager
def live_metrics(address: TcpEndpoint | None, ahead: Ahead | None = None) -> Iterator[Wiring]:
    """Yield the wiring of a replay whose figures are served at an address, if one is given, while the context lasts.

    Raises:
        OSError: the address cannot be bound.
    """
    from cpsim.daemon.metrics_server import MetricsServer
    from cpsim.run.drivers import Wiring
    from cpsim.run.live_figures import LiveFigures
    from cpsim.ui.logs import LINES

    if address is None:
        yield Wiring()
        return
    if not is_loopback(address.host):
        LINES.warning(f"other machines can read the metrics at {address}")
    figures = LiveFigures(ahead)
    with MetricsServer(address, figures.families) as url:
        click.echo(f"cpsim: metrics at {url}", err=True)
        yield Wiring(follow=figures.following)
