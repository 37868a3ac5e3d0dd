"""An API that measures how long its callers wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.server.faults import FaultyApi
from cpsim.server.http import API_PATH

if TYPE_CHECKING:
    from cpsim.faults.plan import FaultPlan
    from cpsim.metrics.waits import Waits
    from cpsim.net.http.messages import Request
    from cpsim.server.control.api import Control
    from cpsim.server.http import Receive, Scope, Send
    from cpsim.server.service import AccountServer


class TimedApi(FaultyApi):
    """An API that records each wait, from a request's head to the end of its answer, except for the control API.

    Args:
        accounts: the account server.
        control: the control API, if it is enabled.
        faults: the plan of faults.
        waits: records the waits.
    """

    def __init__(self, accounts: AccountServer, control: Control | None, faults: FaultPlan, waits: Waits) -> None:
        super().__init__(accounts, control, faults)
        self._waits = waits

    def at_once(self, request: Request) -> None:
        """None: a wait begins before its request is answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI request."""
        if not scope["path"].startswith(f"{API_PATH}/"):
            await super().__call__(scope, receive, send)
            return
        caller = object()
        self._waits.begin(caller, f"{scope['method']} {scope['path']}", self._waits.now_s())
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._waits.end(caller)
