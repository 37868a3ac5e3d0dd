"""One HTTP connection: uvicorn's, which answers at once what can be answered at once.

For each request uvicorn starts a task, which exchanges events with the application. That is for requests whose
bodies or answers must be waited for. One that is soon here whole, and whose answer needs no waiting, is answered in
the step in which it is complete, in half the time. Until then it is only noted, so that uvicorn can still take it
over. All others, and all else that HTTP asks for, are uvicorn's from the beginning.
"""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cpsim.server.messages import Request, Response

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport
    from collections.abc import Sized

    from cpsim.server.messages import Headers

MAX_HEAD_BYTES: Final = 2**20
MOST_HEADERS: Final = 1_000
TARGETS_KEPT: Final = 256
HEADS_KEPT: Final = 256
QUIET_S: Final = 60.0
LONGEST_TARGET: Final = 1_024
FAILED: Final = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error", b"text/plain; charset=utf-8")


class _Seldom(logging.Filter):
    """Lets a warning through once a minute: who sends rubbish is answered, and does not fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        now_s = time.monotonic()
        if record.levelno > logging.WARNING or now_s >= self._quiet_until_s.get(record.msg, 0.0):
            self._quiet_until_s[record.msg] = now_s + QUIET_S
            return True
        return False


LOGGER: Final = logging.getLogger("cpsim.http")
"""Not uvicorn's own, which a program that has a fake may use, too."""
LOGGER.addFilter(_Seldom())


class _Flow(FlowControl):
    """Reads no more while requests wait: uvicorn reads on with every request that it begins, and so without end."""

    def __init__(self, transport: Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read on, if all that was read has begun."""
        if not self._waiting:
            super().resume_reading()


class Prompt(Protocol):
    """An ASGI application that can do without."""

    def at_once(self, request: Request) -> Response | None:
        """The answer to a whole request, or None if it must be waited for."""


class Connection(HttpToolsProtocol):
    """Serves a `Prompt` application."""

    _body: bytes | None = None
    """That of the request which is only noted, as far as it has come; None while there is none."""
    _head_size: int | None = None
    """How many bytes there are of a head that has not ended."""
    _idle_since_s: float | None = None
    """When the last request was answered at once; None when something came after it."""
    _idle_timer: TimerHandle | None = None

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

    def on_message_begin(self) -> None:  # noqa: D102 - inherited
        self._head_size = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:  # noqa: D102 - inherited
        self._head_size = None
        if self._is_plain():
            self._body = b""
        else:
            self._hand_over()

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
            response = self._answer(self._body)
            if response is not None:
                self._body = None
                self._send(response)
                return
            self._hand_over()
        super().on_message_complete()

    def shutdown(self) -> None:  # noqa: D102 - inherited
        if self._body is not None:
            self._hand_over()  # what has begun is answered
        super().shutdown()

    def _is_plain(self) -> bool:
        """Whether nothing about a request needs uvicorn."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and self.transport.get_write_buffer_size() <= HIGH_WATER_LIMIT  # else uvicorn lets it wait
            and self.parser.get_method() in {b"GET", b"POST"}
            and len(self.url) <= LONGEST_TARGET
            and _target(self.url) is not None
        )

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

    def _answer(self, body: bytes) -> Response | None:
        target = _target(self.url)
        assert target is not None
        request = Request(self.parser.get_method().decode(), *target, dict(self.headers), body)
        app: Prompt = self.config.app  # type: ignore[assignment]
        try:
            return app.at_once(request)
        except Exception:
            self.logger.exception("Exception in the application")
            return FAILED

    def _send(self, response: Response) -> None:
        stays = response is not FAILED and self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
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
