"""The server's faults: requests that are answered wrongly, late, or not at all."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic
from urllib.parse import parse_qsl

import msgspec

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError
from cpsim.net.http.application import C, answered
from cpsim.net.http.messages import Cut, Ending, Response
from cpsim.protocol.exchange import Answer as Reply
from cpsim.protocol.exchange import End, Exchange, HttpReply
from cpsim.server.http import API_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from cpsim.faults.plan import FaultPlan
    from cpsim.net.http.application import Answer, Application, Caller
    from cpsim.net.http.messages import Request
    from cpsim.protocol.exchange import Passage

DROP_TIMEOUT_S: Final = 5.0
"""Time for the server's thread to drop requests."""


class RequestFaults(Generic[C]):
    """An application with the faults of a plan; requests of the control API have none.

    Args:
        app: the application that answers.
        faults: the plan.
        project_of: returns the id of the project that signs as this one, "" if there is none.
    """

    def __init__(self, app: Application[C], faults: FaultPlan, project_of: Callable[[str], str]) -> None:
        self._app = app
        self._faults = faults
        self._project_of = project_of
        self._held: dict[asyncio.Event, Passage] = {}
        """The passage of each request that a fault holds, by the event that drops it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.current_thread()
        self.finish, self.refusal = app.finish, app.refusal
        faults.watch(lambda: self._drop_where(lambda passage: not faults.has_all(passage)))

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | C:
        """Answer one request, or have faults answer it."""
        if not self._faults.server or not request.path.startswith(f"{API_PATH}/"):
            return self._app.answer(request, caller)
        project_id = self._project_of(signed_for(request))
        passage = self._faults.intercept(Exchange("server", list(subjects(request)), project_id))
        return self._app.answer(request, caller) if passage is None else self._faulty(passage, request, caller)

    def drop(self, project_id: str | None) -> None:
        """Close the connections of requests that faults hold: of a project, or all. None of them is applied after this.

        Raises:
            CpsimError: the server's thread is busy: it does so later.
        """
        self._drop_where(lambda passage: project_id in {None, passage.exchange.project})

    def _drop_where(self, condition: Callable[[Passage], bool]) -> None:
        if self._loop is None or not self._held:
            return
        done = threading.Event()

        def drop() -> None:  # in the server's thread, where a request is dropped before or after it is applied
            for dropped, passage in self._held.items():
                if condition(passage):
                    dropped.set()
            done.set()

        if threading.current_thread() is self._thread:
            drop()
            return

        with suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(drop)
            if not done.wait(DROP_TIMEOUT_S):
                raise CpsimError("the server has not dropped its requests: it is busy")

    async def _is_dropped(self, end: Coroutine[Any, Any, object], timeout_s: float | None, passage: Passage) -> bool:
        """Hold a request until an end or a timeout; return whether it was dropped meanwhile."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.current_thread()
        dropped = asyncio.Event()
        ends = [asyncio.ensure_future(end), asyncio.ensure_future(dropped.wait())]
        self._held[dropped] = passage
        try:
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._held[dropped]
            for each in ends:
                each.cancel()
        return dropped.is_set()

    async def _faulty(self, passage: Passage, request: Request, caller: Caller) -> Answer:
        """Answer a request as its faults say, or not at all."""
        if passage.delay_s and await self._is_dropped(caller.stopping.wait(), passage.delay_s, passage):
            return Ending.CLOSE
        decision = passage.instead
        reply: object = None
        if decision is None:
            decision = Reply(await answered(self._app, request, caller))
        if isinstance(decision, Reply):
            reply, decision = decision.reply, passage.back(decision.reply)
        match decision:
            case Reply(given):
                assert isinstance(given, HttpReply | Response | Cut | Ending)
                return Response(*given) if isinstance(given, HttpReply) else given
            case End.HANG:
                await self._is_dropped(caller.left(), None, passage)
            case End.CUT if isinstance(reply, Response):
                return Cut(reply)
            case End.CRASH | End.ANSWER_AND_CRASH:
                self._faults.crash()
            case End.RESET:
                return Ending.RESET
        return Ending.CLOSE


def signed_for(request: Request) -> str:
    """The project in a request's token."""
    if request.method == "GET":
        token: bytes = dict(parse_qsl(request.query)).get(b"auth", b"")
    else:
        token = request.headers.get(b"authorization", b"")
    return token.decode("utf-8", "replace").partition(",")[2].partition(",")[0]


def subjects(request: Request) -> Iterator[tuple[str, str]]:
    """The kind and slot id of a request, and of each command in a bulk request."""
    kind, _, suffix = request.path.rpartition("/")[2].partition(".")
    if request.method == "GET":
        arguments: Any = dict(parse_qsl(request.query.decode(errors="replace")))
    elif suffix == "text":
        fields = request.body.decode(errors="replace").split(",")
        arguments = dict(field.strip().split("=", 1) for field in fields if "=" in field)
    else:
        arguments = _decoded(request.body)
    arguments = arguments if isinstance(arguments, dict) else {}
    yield kind, str(arguments.get("slot", ""))
    for name in KINDS if kind == "bulk" else ():
        commands = arguments.get(name)
        commands = _decoded(commands) if isinstance(commands, str) else commands
        for command in commands if isinstance(commands, list) else ():
            if isinstance(command, dict):
                yield name, str(command.get("slot", ""))


def _decoded(text: bytes | str) -> object:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
