"""The wire for an endpoint."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpsim.errors import CpsimError
from cpsim.replay.wires.keep_alive import KeepAlive
from cpsim.replay.wires.lanes import Lanes
from cpsim.replay.wires.one_shot import OneShot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.replay.wires.wire import Wire


def open_wire(
    endpoint: UnixEndpoint | TcpEndpoint | UrlEndpoint,
    timeout_s: float,
    in_flight: int = 64,
    lanes: Sequence[UnixEndpoint | TcpEndpoint] = (),
    *,
    was_reached: bool = False,
) -> Wire:
    """Open a wire to an endpoint, or to several daemons.

    Args:
        endpoint: a daemon or a server.
        timeout_s: seconds to wait for a connection.
        in_flight: expected operations in flight.
        lanes: daemons that replace the endpoint, one per site.
        was_reached: skip the test connection: the endpoint may be down now as part of a test.

    Raises:
        CpsimError: the endpoint cannot be reached.
    """
    try:
        if isinstance(endpoint, UrlEndpoint):
            if not was_reached:
                socket.create_connection((endpoint.host, endpoint.port), timeout_s).close()
            return KeepAlive(endpoint, timeout_s)
        wire = Lanes(lanes, in_flight) if lanes else OneShot(endpoint, in_flight)
        if not was_reached:
            wire.reach(timeout_s)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        reason = error.strerror if isinstance(error, OSError) else None
        raise CpsimError(f"cannot reach {endpoint}: {reason or error}; is it running there?") from error
    return wire
