"""An ASGI application on bound sockets, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final, cast

import uvicorn
import uvloop
from uvicorn.server import ServerState

if TYPE_CHECKING:
    import socket

    from uvicorn._types import ASGIApplication

    from cpsim.server.http import Api

KEEP_ALIVE_S: Final = 75
FINISH_S: Final = 1.0
"""How long requests under way are given when the server stops."""


class HttpServer:
    """Serves an application over HTTP/1.1 with keep-alive.

    uvicorn's protocol does the work; its own main loop is left out, because it looks only ten times a second
    whether it should stop, and a test's fixture cannot wait that long.

    Args:
        app: the application.
        sockets: bound and listening; closed by `stop`.
    """

    def __init__(self, app: Api, sockets: list[socket.socket]) -> None:
        self._config = uvicorn.Config(
            cast("ASGIApplication", app),
            http="httptools",
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
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cpsim-http", daemon=True)

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

    def stop(self) -> None:
        """Stop accepting, finish the requests under way, and close."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except Exception as error:
            if self._ready.is_set():
                raise
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        state = ServerState()

        def protocol() -> asyncio.Protocol:
            return self._config.http_protocol_class(config=self._config, server_state=state, app_state={})  # type: ignore[call-arg]

        servers = [await self._loop.create_server(protocol, sock=sock) for sock in self._sockets]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        for connection in list(state.connections):
            connection.shutdown()
        deadline = self._loop.time() + FINISH_S
        while state.connections and self._loop.time() < deadline:  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.001)
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=FINISH_S)  # they find their clients gone, and end
