"""One HTTP/1.1 connection: requests are answered in their order, and what is waited for is bounded.

A request is handed to the application once it is whole. Most are answered in the step in which they are complete, or
at the end of that step together with others like them; an answer that must be waited for is waited for in a task.
Meanwhile, further requests of the connection wait, and no more than a buffer of them is read.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from cpsim.net.http.heads import head
from cpsim.net.http.messages import Cut, Ending, Failure, Request, Response
from cpsim.net.http.reader import BODY, HEAD, RequestReader
from cpsim.net.http.shared import FAILED, LOGGER

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from cpsim.net.http.application import Answer
    from cpsim.net.http.shared import Shared

GO_ON: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET: Final = struct.pack("ii", 1, 0)
"""Linger for zero seconds: closing resets the connection."""


class Connection(asyncio.Protocol):
    """A connection; it is the `Caller` of its requests.

    Args:
        shared: what it shares with the server's other connections.
    """

    transport: asyncio.Transport
    _timer: asyncio.TimerHandle

    def __init__(self, shared: Shared[Any]) -> None:
        self._shared = shared
        self._loop = shared.loop
        self._reader = RequestReader(shared.limits, self._end_turn, self._take)
        self._began_s: float | None = None
        """Since when the rest of a request is waited for; None if what there is has come in this step."""
        self._is_busy = False
        self._is_head = False
        self._in_turn = False
        """Whether a command waits for the end of the step."""
        self._waiting: deque[Request | Response] = deque()
        self._waiting_bytes = 0
        """Of the bodies of requests that wait, or whose answer is waited for."""
        self._held_bytes = 0
        """What the server counts of this connection."""
        self._left: asyncio.Event | None = None
        self._is_leaving = False
        self._lingers = False
        """Whether the client may still be sending when the connection ends."""
        self._is_choked = False
        """Whether the client does not read its answers."""
        self._is_paused = False
        self._idle_since_s = 0.0
        """When the last answer was written."""
        self._unsent = 0, 0.0
        """Bytes that the client had not read when the time was last checked, and when they were written."""

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102 - inherited
        self.transport = transport
        self._shared.add(self)
        self._idle_since_s = self._loop.time()
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - inherited
        del exc
        self._shared.remove(self)
        self._timer.cancel()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._reader.close()
        self._count_held()
        self._leave()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - inherited
        if self._reader.is_last:
            return
        try:
            self._reader.feed(data)
        except Failure as failure:
            self._refuse(failure)
            return
        if self._reader.part:
            self._note_unfinished()
        elif self._held_bytes != self._waiting_bytes:
            self._count_held()

    def eof_received(self) -> None:  # noqa: D102 - inherited
        self._end_turn()

    def pause_writing(self) -> None:  # noqa: D102 - inherited
        self._is_choked = True
        self._set_reading()

    def resume_writing(self) -> None:  # noqa: D102 - inherited
        self._is_choked = False
        self._idle_since_s = self._loop.time()
        self._go_on()

    # For the application and the server

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the server stops."""
        return self._shared.stopping

    async def left(self) -> None:
        """Return when the client has left, or when the connection is to end."""
        if not self._is_leaving:
            self._left = asyncio.Event()
            await self._left.wait()

    @property
    def age(self) -> tuple[bool, float] | None:
        """Whether a request has begun, and since when the client is waited for; None while the server has to do."""
        if self._is_busy or self._waiting or self.transport.get_write_buffer_size():
            return None
        return (False, self._idle_since_s) if self._began_s is None else (True, self._began_s)

    def close(self) -> None:
        """Close the connection when what was answered has been sent."""
        self._reader.is_last = True
        self._waiting.clear()
        self.transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self.transport.abort()

    def drain(self) -> None:
        """Close the connection when the requests have been answered whose heads have been read."""
        self._end_turn()
        self._leave()
        if self._reader.part is BODY:
            self._reader.ends_soon = True
        elif self._is_busy or self._waiting:
            self._reader.is_last = True
        else:
            self.close()

    def finish(self, answer: Answer) -> None:
        """Send the answer to the request in hand, and go on with the next."""
        self._is_busy = self._in_turn = False
        self._send(answer)
        if self._waiting or self._reader.part:
            self._loop.call_soon(self._go_on)

    def _leave(self) -> None:
        self._is_leaving = True
        if self._left is not None:
            self._left.set()

    # Requests

    def _take(self, request: Request) -> None:
        """Handle a request, or have it wait for its turn."""
        self._began_s = None
        if self._is_busy or self._is_choked or self._waiting:
            self._waiting.append(request)
            self._waiting_bytes += len(request.body)
            self._set_reading()
        else:
            self._handle(request)

    def _handle(self, request: Request) -> None:
        self._is_head = request.method == "HEAD"
        try:
            answer = self._shared.app.answer(request, self)
        except Exception:  # noqa: BLE001 - it is logged
            LOGGER.exception("Exception in the application")
            answer = FAILED
        if isinstance(answer, (Response, Cut, Ending)):
            self._send(answer)
            return
        self._is_busy = True
        if isinstance(answer, CoroutineType):
            self._waiting_bytes += len(request.body)
            task = self._loop.create_task(self._wait(answer, len(request.body)))
            self._shared.tasks.add(task)
            task.add_done_callback(self._shared.tasks.discard)
        else:
            self._in_turn = True
            self._shared.finish_later(self, answer)

    async def _wait(self, coroutine: Coroutine[Any, Any, Answer], body_bytes: int) -> None:
        """Give an answer that must be waited for."""
        try:
            answer = await coroutine
        except Exception:  # noqa: BLE001 - it is logged
            LOGGER.exception("Exception in the application")
            answer = FAILED
        if not self.transport.is_closing():
            self._waiting_bytes -= body_bytes
            self._count_held()
        self.finish(answer)

    def _go_on(self) -> None:
        """Handle the requests that wait, until one of them has to be waited for."""
        while self._waiting and not self._is_busy and not self._is_choked:
            request = self._waiting.popleft()
            if isinstance(request, Request):
                self._waiting_bytes -= len(request.body)
                self._handle(request)
            else:
                self._is_head = False
                self._send(request)
        self._count_held()
        self._set_reading()
        self._tell_to_go_on()
        if self._began_s is not None:
            self._began_s = self._loop.time()

    def _end_turn(self) -> None:
        """Answer what has come before anything else is sent."""
        if self._in_turn:
            self._shared.finish()

    def _send(self, answer: Answer) -> None:
        """Send an answer, and end the connection if that was the last."""
        transport = self.transport
        if transport.is_closing():
            return
        if not isinstance(answer, Response):
            self._end(answer)
            return
        if answer is FAILED:
            self._waiting.clear()
            self._reader.is_last = self._lingers = True
        closes = self._reader.is_last and not self._waiting
        first = head(answer.status, answer.content_type, len(answer.body), answer.headers, closes)
        transport.write(first if self._is_head else first + answer.body)
        self._idle_since_s = self._loop.time()
        if not closes:
            return
        if self._lingers:
            if transport.can_write_eof():  # which TLS cannot
                transport.write_eof()
            self._set_reading()
            self._timer.cancel()
            self._timer = self._loop.call_later(self._shared.limits.linger_s, transport.abort)
        else:
            transport.close()

    def _end(self, answer: Cut | Ending) -> None:
        """End the connection without an answer, or with a part of one."""
        if isinstance(answer, Cut):
            response = answer.response
            first = head(response.status, response.content_type, len(response.body), response.headers, False)  # noqa: FBT003 - faster
            self.transport.write(first + response.body[: len(response.body) // 2])
        if answer is Ending.RESET:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        self.close()

    # Limits

    def _refuse(self, failure: Failure) -> None:
        """Refuse the request that is read, and read no other."""
        LOGGER.warning(str(failure))
        self._end_turn()
        self._reader.forget()
        self._began_s = None
        self._reader.is_last = self._lingers = True
        self._waiting.append(self._shared.app.refusal(failure.status, str(failure)))
        self._go_on()

    def _note_unfinished(self) -> None:
        """Note that a request is not whole after a step."""
        if self._count_held() > self._shared.limits.held_bytes:
            self._refuse(Failure(503, "the server holds too much of requests that are not whole; try again"))
            return
        if self._began_s is None:
            self._began_s = self._loop.time()
        self._tell_to_go_on()

    def _count_held(self) -> int:
        """Count what is held of this connection's requests; returns the bytes over all connections."""
        held_bytes = self._waiting_bytes + self._reader.held_bytes
        self._shared.held_bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes
        return self._shared.held_bytes

    def _tell_to_go_on(self) -> None:
        if self._is_busy or self._is_choked or self._waiting or self.transport.is_closing():
            return
        if self._reader.wants_to_go_on():
            self.transport.write(GO_ON)

    def _set_reading(self) -> None:
        """Read, unless requests wait or answers are not read: who pipelines and reads nothing is not read from."""
        pauses = (bool(self._waiting) or self._is_choked) and not self._lingers
        if pauses is self._is_paused or self.transport.is_closing():
            return
        self._is_paused = pauses
        if pauses:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # Time

    def _set_timer(self, left_s: float = inf) -> None:
        """One timer at a time, for a timer for each request would cost a tenth of it; no deadline comes before it."""
        limits = self._shared.limits
        delay_s = min(left_s, limits.idle_s, limits.head_s, limits.request_s)
        self._timer = self._loop.call_later(delay_s, self._check_time)

    def _check_time(self) -> None:
        """Close what has been idle for long, and refuse what is not whole in time."""
        limits, unsent_bytes = self._shared.limits, self.transport.get_write_buffer_size()
        left_s = inf
        if self._is_busy or self._waiting or unsent_bytes:
            if unsent_bytes and self._unsent == (unsent_bytes, self._idle_since_s):
                self.abort()  # the client reads nothing
                return
        elif self._began_s is None:
            left_s = self._idle_since_s + limits.idle_s - self._loop.time()
            if left_s <= 0:
                self.close()
                return
        else:
            limit_s = limits.head_s if self._reader.part is HEAD else limits.request_s
            left_s = self._began_s + limit_s - self._loop.time()
            if left_s <= 0:
                self._refuse(Failure(408, f"The request was not whole in {limit_s:g} seconds."))
                return
        self._unsent = unsent_bytes, self._idle_since_s
        self._set_timer(left_s)
