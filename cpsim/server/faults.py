"""The server's faults: requests that are answered wrongly, late, or not at all."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError
from cpsim.server.http import API_PATH, MAX_BODY_BYTES, Api

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault
    from cpsim.net.http.messages import Request, Response
    from cpsim.server.control.api import Control
    from cpsim.server.http import Receive, Scope, Send, SingleCommand
    from cpsim.server.service import AccountServer

RESET: Final = struct.pack("ii", 1, 0)
"""Linger for zero seconds: closing resets the connection."""
PAGE: Final = b"<html><body><h1>It works!</h1></body></html>"
APPLYING: Final = frozenset({"lose-reply", "cut", "crash-after-commit"})
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

    def at_once(self, request: Request) -> Response | SingleCommand | None:
        """Answer one request; None if the answer waits for the store, or a fault may apply."""
        return None if self._faults.server else super().at_once(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI request."""
        if not self._faults.server or not scope["path"].startswith(f"{API_PATH}/"):
            await super().__call__(scope, receive, send)
            return
        request = _Request(receive)
        await request.read()
        project_id = self._accounts.known_id(_signed_for(scope))
        fault = self._faults.draw("server", list(subjects(scope, request.body)), project_id)
        if fault is None:
            await super().__call__(scope, request.receive, send)
        else:
            holds = fault.action in HOLDING
            dropped = holds and await self._is_dropped(fault, project_id, scope["state"]["stopping"], request)
            await self._handle_fault(fault, scope, request, send, dropped=dropped)

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

    async def _is_dropped(self, fault: Fault, project_id: str, stopping: asyncio.Event, request: _Request) -> bool:
        """Wait as a fault says; return whether the request was dropped meanwhile."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.current_thread()
        dropped = asyncio.Event()
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()) for event in (stopping, dropped)]
        if fault.action == "hang":
            ends.append(asyncio.ensure_future(request.disconnected()))
        self._held[dropped] = project_id
        try:
            await asyncio.wait(ends, timeout=fault.value, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._held[dropped]
            for end in ends:
                end.cancel()
        return dropped.is_set()

    async def _handle_fault(self, fault: Fault, scope: Scope, request: _Request, send: Send, *, dropped: bool) -> None:
        """Answer a request as a fault says, or not at all."""
        answer: list[Any] = []

        async def record(message: Any) -> None:  # noqa: ANN401 - as ASGI has it
            answer.append(message)

        if fault.action == "late" and not dropped:
            await super().__call__(scope, request.receive, send)
            return
        if fault.action in APPLYING:
            await super().__call__(scope, request.receive, record)
        match fault.action:
            case "status" | "not-json":
                await _answer(fault, send)
                return
            case "crash-after-commit":
                self._faults.crash()
            case "cut":
                await send(answer[0])
                body = answer[1]["body"]
                await send({**answer[1], "body": body[: len(body) // 2], "more_body": True})
        connection = send.__self__  # type: ignore[attr-defined] # uvicorn's: ASGI cannot abort a connection
        if fault.action == "reset":
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.transport.abort()
        else:
            connection.transport.close()
        connection.disconnected = True


class _Request:
    """A request that can be read twice."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Any] = []
        self.body = b""

    async def read(self) -> None:
        """Read the request, up to its end or to the API's limit."""
        more = True
        while more and len(self.body) <= MAX_BODY_BYTES:
            message = await self._receive()
            self._messages.append(message)
            self.body += message.get("body", b"")
            more = message.get("more_body", False)

    async def receive(self) -> Any:  # noqa: ANN401 - as ASGI has it
        """The messages already read, then the next ones."""
        return self._messages.pop(0) if self._messages else await self._receive()

    async def disconnected(self) -> None:
        """Wait until the client has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _answer(fault: Fault, send: Send) -> None:
    if fault.action == "not-json":
        status, kind, body = 200, b"text/html", PAGE
    else:
        assert fault.value is not None
        status, kind = int(fault.value), b"application/json"
        body = b"" if status in {204, 304} else b'{"result": "error", "message": "a fault that was asked for"}'
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _signed_for(scope: Scope) -> str:
    """The project in a request's token."""
    if scope["method"] == "GET":
        token: bytes = dict(parse_qsl(scope["query_string"])).get(b"auth", b"")
    else:
        token = dict(scope["headers"]).get(b"authorization", b"")
    return token.decode("utf-8", "replace").partition(",")[2].partition(",")[0]


def subjects(scope: Scope, body: bytes) -> Iterator[tuple[str, str]]:
    """The kind and slot id of a request, and of each command in a bulk request."""
    kind, _, suffix = scope["path"].rpartition("/")[2].partition(".")
    if scope["method"] == "GET":
        arguments: Any = dict(parse_qsl(scope["query_string"].decode(errors="replace")))
    elif suffix == "text":
        arguments = dict(
            field.strip().split("=", 1) for field in body.decode(errors="replace").split(",") if "=" in field
        )
    else:
        arguments = _decoded(body)
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
