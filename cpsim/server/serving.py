"""The HTTP server of the accounts, which is down while a fault has it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvloop

from cpsim.faults.plan import FaultPlan
from cpsim.net.http.carrier import Carrier

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from cpsim.net.http.application import Application
    from cpsim.net.http.shared import Limits
    from cpsim.net.tls import ServerCertificate


class HttpServer:
    """Serves an application over HTTP/1.1, and refuses connections by a plan of faults.

    Args:
        app: the application.
        sockets: bound ones; closed by `stop`.
        faults: the plan.
        limits: of its connections.
        new_loop: makes the event loop, whose time is that of connections and of faults that come and go.
        tls: the certificate with which its connections speak TLS.
    """

    def __init__(
        self,
        app: Application[Any],
        sockets: list[socket.socket],
        faults: FaultPlan | None = None,
        limits: Limits | None = None,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
        *,
        tls: ServerCertificate | None = None,
    ) -> None:
        self._carrier = Carrier(app, sockets, "cpsim-http", limits=limits, new_loop=new_loop, tls=tls)
        self._faults = FaultPlan() if faults is None else faults
        self._timer: asyncio.TimerHandle | None = None
        self._is_down: bool | None = None

    def start(self) -> None:
        """Begin to serve; returns once connections are accepted.

        Raises:
            OSError, ValueError: the sockets cannot be served.
        """
        self._carrier.start()
        try:
            self._refresh()
        except BaseException:
            self._carrier.stop()
            raise
        self._faults.watch(self._refresh)

    def stop(self) -> None:
        """Stop accepting, finish the requests in progress, and close."""
        self._carrier.stop()

    def check(self) -> None:
        """Raise ThreadFailed if the server has ended by an unexpected error."""
        self._carrier.check()

    def after_a_turn(self, then: Callable[[], object]) -> None:
        """Call a function in the next turn of the event loop; called from any thread."""
        self._carrier.call_soon(then)

    def _refresh(self) -> None:
        """Apply a change of the plan of faults; from another thread, before returning."""
        self._carrier.call(self._update)

    def _update(self) -> None:
        """Accept or refuse connections by the plan of faults, now and at its next change."""
        if self._timer is not None:
            self._timer.cancel()
        change_s = self._faults.next_change_s("server")  # first, or a change in the meantime would be missed
        if change_s is not None:
            self._timer = self._carrier.call_later(change_s, self._update)
        is_down = self._faults.refuses("server")
        if is_down and not self._is_down:
            self._carrier.refuse()
        elif is_down is not self._is_down:
            self._carrier.accept()
        self._is_down = is_down
