"""Serves an ASGI application on bound sockets, in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import uvicorn
import uvloop
from uvicorn.server import ServerState

from cpsim.faults.plan import FaultPlan
from cpsim.net.http.connection import ServerConnection, Turn
from cpsim.net.refusal import refusing
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvicorn._types import ASGIApplication

    from cpsim.server.http import Api

BACKLOG: Final = 4096
KEEP_ALIVE_S: Final = 75
FINISH_S: Final = 1.0
"""The time for requests in progress when the server stops."""


class HttpServer:
    """Serves an application over HTTP/1.1 with keep-alive.

    It runs uvicorn's protocol without uvicorn's main loop, which checks only ten times a second whether to stop: too
    slow for a test's fixture.

    Args:
        app: the application. Its scope's state holds `stopping`, an event.
        sockets: bound and listening; closed by `stop`.
        faults: the plan, for refused connections.
        new_loop: makes the event loop, whose time is that of connections and of faults that come and go.
    """

    def __init__(
        self,
        app: Api,
        sockets: list[socket.socket],
        faults: FaultPlan | None = None,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
    ) -> None:
        self._config = uvicorn.Config(
            cast("ASGIApplication", app),
            http=ServerConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._sockets = sockets
        self._new_loop = new_loop
        self._faults = FaultPlan() if faults is None else faults
        self._servers: list[asyncio.Server] = []
        self._down: bool | None = None
        self._state = ServerState()
        self._turn = Turn(app)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = Thread(self._run, "cpsim-http")

    def start(self) -> None:
        """Begin to serve; returns once connections are accepted.

        Raises:
            OSError: the sockets cannot be served.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        self._faults.watch(self._refresh)

    def stop(self) -> None:
        """Stop accepting, finish the requests in progress, and close."""
        with suppress(RuntimeError):  # the loop has ended by an error
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def check(self) -> None:
        """Raise ThreadFailed if the server has ended by an unexpected error."""
        self._thread.check()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._new_loop) as runner:
                runner.run(self._serve())
        except Exception as error:
            if self._ready.is_set():
                raise
            self._failure = error
        finally:
            for sock in self._sockets:
                sock.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._addresses = [(sock.family, sock.getsockname()) for sock in self._sockets]
        self._updating = asyncio.Lock()
        self._timer = self._loop.call_soon(lambda: None)
        self._error: BaseException | None = None
        await self._update()
        self._ready.set()
        await self._stop.wait()
        self._timer.cancel()
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        state = self._state
        for connection in list(state.connections):
            connection.shutdown()
        deadline = self._loop.time() + FINISH_S
        while state.connections and self._loop.time() < deadline:  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.001)
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=FINISH_S)  # they find their clients gone, and end
        if self._error is not None:
            raise self._error

    def _protocol(self) -> asyncio.Protocol:
        return ServerConnection(self._config, self._state, {"stopping": self._stop}, self._turn)

    def _refresh(self) -> None:
        """Apply a change of the plan of faults; from another thread, before returning."""
        if threading.current_thread() is self._thread:
            self._schedule_update()
        elif self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._update(), self._loop).result(FINISH_S)

    def _schedule_update(self) -> None:
        self._update_task = self._loop.create_task(self._update())
        self._update_task.add_done_callback(self._update_ended)

    def _update_ended(self, task: asyncio.Task[None]) -> None:
        """End the server with a task's error, which nothing else reports."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._stop.set()

    async def _update(self) -> None:
        """Accept or refuse connections by the plan of faults, now and at its next change."""
        async with self._updating:
            self._timer.cancel()
            change_s = self._faults.next_change_s("server")  # first, or a change in the meantime would be missed
            if change_s is not None:
                self._timer = self._loop.call_later(change_s, self._schedule_update)
            down = self._faults.refuses("server")
            if down and not self._down:
                for server in self._servers:
                    server.close()
                for sock in self._sockets:
                    sock.close()
                self._sockets = [refusing(*address) for address in self._addresses]
                for connection in list(self._state.connections):
                    connection.shutdown()
            elif self._down is not down:
                self._servers = [
                    await self._loop.create_server(self._protocol, sock=sock, backlog=BACKLOG) for sock in self._sockets
                ]
            self._down = down
