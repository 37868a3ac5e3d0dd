"""The proxy: one connection to the target per client connection, with every byte forwarded unchanged.

The proxy forwards half-closes and resets. It pauses reading from one side while the other does not keep up, so that a
connection holds only a few buffers. While the target refuses connections, the proxy refuses them too: it stops
listening, and probes the target every `PROBE_INTERVAL_S`.
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
from cpsim.net.addresses import listen_tcp, listen_unix
from cpsim.net.listen import BACKLOG
from cpsim.record.exchanges import FrameExchange, Http, Session
from cpsim.system.own_file import OwnFile
from cpsim.system.signals import ENDING, terminal_watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cpdaemon.endpoint import Endpoint
    from cpsim.record.exchanges import RecordedExchange
    from cpsim.record.recording import Recording

GRACE_S: Final = 1.0
"""Time for open connections to end after the first signal; a second signal resets them at once."""
PROBE_INTERVAL_S: Final = 0.1
"""Interval between probes of a target that refuses connections."""
PROBE_TIMEOUT_S: Final = 1.0
RESET: Final = struct.pack("ii", 1, 0)
NOT_LISTENING: Final = (ConnectionRefusedError, FileNotFoundError)


log = logging.getLogger(__name__)


class RecorderFailed(CpsimError):
    """An unexpected error ended the recorder; the recording until then is complete."""


def record(
    listen: UnixEndpoint | TcpEndpoint, target: Endpoint, recording: Recording, on_ready: Callable[[str], None]
) -> None:
    """Forward connections to a target, and record them, until SIGINT or SIGTERM.

    Args:
        listen: listening address; port 0 takes a free one.
        target: a daemon, with one command per connection, or a server.
        recording: receiver of the traffic; it is not closed.
        on_ready: called with `KIND ADDRESS` once the proxy listens, or would if the target accepted connections.

    Raises:
        OSError: the address cannot be bound.
        RecorderFailed: an unexpected error ended the recorder.
    """
    proxy = _Proxy(listen, target, recording)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(proxy.serve(on_ready))
    finally:
        if proxy.socket_file is not None:
            proxy.socket_file.remove()


class _Proxy:
    """The listening socket and the open connections."""

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
        self._target_is_down = False
        self.socket_file: OwnFile | None = None
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._failure: BaseException | None = None

    async def serve(self, on_ready: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        is_closed = terminal_watch()
        for number in ENDING:
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: self._stop() if is_closed() else None
        )  # there is nothing to read
        self._session.recording.on_failure = self._stop
        await self._open()
        if not await self._is_target_up():
            print(
                f"cpsim: {self._target} refuses connections; the recorder refuses them until it accepts",
                file=sys.stderr,
            )
            self.on_target_down()
        on_ready(self._address())
        await self._stopped.wait()
        self._close()
        await self._wait_for_relays()
        for relay in list(self._relays):
            relay.reset()
        await self._wait_for_relays()
        if isinstance(self._failure, OSError):
            raise self._failure
        if self._failure is not None:
            raise RecorderFailed(f"{type(self._failure).__name__}: {self._failure}") from self._failure

    def exchange(self) -> RecordedExchange:
        """Return the parser of a new connection."""
        return Http(self._session) if isinstance(self._target, UrlEndpoint) else FrameExchange(self._session)

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect to the target."""
        loop, target = asyncio.get_running_loop(), self._target
        if isinstance(target, UnixEndpoint):
            await loop.create_unix_connection(protocol, target.path)
        else:
            await loop.create_connection(protocol, target.host, target.port, ssl=self._tls)

    def begin(self, relay: _Relay) -> None:
        """Register a connection, and connect to the target."""
        self._relays.add(relay)
        relay.connecting = self.start(relay.connect())

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task whose error ends the recorder."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an OSError, which concerns one connection; any other error ends the recorder."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            loop.default_exception_handler(context)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Stop with an unexpected error: later records might be wrong."""
        if self._failure is None:
            log.critical("the recorder failed", exc_info=error)
            self._failure = error
            self._stop()

    def ended(self, relay: _Relay) -> None:
        """Record a closed connection and forget it."""
        self._relays.discard(relay)
        relay.exchange.end()
        if not self._relays:
            self._idle.set()

    def on_target_down(self) -> None:
        """Refuse connections until the target accepts them."""
        if not self._target_is_down and not self._stopped.is_set():
            self._target_is_down = True
            self._close()
            self.start(self._reopen())

    async def _reopen(self) -> None:
        while not await self._is_target_up():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_INTERVAL_S):
                    await self._stopped.wait()
            if self._stopped.is_set():
                return
        try:
            await self._open()
        except OSError as error:
            self._failure = error
            self._stop()
        self._target_is_down = False

    async def _is_target_up(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self.connect(_Probe)
        except NOT_LISTENING:
            return False
        except OSError:  # clients see other errors and timeouts themselves
            return True
        return True

    async def _open(self) -> None:
        loop, listen = asyncio.get_running_loop(), self._listen
        protocol = lambda: _Client(self)  # noqa: E731 - used twice
        if isinstance(listen, UnixEndpoint):
            sock = listen_unix(Path(listen.path))
            self.socket_file = OwnFile(Path(listen.path))
            self._server = await loop.create_unix_server(protocol, sock=sock, backlog=BACKLOG)
        else:
            sock = listen_tcp(listen.host, listen.port)
            self._listen = TcpEndpoint(listen.host, sock.getsockname()[1])
            self._tcp_address = address_of(sock)
            self._server = await loop.create_server(protocol, sock=sock, backlog=BACKLOG)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _address(self) -> str:
        if isinstance(self._listen, UnixEndpoint):
            return f"unix {self._listen}"
        if isinstance(self._target, UrlEndpoint):
            return f"http http://{self._tcp_address}{self._target.path}"
        return f"tcp {self._tcp_address}"

    def _stop(self) -> None:
        if self._stopped.is_set():
            for relay in list(self._relays):
                relay.reset()
        self._stopped.set()

    async def _wait_for_relays(self) -> None:
        """Wait up to `GRACE_S` until all connections have ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while self._relays:
                    self._idle.clear()
                    await self._idle.wait()


class _Probe(asyncio.Protocol):
    """Connects and closes at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Side(asyncio.Protocol):
    """One end of a connection; its bytes go to the other end, once that is connected."""

    __slots__ = ("buffered", "ended", "lost", "other", "record", "relay", "transport")

    other: _Side
    relay: _Relay
    record: Callable[[bytes], None]
    transport: Any

    def __init__(self) -> None:
        self.transport = None
        self.buffered = b""
        self.ended = self.lost = False

    def data_received(self, data: bytes) -> None:
        self.record(data)
        if self.other.transport is None:
            self.buffered += data
            self.transport.pause_reading()
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        self.forward_eof()
        return True

    def forward_eof(self) -> None:
        """Forward the end of the stream to the other end, if that is connected."""
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
            other.transport.close()  # TLS has no half-close

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
        """Reset the connection."""
        if self.transport is not None and not self.lost:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()


class _Client(_Side):
    """The client's end."""

    __slots__ = ("_proxy",)

    def __init__(self, proxy: _Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.relay = _Relay(self._proxy, self)
        self._proxy.begin(self.relay)


class _Target(_Side):
    """The target's end."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        client = self.other
        if client.lost:
            self.reset()
            return
        if client.buffered:
            self.transport.write(client.buffered)
            client.buffered = b""
        if client.ended:
            client.forward_eof()
        else:
            client.transport.resume_reading()


class _Relay:
    """A client's connection and the target's, with the parser of their traffic."""

    __slots__ = ("_client", "_proxy", "_target", "connecting", "exchange")

    connecting: asyncio.Task[None]

    def __init__(self, proxy: _Proxy, client: _Client) -> None:
        self._proxy = proxy
        self.exchange = proxy.exchange()
        self._client, self._target = client, _Target()
        self._client.other, self._target.other = self._target, self._client
        self._target.relay = self
        self._client.record, self._target.record = self.exchange.on_client_data, self.exchange.on_target_data

    async def connect(self) -> None:
        """Connect to the target; reset the client if that fails or is cancelled."""
        try:
            await self._proxy.connect(lambda: self._target)
        except (OSError, asyncio.CancelledError) as error:
            self._target.lost = True
            if isinstance(error, NOT_LISTENING):
                self._proxy.on_target_down()
            if self._client.lost:
                self._proxy.ended(self)
            else:
                self._client.reset()

    def lost(self, other: _Side, error: Exception | None) -> None:
        """Close or reset one end as the other was."""
        if other.lost:
            self._proxy.ended(self)
        elif error is not None:
            other.reset()
        elif other.transport is not None:
            other.transport.close()

    def reset(self) -> None:
        """Reset both ends."""
        self.connecting.cancel()
        self._client.reset()
        self._target.reset()
