"""One HTTP connection: uvicorn's, which answers at once what can be answered at once.

For each request uvicorn starts a task, which exchanges events with the application. That is for requests whose
bodies or answers must be waited for. One that is soon here whole, and whose answer needs no waiting, is answered in
the step in which it is complete, in half the time, or at the end of that step together with others like it. Until it
is complete it is only noted, so that uvicorn can still take it over. All others, and all else that HTTP asks for, are
uvicorn's from the beginning.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cpsim.clock import SYSTEM_CLOCK
from cpsim.net.http.messages import Request, Response

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport
    from collections.abc import Sequence, Sized

    from uvicorn import Config
    from uvicorn.server import ServerState

    from cpsim.clock import Clock
    from cpsim.net.http.messages import Headers

C = TypeVar("C")
MAX_HEAD_BYTES: Final = 2**20
MOST_HEADERS: Final = 1_000
FEW: Final = 3
"""With fewer connections, to wait for the end of a turn costs more than it saves, as measured."""
TARGETS_KEPT: Final = 256
HEADS_KEPT: Final = 256
STAYING: Final = {b"connection", b"proxy-connection"}
"""Without one of these, HTTP/1.0 does not stay anyway; the version takes long to read."""
METHODS: Final = {b"GET": "GET", b"POST": "POST"}
QUIET_S: Final = 60.0
LONGEST_TARGET: Final = 1_024
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
"""Not uvicorn's own, which a program that has a fake may use, too."""
LOGGER.addFilter(Seldom())


class _Flow(FlowControl):
    """Reads no more while requests wait: uvicorn reads on with every request that it begins, and so without end."""

    def __init__(self, transport: Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read on, if all that was read has begun."""
        if not self._waiting:
            super().resume_reading()


class Prompt(Protocol[C]):
    """An ASGI application that can do without."""

    def at_once(self, request: Request) -> Response | C | None:
        """The answer to a whole request, or a command to `finish`; None if the answer must be waited for."""

    def finish(self, commands: Sequence[C]) -> Sequence[Response]:
        """The answers to commands, one for each, in their order."""


class Turn(Generic[C]):
    """The commands that came in one step of the event loop: to finish them together takes a fraction of the time."""

    def __init__(self, app: Prompt[C]) -> None:
        self.app = app
        self._connections: list[ServerConnection] = []
        self._commands: list[C] = []

    def add(self, connection: ServerConnection, command: C) -> None:
        """Finish a command in this turn, and send the answer over a connection."""
        self._connections.append(connection)
        self._commands.append(command)
        if len(connection.connections) < FEW:
            self.end()
        elif len(self._commands) == 1:
            connection.loop.call_soon(self.end)

    def end(self) -> None:
        """Finish and answer what has come."""
        if not self._commands:
            return
        connections, commands = self._connections, self._commands
        self._connections, self._commands = [], []
        try:
            responses = self.app.finish(commands)
        except Exception:
            LOGGER.exception("Exception in the application")
            responses = [FAILED] * len(commands)
        for connection, response in zip(connections, responses, strict=True):
            connection.answer(response)


class ServerConnection(HttpToolsProtocol):
    """Serves a `Prompt` application.

    Args:
        config: uvicorn's, with the application.
        state: the server's, which knows all connections.
        shared: what requests find in their scopes.
        turn: of all connections of an event loop.
    """

    _body: bytes | None = None
    """That of the request which is only noted, as far as it has come; None while there is none."""
    _asked: tuple[str, str, bytes]
    """Its method, path and query."""
    _head_size: int | None = None
    """How many bytes there are of a head that has not ended."""
    _idle_since_s: float | None = None
    """When the last request was answered at once; None when something came after it."""
    _idle_timer: TimerHandle | None = None
    _stays: bool
    """Whether the connection is kept when the request has been answered."""
    _in_turn = False
    """Whether a command waits for the end of the turn."""

    def __init__(self, config: Config, state: ServerState, shared: dict[str, Any], turn: Turn[Any]) -> None:
        super().__init__(config, state, shared)
        self._turn = turn

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # noqa: D102 - inherited
        self.logger = LOGGER
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - inherited
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:  # noqa: D102 - inherited
        self._idle_since_s = None
        super().data_received(data)
        if self._head_size is not None and not self.transport.is_closing():
            self._head_size += len(data)
            if self._head_size > MAX_HEAD_BYTES:
                self.send_400_response(f"The head of the request is over {MAX_HEAD_BYTES} bytes.")
        if self.headers and len(self.headers) > MOST_HEADERS and not self.transport.is_closing():
            self.send_400_response(f"The request has over {MOST_HEADERS} headers and trailers.")

    def eof_received(self) -> None:  # noqa: D102 - inherited
        self._end_turn()

    def send_400_response(self, msg: str) -> None:  # noqa: D102 - inherited
        self._end_turn()
        super().send_400_response(msg)

    def on_message_begin(self) -> None:  # noqa: D102 - inherited
        self._end_turn()
        self._head_size = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:  # noqa: D102 - inherited
        self._head_size = None
        method = METHODS.get(self.parser.get_method())
        target = _target(self.url) if len(self.url) <= LONGEST_TARGET else None
        if (
            method is None
            or target is None
            or (self.cycle is not None and not self.cycle.response_complete)
            or self.expect_100_continue
            or self.parser.should_upgrade()
            or self.transport.get_write_buffer_size() > HIGH_WATER_LIMIT  # then uvicorn lets it wait
        ):
            self._hand_over()
        else:
            self._body = b""
            self._asked = method, *target

    def on_body(self, body: bytes) -> None:  # noqa: D102 - inherited
        if self._body is None:
            super().on_body(body)
            return
        self._body += body
        if len(self._body) > HIGH_WATER_LIMIT:
            self._hand_over()

    def on_message_complete(self) -> None:  # noqa: D102 - inherited
        if self.transport.is_closing():
            self._body = None  # it was told that there is no more
            return
        if self._body is not None:
            request = Request(*self._asked, dict(self.headers), self._body)
            answer = self._ask(request)
            if answer is not None:
                self._body = None
                self._stays = self.parser.should_keep_alive() and (
                    STAYING.isdisjoint(request.headers) or self.parser.get_http_version() != "1.0"
                )
                if isinstance(answer, Response):
                    self._send(answer)
                else:
                    self._in_turn = True
                    self._turn.add(self, answer)
                return
            self._hand_over()
        super().on_message_complete()

    def answer(self, response: Response) -> None:
        """Answer the command that waits."""
        self._in_turn = False
        if not self.transport.is_closing():
            self._send(response)

    def shutdown(self) -> None:  # noqa: D102 - inherited
        self._end_turn()
        if self._body is not None:
            self._hand_over()  # what has begun is answered
        super().shutdown()

    def _hand_over(self) -> None:
        """Let uvicorn have the request."""
        body, self._body = self._body, None
        begun = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = begun
        self.scope["headers"] = self.headers
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _end_turn(self) -> None:
        """Answer what has come before anything else is sent."""
        if self._in_turn:
            self._turn.end()

    def _ask(self, request: Request) -> Any:  # noqa: ANN401 - a response, or a command of the application's
        try:
            return self._turn.app.at_once(request)
        except Exception:
            self.logger.exception("Exception in the application")
            return FAILED

    def _send(self, response: Response) -> None:
        stays = self._stays and response is not FAILED
        head = _head(response.status, response.content_type, len(response.body), response.headers, stays)
        self.transport.write(head + response.body)
        if not stays:
            self.transport.close()
            return
        self._idle_since_s = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        """Close what has been idle for long; one timer at a time, for a timer a request would cost a tenth of it."""
        self._idle_timer = None
        if self._idle_since_s is not None:
            left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
            if left_s > 0:
                self._idle_timer = self.loop.call_later(left_s, self._close_if_idle)
            else:
                self.timeout_keep_alive_handler()


@lru_cache(HEADS_KEPT)
def _head(status: int, content_type: bytes, length: int, headers: Headers, stays: bool) -> bytes:  # noqa: FBT001
    """What comes before the body of a response."""
    lines = [(b"content-type", content_type), (b"content-length", b"%d" % length), *headers]
    if not stays:
        lines.append((b"connection", b"close"))
    return STATUS_LINE[status] + b"".join(b"%s: %s\r\n" % line for line in lines) + b"\r\n"


@lru_cache(TARGETS_KEPT)
def _target(url: bytes) -> tuple[str, bytes] | None:
    """The path and the query of a request's target, if it is as plain as most are."""
    if url.startswith(b"//") or not url.startswith(b"/") or b"%" in url or b"#" in url or not url.isascii():
        return None
    path, _, query = url.partition(b"?")
    return path.decode(), query
