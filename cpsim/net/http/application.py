"""What a server answers with: an application, and what it can ask about its callers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cpsim.net.http.messages import Cut, Ending, Response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from cpsim.net.http.messages import Request

    Answer = Response | Cut | Ending

C = TypeVar("C")


class Caller(Protocol):
    """Who waits for the answer to a request."""

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the server stops."""

    async def left(self) -> None:
        """Return when the caller has left, or when its connection is to end."""


class Application(Protocol[C]):
    """Answers requests, in the thread of an event loop; C is its type of commands."""

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | C:
        """Answer a whole request.

        Returns:
            The answer; a coroutine that returns it; or a command, whose answer `finish` returns. A caller that leaves
            ends no coroutine.
        """

    def finish(self, commands: Sequence[C], /) -> Sequence[Response]:
        """Perform commands that came in one step of the event loop; returns the answer to each, in their order."""

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not performed, because it is not HTTP or beyond a limit."""


async def answered(app: Application[C], request: Request, caller: Caller) -> Answer:
    """Return an application's answer to a request, whichever way it is given."""
    answer = app.answer(request, caller)
    if isinstance(answer, Response | Cut | Ending):
        return answer
    if isinstance(answer, Coroutine):
        return await answer
    (response,) = app.finish([answer])
    return response
