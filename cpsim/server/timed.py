"""An API that measures how long its callers wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpsim.net.http.messages import Cut, Ending, Response
from cpsim.server.faults import FaultyApi
from cpsim.server.http import API_PATH, SingleCommand

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from cpsim.faults.plan import FaultPlan
    from cpsim.metrics.waits import Waits
    from cpsim.net.http.application import Answer, Caller
    from cpsim.net.http.messages import Request
    from cpsim.server.control.api import Control
    from cpsim.server.service import AccountServer


class TimedApi(FaultyApi):
    """An API that records each wait, from a whole request to its answer, except for the control API.

    Args:
        accounts: the account server.
        control: the control API, if it is enabled.
        faults: the plan of faults.
        waits: records the waits.
    """

    def __init__(self, accounts: AccountServer, control: Control | None, faults: FaultPlan, waits: Waits) -> None:
        super().__init__(accounts, control, faults)
        self._waits = waits

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | SingleCommand:
        """Answer one request, and record the wait."""
        if not request.path.startswith(f"{API_PATH}/"):
            return super().answer(request, caller)
        wait = object()
        self._waits.begin(wait, f"{request.method} {request.path}", self._waits.now_s())
        return self._timed(wait, request, caller)

    async def _timed(self, wait: object, request: Request, caller: Caller) -> Answer:
        try:
            answer = super().answer(request, caller)
            if isinstance(answer, SingleCommand):
                (response,) = self.finish([answer])
                return response
            return answer if isinstance(answer, (Response, Cut, Ending)) else await answer
        finally:
            self._waits.end(wait)
