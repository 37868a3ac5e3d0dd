"""The faults of a proxy over HTTP, at the paths of the control API of `cpsim serve`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Never

from cpdaemon.endpoint import TcpEndpoint
from cpsim.net.addresses import listen_tcp
from cpsim.net.http.connection import Connection
from cpsim.net.http.shared import Limits, Shared
from cpsim.net.listen import BACKLOG
from cpsim.server.control.access import Access
from cpsim.server.control.actions import FAULT_ACTIONS
from cpsim.server.control.api import Control, error_response
from cpsim.server.control.fault_inspection import FaultInspector

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cpsim.faults.plan import FaultPlan
    from cpsim.net.http.application import Caller
    from cpsim.net.http.messages import Request, Response


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
        self._control = Control(FaultInspector(faults, check), Access(host, token), actions=FAULT_ACTIONS)
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
        response = self._control.respond(request)
        if (request.method, response.status) == ("POST", 200):
            await self.settle()
        return response

    def answer(self, request: Request, _: Caller, /) -> Coroutine[Any, Any, Response]:
        """Return the answer to one request."""
        return self.answered(request)

    def finish(self, commands: Sequence[Never], /) -> Sequence[Response]:
        """There are no commands to perform."""
        raise NotImplementedError

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not HTTP, or beyond a limit."""
        return error_response(status, message)
