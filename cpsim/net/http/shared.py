"""What the connections of a server share: the application, limits, and the commands of a step of the event loop."""

from __future__ import annotations

import asyncio
import logging
from heapq import nsmallest
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Generic

import msgspec

from cpsim.clock import SYSTEM_CLOCK
from cpsim.net.http.application import C
from cpsim.net.http.messages import Response

if TYPE_CHECKING:
    from cpsim.clock import Clock
    from cpsim.net.http.application import Application
    from cpsim.net.http.connection import Connection

FEW: Final = 3
"""With fewer connections, to wait for the end of a turn costs more than it saves, as measured."""
ROOM: Final = 16
"""One in so many idle connections is closed to make room."""
QUIET_S: Final = 60.0
FAILED: Final = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error", b"text/plain; charset=utf-8")


class Seldom(logging.Filter):
    """Lets a warning through once a minute: who sends rubbish is answered, and does not fill the log."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._now_s = clock.monotonic
        self._quiet_until_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        now_s = self._now_s()
        if record.levelno > logging.WARNING or now_s >= self._quiet_until_s.get(record.msg, 0.0):
            self._quiet_until_s[record.msg] = now_s + QUIET_S
            return True
        return False


LOGGER: Final = logging.getLogger("cpsim.http")
LOGGER.addFilter(Seldom())


class Limits(msgspec.Struct, frozen=True):
    """The limits of a server.

    Attributes:
        head_bytes: of a request's head, and of its trailers.
        headers: number of headers and trailers of a request.
        body_bytes: of a request's body.
        held_bytes: of all bodies, over all connections, that are not whole or whose requests wait for their answers.
        idle_s: seconds after which a connection without a request is closed.
        head_s: seconds in which a head has to be there, from its first byte.
        request_s: seconds in which a request has to be there, from its first byte.
        linger_s: seconds that a client has to read why it was refused.
        handshake_s: seconds that a handshake of TLS may take.
    """

    head_bytes: int = 2**20
    headers: int = 1_000
    body_bytes: int = 64 * 2**20
    held_bytes: int = 256 * 2**20
    idle_s: float = 75.0
    head_s: float = 75.0
    request_s: float = 300.0
    linger_s: float = 10.0
    handshake_s: float = 10.0


class Shared(Generic[C]):
    """What the connections of a server share.

    Args:
        app: the application.
        limits: of all connections.
        loop: their event loop.

    Attributes:
        connections: those that are open, the oldest first.
        empty: set while there are none.
        held_bytes: of bodies; see `Limits`.
        stopping: set when the server stops.
        tasks: requests whose answers are waited for.
    """

    def __init__(self, app: Application[C], limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.limits = limits
        self.loop = loop
        self.connections: dict[Connection, None] = {}
        self.empty = asyncio.Event()
        self.empty.set()
        self.held_bytes = 0
        self.stopping = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[Connection] = []
        self._commands: list[C] = []

    def add(self, connection: Connection) -> None:
        """Add a connection."""
        self.connections[connection] = None
        self.empty.clear()

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        self.connections.pop(connection, None)
        if not self.connections:
            self.empty.set()

    def make_room(self) -> bool:
        """Close connections whose clients have no request in work, the oldest first; return whether there are any."""
        ages = {connection: age for connection in self.connections if (age := connection.age) is not None}
        oldest = nsmallest(1 + len(ages) // ROOM, ages, ages.__getitem__)
        for connection in oldest:
            connection.close()
        return bool(oldest)

    def finish_later(self, connection: Connection, command: Any) -> None:  # noqa: ANN401 - a command of the application
        """Finish a command together with others of this step of the event loop, and give the connection the answer."""
        self._waiting.append(connection)
        self._commands.append(command)
        if len(self.connections) < FEW:
            self.finish()
        elif len(self._commands) == 1:
            self.loop.call_soon(self.finish)

    def finish(self) -> None:
        """Finish the commands that have come."""
        if not self._commands:
            return
        waiting, commands = self._waiting, self._commands
        self._waiting, self._commands = [], []
        try:
            responses = self.app.finish(commands)
        except Exception:
            LOGGER.exception("Exception in the application")
            responses = [FAILED] * len(commands)
        for connection, response in zip(waiting, responses, strict=True):
            connection.finish(response)
