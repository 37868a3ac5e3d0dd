"""An application that records how long its callers wait."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic

from cpsim.clock import SYSTEM_CLOCK
from cpsim.net.http.application import C
from cpsim.net.http.messages import Cut, Ending, Response
from cpsim.server.http import API_PATH

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from cpsim.clock import Clock
    from cpsim.metrics.duration_buckets import DurationBuckets
    from cpsim.metrics.waits import Waits
    from cpsim.net.http.application import Answer, Application, Caller
    from cpsim.net.http.messages import Request

    Began = tuple[float, object]


class Timed(Generic[C]):
    """An application that records each wait, from a whole request to its answer, except for the control API.

    Args:
        app: the application that answers.
        latency: counts the waits.
        waits: records the longest, if it is given.
        clock: its monotonic time measures `latency`.
    """

    def __init__(
        self, app: Application[C], latency: DurationBuckets, waits: Waits | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._app = app
        self._latency = latency
        self._waits = waits
        self._now_s = clock.monotonic
        self._commands: dict[int, Began] = {}
        """The wait for each command that is not finished, by the command's identity."""
        self.refusal = app.refusal

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | C:
        """Answer one request, and record the wait."""
        if not request.path.startswith(f"{API_PATH}/"):
            return self._app.answer(request, caller)
        began = self._now_s(), object()
        if self._waits is not None:
            self._waits.begin(began, f"{request.method} {request.path}", self._waits.now_s())
        try:
            answer = self._app.answer(request, caller)
        except BaseException:
            self._end(began)
            raise
        if isinstance(answer, CoroutineType):
            return self._timed(began, answer)
        if isinstance(answer, (Response, Cut, Ending)):
            self._end(began)
        else:
            self._commands[id(answer)] = began
        return answer

    def finish(self, commands: Sequence[C], /) -> Sequence[Response]:
        """Perform commands, and record the wait for each."""
        try:
            return self._app.finish(commands)
        finally:
            for command in commands:
                self._end(self._commands.pop(id(command)))

    async def _timed(self, began: Began, answer: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await answer
        finally:
            self._end(began)

    def _end(self, began: Began) -> None:
        self._latency.observe(self._now_s() - began[0])
        if self._waits is not None:
            self._waits.end(began)
