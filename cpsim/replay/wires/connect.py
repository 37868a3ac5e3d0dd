"""From an endpoint to the wire that leads there."""

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
    """The wire to an endpoint that can be reached, or to several daemons, for about so many operations in flight.

    Where it `was_reached` already, it need not be now: that may be what is tried.

    Raises:
        CpsimError: nobody answers there.
    """
    try:
        if isinstance(endpoint, UrlEndpoint):
            if not was_reached:
                socket.create_connection((endpoint.host, endpoint.port), timeout_s).close()
            return KeepAlive(endpoint, timeout_s)
        wire = Lanes(lanes, in_flight) if lanes else OneShot(endpoint, in_flight)
        if not was_reached:
            wire.reach(timeout_s)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one of a host
        said = error.strerror if isinstance(error, OSError) else None
        raise CpsimError(f"cannot reach {endpoint}: {said or error}; is it running there?") from error
    return wire
