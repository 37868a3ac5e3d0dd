"""The proxy: every connection to it is one to the target, and every byte passes unchanged, both ways.

Who has sent all closes its half, and so does the proxy toward the other; who resets is passed on as a reset. Nobody is
read from while the other does not keep up, so that a connection holds a few buffers and no more. While the target
refuses connections, the proxy does, too: it stops listening, and asks now and then whether the target is back.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpsim.daemon.site import address_of
from cpsim.errors import CpsimError
from cpsim.net.addresses import BACKLOG, listen_tcp, listen_unix
from cpsim.record.exchanges import FrameExchange, Http, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cpdaemon.endpoint import Endpoint
    from cpsim.record.exchanges import Exchange
    from cpsim.record.recording import Recording

GRACE_S: Final = 1.0
"""How long connections under way may take to end when the proxy is told to stop; a second signal ends them at once."""
PROBE_S: Final = 0.1
"""How often a target that refused is asked whether it is back."""
PATIENCE_S: Final = 1.0
RESET: Final = struct.pack("ii", 1, 0)
ABSENT: Final = (ConnectionRefusedError, FileNotFoundError)


log = logging.getLogger(__name__)


class RecorderFailed(CpsimError):
    """The recorder met an error that nobody expected; what it had recorded until then is whole."""


def record(
    listen: UnixEndpoint | TcpEndpoint, target: Endpoint, recording: Recording, on_ready: Callable[[str], None]
) -> None:
    """Stand in front of a target, and record what passes, until SIGINT or SIGTERM.

    Args:
        listen: where; port 0 takes a free one.
        target: a daemon, of one-shot connections, or a server.
        recording: takes the traffic; it is not closed.
        on_ready: called with `KIND ADDRESS` once connections are taken, or would be if the target took them.

    Raises:
        OSError: the address cannot be listened at.
        RecorderFailed: the recorder met an error that nobody expected.
    """
    proxy = _Proxy(listen, target, recording)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(proxy.serve(on_ready))
    finally:
        if isinstance(listen, UnixEndpoint) and proxy.has_listened:
            Path(listen.path).unlink(missing_ok=True)


class _Proxy:
    """The listening socket, and the connections under way."""

    def __init__(self, listen: UnixEndpoint | TcpEndpoint, target: Endpoint, recording: Recording) -> None:
        self._listen = listen
        self._target = target
        self._session = Session(recording)
        self._tls = (
            ssl.create_default_context() if isinstance(target, UrlEndpoint) and target.scheme == "https" else None
        )
        self._server: asyncio.AbstractServer | None = None
        self._relays: set[_Relay] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._absent = False
        self.has_listened = False
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._failure: BaseException | None = None

    async def serve(self, on_ready: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._note)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        self._session.recording.on_failure = self._stop
        await self._open()
        self.has_listened = True
        if not await self._is_there():
            print(f"cpsim: {self._target} takes no connections; until it does, none are taken here", file=sys.stderr)
            self.target_is_absent()
        on_ready(self._address())
        await self._stopped.wait()
        self._close()
        await self._end_of_all()
        for relay in list(self._relays):
            relay.reset()
        await self._end_of_all()
        if isinstance(self._failure, OSError):
            raise self._failure
        if self._failure is not None:
            raise RecorderFailed(f"{type(self._failure).__name__}: {self._failure}") from self._failure

    def exchange(self) -> Exchange:
        """What hears a new connection."""
        return Http(self._session) if isinstance(self._target, UrlEndpoint) else FrameExchange(self._session)

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect to the target."""
        loop, target = asyncio.get_running_loop(), self._target
        if isinstance(target, UnixEndpoint):
            await loop.create_unix_connection(protocol, target.path)
        else:
            await loop.create_connection(protocol, target.host, target.port, ssl=self._tls)

    def begin(self, relay: _Relay) -> None:
        """A connection is under way."""
        self._relays.add(relay)
        relay.connecting = self.start(relay.connect())

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done meanwhile."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a connection could not do is its own affair; any other error is one of the recorder's."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            loop.default_exception_handler(context)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End with an error that nobody expected: what would be recorded from here on might be wrong."""
        if self._failure is None:
            log.critical("the recorder failed", exc_info=error)
            self._failure = error
            self._stop()

    def ended(self, relay: _Relay) -> None:
        """A connection is over; what was said on it is written."""
        self._relays.discard(relay)
        relay.exchange.end()
        if not self._relays:
            self._idle.set()

    def target_is_absent(self) -> None:
        """Take no connections while the target takes none."""
        if not self._absent and not self._stopped.is_set():
            self._absent = True
            self._close()
            self.start(self._reopen())

    async def _reopen(self) -> None:
        while not await self._is_there():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await self._stopped.wait()
            if self._stopped.is_set():
                return
        try:
            await self._open()
        except OSError as error:
            self._failure = error
            self._stop()
        self._absent = False

    async def _is_there(self) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.connect(_Probe)
        except ABSENT:
            return False
        except OSError:  # whatever else is wrong, and that it takes its time, clients are to see
            return True
        return True

    async def _open(self) -> None:
        loop, listen = asyncio.get_running_loop(), self._listen
        protocol = lambda: _Client(self)  # noqa: E731 - nothing to say twice
        if isinstance(listen, UnixEndpoint):
            sock = listen_unix(Path(listen.path))
            self._server = await loop.create_unix_server(protocol, sock=sock, backlog=BACKLOG)
        else:
            sock = listen_tcp(listen.host, listen.port)
            self._listen = TcpEndpoint(listen.host, sock.getsockname()[1])
            self._told = address_of(sock)
            self._server = await loop.create_server(protocol, sock=sock, backlog=BACKLOG)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _address(self) -> str:
        if isinstance(self._listen, UnixEndpoint):
            return f"unix {self._listen}"
        if isinstance(self._target, UrlEndpoint):
            return f"http http://{self._told}{self._target.path}"
        return f"tcp {self._told}"

    def _stop(self) -> None:
        if self._stopped.is_set():
            for relay in list(self._relays):
                relay.reset()
        self._stopped.set()

    async def _end_of_all(self) -> None:
        """Wait, not for long, until all connections have ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while self._relays:
                    self._idle.clear()
                    await self._idle.wait()


class _Probe(asyncio.Protocol):
    """Looks whether somebody takes connections, and says nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Side(asyncio.Protocol):
    """One end of a connection; what it hears goes to the other, once that is there."""

    __slots__ = ("early", "ended", "hear", "lost", "other", "relay", "transport")

    other: _Side
    relay: _Relay
    hear: Callable[[bytes], None]
    transport: Any

    def __init__(self) -> None:
        self.transport = None
        self.early = b""
        self.ended = self.lost = False

    def data_received(self, data: bytes) -> None:
        self.hear(data)
        if self.other.transport is None:
            self.early += data
            self.transport.pause_reading()
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        self.pass_on_end()
        return True

    def pass_on_end(self) -> None:
        """Tell the other, if it is there, that nothing more comes from here."""
        other = self.other
        if other.transport is None:
            return
        if other.lost:
            self.transport.close()
        elif other.ended:
            self.transport.close()
            other.transport.close()
        elif other.transport.can_write_eof():
            other.transport.write_eof()
        else:
            other.transport.close()  # TLS has no half that could be closed

    def pause_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.relay.lost(self.other, error)

    def reset(self) -> None:
        """Break off."""
        if self.transport is not None and not self.lost:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()


class _Client(_Side):
    """The end of who connected to the proxy."""

    __slots__ = ("_proxy",)

    def __init__(self, proxy: _Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.relay = _Relay(self._proxy, self)
        self._proxy.begin(self.relay)


class _Target(_Side):
    """The end of the target."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        client = self.other
        if client.lost:
            self.reset()
            return
        if client.early:
            self.transport.write(client.early)
            client.early = b""
        if client.ended:
            client.pass_on_end()
        else:
            client.transport.resume_reading()


class _Relay:
    """A connection: its two ends, and what is said between them."""

    __slots__ = ("_client", "_proxy", "_target", "connecting", "exchange")

    connecting: asyncio.Task[None]

    def __init__(self, proxy: _Proxy, client: _Client) -> None:
        self._proxy = proxy
        self.exchange = proxy.exchange()
        self._client, self._target = client, _Target()
        self._client.other, self._target.other = self._target, self._client
        self._target.relay = self
        self._client.hear, self._target.hear = self.exchange.asked, self.exchange.answered

    async def connect(self) -> None:
        """Connect to the target; where it cannot be, or is not waited for, the client is reset."""
        try:
            await self._proxy.connect(lambda: self._target)
        except (OSError, asyncio.CancelledError) as error:
            self._target.lost = True
            if isinstance(error, ABSENT):
                self._proxy.target_is_absent()
            if self._client.lost:
                self._proxy.ended(self)
            else:
                self._client.reset()

    def lost(self, other: _Side, error: Exception | None) -> None:
        """One end is gone: so is the other, in the same way."""
        if other.lost:
            self._proxy.ended(self)
        elif error is not None:
            other.reset()
        elif other.transport is not None:
            other.transport.close()

    def reset(self) -> None:
        """Break off both ends."""
        self.connecting.cancel()
        self._client.reset()
        self._target.reset()
