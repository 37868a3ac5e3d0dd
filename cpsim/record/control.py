"""The faults of a proxy over HTTP, at the paths of the control API of `cpsim serve`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Never
from urllib.parse import parse_qsl

import msgspec

from cpdaemon.endpoint import TcpEndpoint
from cpsim.errors import CpsimError
from cpsim.net.addresses import listen_tcp
from cpsim.net.control import CONTROL_PATH, PAGE
from cpsim.net.http.connection import Connection
from cpsim.net.http.messages import Failure, Response
from cpsim.net.http.shared import Limits, Shared
from cpsim.net.listen import BACKLOG
from cpsim.server.control.access import Access
from cpsim.server.control.openapi import Error
from cpsim.server.control.views import FaultView, FiringView, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cpsim.faults.plan import FaultPlan
    from cpsim.net.http.application import Caller
    from cpsim.net.http.messages import Request

METHODS: Final = {
    "faults": ("GET", "POST"),
    "faults/add": ("POST",),
    "faults/remove": ("POST",),
    "firings": ("GET",),
}


class FaultControl:
    """An application that shows and changes a plan of faults, in the event loop in which it is opened.

    Args:
        faults: the plan.
        check: raises CpsimError if a fault cannot work here.
        host: where it will listen.
        token: that requests need; None, with a loopback `host`, for no token.

    Attributes:
        settle: waits until a change of the plan is in force.

    Raises:
        ValueError: the host is not loopback, and there is no token.
    """

    settle: Callable[[], Coroutine[Any, Any, None]]

    def __init__(self, faults: FaultPlan, check: Callable[[str], object], host: str, token: str | None = None) -> None:
        self._faults = faults
        self._check = check
        self._access = Access(host, token)
        self._server: asyncio.AbstractServer | None = None
        self._shared: Shared[Never] | None = None

    async def open(self, address: TcpEndpoint) -> str:
        """Listen; return HOST:PORT. Raises OSError."""
        loop = asyncio.get_running_loop()
        shared = self._shared = Shared(self, Limits(), loop)
        sock = listen_tcp(address.host, address.port)
        self._server = await loop.create_server(lambda: Connection(shared), sock=sock, backlog=BACKLOG)
        return str(TcpEndpoint(*sock.getsockname()[:2]))

    def close(self) -> None:
        """Stop listening, and close the connections."""
        if self._server is not None and self._shared is not None:
            self._server.close()
            for connection in list(self._shared.connections):
                connection.abort()

    async def answered(self, request: Request) -> Response:
        """Answer one request, once a change is in force."""
        try:
            self._access.check(request)
            answer = self._perform(request)
            if request.method == "POST":
                await self.settle()
            return Response(200, msgspec.json.encode(answer) + b"\n")
        except Failure as failure:
            return self.refusal(failure.status, str(failure), failure.headers)
        except CpsimError as error:
            return self.refusal(409, str(error))

    def answer(self, request: Request, _: Caller, /) -> Coroutine[Any, Any, Response]:
        """Return the answer to one request."""
        return self.answered(request)

    def finish(self, commands: Sequence[Never], /) -> Sequence[Response]:
        """There are no commands to perform."""
        raise NotImplementedError

    def refusal(self, status: int, message: str, /, headers: Any = ()) -> Response:  # noqa: ANN401 - of a Failure
        """The answer to a request that is not performed."""
        return Response(status, msgspec.json.encode(Error("error", message)) + b"\n", headers=headers)

    def _perform(self, request: Request) -> object:
        name = request.path.removeprefix(CONTROL_PATH)
        if not request.path.startswith(CONTROL_PATH) or name not in METHODS:
            known = ", ".join(f"{CONTROL_PATH}{each}" for each in METHODS)
            raise Failure(404, f"there is no {request.path!r}; a proxy has {known}")
        if request.method not in METHODS[name]:
            allowed = ", ".join(METHODS[name])
            raise Failure(405, f"{request.path} supports {allowed}", ((b"allow", allowed.encode()),))
        if name == "firings":
            return self._firings(request)
        if request.method == "POST":
            self._change(name, _texts(request))
        return [
            FaultView(fault=text, selected=selected, fired=fired) for text, selected, fired in self._faults.describe()
        ]

    def _change(self, name: str, faults: list[str]) -> None:
        if name == "faults/remove":
            self._faults.remove(*faults)
            return
        for fault in faults:
            self._check(fault)
        (self._faults.add if name == "faults/add" else self._set)(*faults)

    def _set(self, *faults: str) -> None:
        self._faults.replace(faults)

    def _firings(self, request: Request) -> Page[FiringView]:
        query = dict(parse_qsl(request.query.decode("utf-8", "replace")))
        try:
            first, most = int(query.get("cursor", 0)), int(query.get("limit", PAGE))
        except ValueError:
            first = most = -1
        if first < 0 or not 1 <= most <= PAGE:
            raise Failure(400, f"cursor is a whole number from 0 up, and limit one from 1 to {PAGE:,}")
        firings = self._faults.firings
        shown = [FiringView(**firing._asdict()) for firing in firings[first : first + most]]
        return Page(items=shown, next=first + most if len(firings) > first + most else None)


def _texts(request: Request) -> list[str]:
    try:
        return msgspec.json.decode(request.body, type=list[str])
    except (ValueError, RecursionError) as error:
        raise Failure(
            400, f"the body does not fit: {error}; it is a list of faults, as cpsim faults has them"
        ) from error
