"""An application that records how long its callers wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from cpsim.net.http.application import C, answered
from cpsim.server.http import API_PATH

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from cpsim.metrics.waits import Waits
    from cpsim.net.http.application import Answer, Application, Caller
    from cpsim.net.http.messages import Request


class Timed(Generic[C]):
    """An application that records each wait, from a whole request to its answer, except for the control API.

    Args:
        app: the application that answers.
        waits: the record.
    """

    def __init__(self, app: Application[C], waits: Waits) -> None:
        self._app = app
        self._waits = waits
        self.finish, self.refusal = app.finish, app.refusal

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | C:
        """Answer one request, and record the wait."""
        if not request.path.startswith(f"{API_PATH}/"):
            return self._app.answer(request, caller)
        wait = object()
        self._waits.begin(wait, f"{request.method} {request.path}", self._waits.now_s())
        return self._timed(wait, request, caller)

    async def _timed(self, wait: object, request: Request, caller: Caller) -> Answer:
        try:
            return await answered(self._app, request, caller)
        finally:
            self._waits.end(wait)
