"""The server's faults: requests that are answered wrongly, late, or not at all."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError
from cpsim.net.http.messages import Cut, Ending, Response
from cpsim.server.http import API_PATH, Api

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault
    from cpsim.net.http.application import Answer, Caller
    from cpsim.net.http.messages import Request
    from cpsim.server.control.api import Control
    from cpsim.server.http import SingleCommand
    from cpsim.server.service import AccountServer

PAGE: Final = b"<html><body><h1>It works!</h1></body></html>"
APPLYING: Final = frozenset({"late", "lose-reply", "cut", "crash-after-commit"})
HOLDING: Final = frozenset({"late", "hang"})
DROP_TIMEOUT_S: Final = 5.0
"""Time for the server's thread to drop requests."""


class FaultyApi(Api):
    """An API with the faults of a plan; requests of the control API have none.

    Args:
        accounts: the account server.
        control: the control API, if it is enabled.
        faults: the plan.
    """

    def __init__(self, accounts: AccountServer, control: Control | None, faults: FaultPlan) -> None:
        super().__init__(accounts, control)
        self._faults = faults
        self._held: dict[asyncio.Event, str] = {}
        """The project of each request that a fault holds, by the event that drops it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.current_thread()

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | SingleCommand:
        """Answer one request, or have a fault answer it."""
        if not self._faults.server or not request.path.startswith(f"{API_PATH}/"):
            return super().answer(request, caller)
        project_id = self._accounts.known_id(_signed_for(request))
        fault = self._faults.draw("server", list(subjects(request)), project_id)
        return super().answer(request, caller) if fault is None else self._faulty(fault, project_id, request, caller)

    def drop(self, project_id: str | None) -> None:
        """Close the connections of requests that faults hold: of a project, or all. None of them is applied after this.

        Raises:
            CpsimError: the server's thread is busy: it does so later.
        """
        if self._loop is None:
            return
        if threading.current_thread() is self._thread:
            self._drop(project_id)
            return
        done = threading.Event()

        def drop() -> None:  # in the server's thread, where a request is dropped before or after it is applied
            self._drop(project_id)
            done.set()

        with suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(drop)
            if not done.wait(DROP_TIMEOUT_S):
                raise CpsimError("the server has not dropped its requests: it is busy")

    def _drop(self, project_id: str | None) -> None:
        for dropped, project in self._held.items():
            if project_id in {None, project}:
                dropped.set()

    async def _is_dropped(self, fault: Fault, project_id: str, caller: Caller) -> bool:
        """Wait as a fault says; return whether the request was dropped meanwhile."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.current_thread()
        dropped = asyncio.Event()
        end = caller.left() if fault.action == "hang" else caller.stopping.wait()
        ends = [asyncio.ensure_future(end), asyncio.ensure_future(dropped.wait())]
        self._held[dropped] = project_id
        try:
            await asyncio.wait(ends, timeout=fault.value, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._held[dropped]
            for each in ends:
                each.cancel()
        return dropped.is_set()

    async def _faulty(self, fault: Fault, project_id: str, request: Request, caller: Caller) -> Answer:
        """Answer a request as a fault says, or not at all."""
        if fault.action in HOLDING and await self._is_dropped(fault, project_id, caller):
            return Ending.CLOSE
        response = await self._durable(request) if fault.action in APPLYING else None
        match fault.action:
            case "late" | "cut":
                assert response is not None
                return Cut(response) if fault.action == "cut" else response
            case "status" | "not-json":
                return _response(fault)
            case "crash-after-commit":
                self._faults.crash()
            case "reset":
                return Ending.RESET
        return Ending.CLOSE


def _response(fault: Fault) -> Response:
    if fault.action == "not-json":
        return Response(200, PAGE, b"text/html")
    assert fault.value is not None
    status = int(fault.value)
    body = b"" if status in {204, 304} else b'{"result": "error", "message": "a fault that was asked for"}'
    return Response(status, body)


def _signed_for(request: Request) -> str:
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
