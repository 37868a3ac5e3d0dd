"""An HTTP server: an application on bound sockets, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import errno
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic

import uvloop

from cpsim.net.http.application import C
from cpsim.net.http.connection import Connection
from cpsim.net.http.shared import Limits, Shared
from cpsim.net.listen import BACKLOG
from cpsim.net.refusal import refusing
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cpsim.net.http.application import Application
    from cpsim.net.tls import ServerCertificate

ACCEPTS_A_STEP: Final = 100
FINISH_S: Final = 1.0
"""The time for requests in progress when the server stops."""
CALL_S: Final = 10.0
"""The time that a call into the loop may wait for a request to be answered."""
NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
RETRY_S: Final = 0.1
"""The time until a connection is accepted when there is no room for it, and none can be made."""


class Carrier(Generic[C]):
    """Serves an application over HTTP/1.1 with keep-alive.

    Once started, it accepts no connection before `accept`. Where no descriptor is left for a new connection, it closes
    the one that has been idle longest.

    Args:
        app: the application.
        sockets: bound ones; closed by `stop`.
        name: of its thread.
        limits: of its connections.
        new_loop: makes the event loop, whose time is that of the connections.
        tls: the certificate with which its connections speak TLS.
    """

    def __init__(
        self,
        app: Application[C],
        sockets: list[socket.socket],
        name: str,
        *,
        limits: Limits | None = None,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
        tls: ServerCertificate | None = None,
    ) -> None:
        self._app = app
        self._tls = tls
        self._sockets = sockets
        self._limits = Limits() if limits is None else limits
        self._new_loop = new_loop
        self._accepting = False
        self._opening: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._thread = Thread(self._run, name)

    def start(self) -> None:
        """Start the thread."""
        self._loop = self._new_loop()
        self._shared = Shared(self._app, self._limits, self._loop)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, finish the requests in progress, and close."""
        with suppress(RuntimeError):  # the loop has ended by an error
            self._loop.call_soon_threadsafe(self._shared.stopping.set)
        self._thread.join()

    def check(self) -> None:
        """Raise ThreadFailed if the server has ended by an unexpected error."""
        self._thread.check()

    def fail(self, error: BaseException) -> None:
        """Stop with an unexpected error, which `check` then raises; called in the loop."""
        self._error = self._error or error
        self._shared.stopping.set()

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the loop: before returning, or in the loop's next step if this is the loop's thread.

        Raises:
            TimeoutError: the loop is held up by a request.
        """
        if threading.current_thread() is self._thread:
            self.call_later(0, function)
        elif self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(_called(function), self._loop).result(CALL_S)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop's next step, unless the server has ended; called from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function)

    def call_later(self, delay_s: float, function: Callable[[], object]) -> asyncio.TimerHandle:
        """Call a function in the loop after a delay; its error ends the server. Called in the loop."""

        def call() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001 - `check` raises it
                self.fail(error)

        return self._loop.call_later(delay_s, call)

    def accept(self) -> None:
        """Accept connections from now on; called in the loop.

        Raises:
            OSError, ValueError: a socket cannot be served.
        """
        for sock in self._sockets:
            sock.setblocking(False)  # noqa: FBT003 - as the socket has it
            sock.listen(BACKLOG)
        self._accepting = True
        for sock in self._sockets:
            self._watch(sock)

    def refuse(self) -> None:
        """Refuse connections until `accept`, and close the open ones; the addresses stay bound. Called in the loop."""
        addresses = [(sock.family, sock.getsockname()) for sock in self._sockets]
        self._close_sockets()
        self._sockets = [refusing(*address) for address in addresses]
        for connection in list(self._shared.connections):
            connection.drain()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            for sock in self._sockets:
                sock.close()

    async def _serve(self) -> None:
        shared = self._shared
        await shared.stopping.wait()
        self._close_sockets()
        for task in self._opening if self._tls is not None else ():
            task.cancel()  # a handshake takes as long as its client wants
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in list(shared.connections):
            connection.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(shared.empty.wait(), FINISH_S)
        for connection in list(shared.connections):
            connection.abort()
        if shared.tasks:
            await asyncio.wait(shared.tasks, timeout=FINISH_S)  # they find their clients gone, and end
        if self._error is not None:
            raise self._error

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            if self._accepting:
                self._loop.remove_reader(sock)
            sock.close()
        self._accepting = False

    def _watch(self, sock: socket.socket) -> None:
        if self._accepting and sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        """Accept the connections that wait; to do so here, and not in the loop, tells when there is no room."""
        for number in range(ACCEPTS_A_STEP):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    continue  # the client has gone
                if not number and not self._shared.make_room():  # a full table is reported even if no client waits
                    self._loop.remove_reader(listening)
                    self._loop.call_later(RETRY_S, self._watch, listening)
                return
            sock.setblocking(False)  # noqa: FBT003 - as the socket has it
            task = self._loop.create_task(self._open(sock))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket) -> None:
        try:
            context, handshake_s = (None, None) if self._tls is None else (self._tls.context, self._limits.handshake_s)
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._shared), sock, ssl=context, ssl_handshake_timeout=handshake_s
            )
        except OSError:  # the client has gone, or does not trust the certificate
            sock.close()


async def _called(function: Callable[[], object]) -> None:
    function()
