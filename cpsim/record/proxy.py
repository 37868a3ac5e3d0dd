"""The proxy: one connection to the target per client connection, with every byte forwarded unchanged.

The proxy forwards half-closes and resets. It pauses reading from one side while the other does not keep up, so that a
connection holds only a few buffers. While the target refuses connections, the proxy refuses them too: it stops
listening, and probes the target every `PROBE_INTERVAL_S`. A plan of faults has it refuse them, too.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpdaemon.transport import tls_of
from cpsim.daemon.site import address_of
from cpsim.errors import CpsimError
from cpsim.net.addresses import listen_tcp, listen_unix
from cpsim.net.listen import BACKLOG
from cpsim.record.frames import FrameRelay
from cpsim.record.relay import NOT_LISTENING, ClientSide, Relay
from cpsim.record.requests import RequestRelay
from cpsim.system.own_file import OwnFile
from cpsim.system.signals import ENDING, terminal_watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cpdaemon.endpoint import Endpoint
    from cpsim.faults.plan import FaultPlan
    from cpsim.record.control import FaultControl
    from cpsim.record.exchanges import RecordedExchange
    from cpsim.record.recording import Recording

GRACE_S: Final = 1.0
"""Time for open connections to end after the first signal; a second signal resets them at once."""
PROBE_INTERVAL_S: Final = 0.1
"""Interval between probes of a target that refuses connections."""
PROBE_TIMEOUT_S: Final = 1.0


log = logging.getLogger(__name__)


class ProxyFailed(CpsimError):
    """An unexpected error ended the proxy; a recording until then is complete."""


class Unrecorded:
    """The parser of traffic that is not recorded."""

    def on_client_data(self, data: bytes) -> None:
        """See `RecordedExchange`."""

    def on_target_data(self, data: bytes) -> None:
        """See `RecordedExchange`."""

    def end(self) -> None:
        """See `RecordedExchange`."""


UNRECORDED: Final = Unrecorded()


def forward(
    listen: UnixEndpoint | TcpEndpoint,
    target: Endpoint,
    on_ready: Callable[[str], None],
    *,
    recording: Recording | None = None,
    faults: FaultPlan | None = None,
    control: tuple[FaultControl, TcpEndpoint] | None = None,
) -> None:
    """Forward connections to a target until SIGINT or SIGTERM.

    Args:
        listen: listening address; port 0 takes a free one.
        target: a daemon, with one command per connection, or a server.
        on_ready: called with `KIND ADDRESS` once the proxy listens, or would if the target accepted connections; with a
            line more for the control API.
        recording: receiver of the traffic; it is not closed.
        faults: what the traffic meets; changed in the thread of this call alone.
        control: the control API of the faults, and its address.

    Raises:
        OSError: an address cannot be bound.
        ProxyFailed: an unexpected error ended the proxy.
    """
    proxy = _Proxy(listen, target, recording, faults, control)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(proxy.serve(on_ready))
    finally:
        if proxy.socket_file is not None:
            proxy.socket_file.remove()


def _exchanges(target: Endpoint, recording: Recording | None) -> Callable[[], RecordedExchange]:
    """Return what makes the parser of a new connection."""
    if recording is None:
        return lambda: UNRECORDED
    from cpsim.record.exchanges import FrameExchange, Http, Session  # noqa: PLC0415 - only a recording needs pyarrow

    session = Session(recording)
    return (lambda: Http(session)) if isinstance(target, UrlEndpoint) else lambda: FrameExchange(session)


class _Proxy:
    """The listening socket and the open connections."""

    def __init__(
        self,
        listen: UnixEndpoint | TcpEndpoint,
        target: Endpoint,
        recording: Recording | None,
        faults: FaultPlan | None,
        control: tuple[FaultControl, TcpEndpoint] | None,
    ) -> None:
        self._listen = listen
        self._target = target
        self._recording = recording
        self._faults = faults
        self._control = control
        self._stage = "server" if isinstance(target, UrlEndpoint) else "daemon"
        self._name = "recorder" if faults is None else "proxy"
        self.exchange = _exchanges(target, recording)
        self._tls = tls_of(target)
        self._server: asyncio.AbstractServer | None = None
        self._relays: set[Relay] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._target_is_down = False
        self._opening = asyncio.Lock()
        self._next_change: asyncio.TimerHandle | None = None
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
        if self._recording is not None:
            self._recording.on_failure = self._stop
        await self._open()
        control = ""
        if self._control is not None:
            app, address = self._control
            app.settle = self._settle
            try:
                control = f"\ncontrol http://{await app.open(address)}"
            except OSError:
                self._close()
                await asyncio.sleep(0)
                raise
        if not await self._is_target_up():
            print(
                f"cpsim: {self._target} refuses connections; the {self._name} refuses them until it accepts",
                file=sys.stderr,
            )
            self.on_target_down()
        if self._faults is not None:
            self._faults.begin()
            self._faults.watch(self._refresh)
            self._refresh()
        on_ready(f"{self._address()}{control}")
        await self._stopped.wait()
        self._close()
        await self._wait_for_relays()
        for relay in list(self._relays):
            relay.reset()
        await self._wait_for_relays()
        if self._control is not None:
            self._control[0].close()
        if isinstance(self._failure, OSError):
            raise self._failure
        if self._failure is not None:
            raise ProxyFailed(f"{type(self._failure).__name__}: {self._failure}") from self._failure

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect to the target."""
        loop, target = asyncio.get_running_loop(), self._target
        if isinstance(target, UnixEndpoint):
            await loop.create_unix_connection(protocol, target.path)
        else:
            await loop.create_connection(protocol, target.host, target.port, ssl=self._tls)

    def _begin(self, client: ClientSide) -> None:
        """Begin the relay of a client that has connected."""
        relay = self._relay(client)
        self._relays.add(relay)
        relay.begin()

    def _relay(self, client: ClientSide) -> Relay:
        if self._faults is None:
            return Relay(self, client)
        if isinstance(self._target, UrlEndpoint):
            return RequestRelay(self, client, self._faults, f"{self._target.path}/")
        return FrameRelay(self, client, self._faults)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task whose error ends the proxy."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an OSError, which concerns one connection; any other error ends the proxy."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            loop.default_exception_handler(context)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Stop with an unexpected error: later records might be wrong."""
        if self._failure is None:
            log.critical("the %s failed", self._name, exc_info=error)
            self._failure = error
            self._stop()

    def ended(self, relay: Relay) -> None:
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
        self._target_is_down = False
        await self._open_again()

    async def _open_again(self) -> None:
        """Listen, unless there is a reason to refuse connections."""
        async with self._opening:
            if self._server is not None or self._target_is_down or self._stopped.is_set() or self._refuses():
                return
            try:
                await self._open()
            except OSError as error:
                self._failure = error
                self._stop()
        if self._target_is_down or self._stopped.is_set() or self._refuses():  # since it has begun to listen
            self._close()

    async def _settle(self) -> None:
        """Return when connections are accepted or refused by the plan, and those that it ends are closed."""
        await self._open_again()
        while any(map(_is_about_to_close, self._relays)):  # noqa: ASYNC110 - for a step or two of the loop
            await asyncio.sleep(0)

    def _refuses(self) -> bool:
        return self._faults is not None and self._faults.refuses(self._stage)

    def _refresh(self) -> None:
        """Accept or refuse connections and commands by the plan, now and at its next change."""
        assert self._faults is not None
        if self._next_change is not None:
            self._next_change.cancel()
            self._next_change = None
        change_s = self._faults.next_change_s(self._stage)  # first, or a change during this method would be missed
        if change_s is not None:
            self._next_change = asyncio.get_running_loop().call_later(change_s, self._refresh)
        for relay in list(self._relays):
            relay.refresh()
        if self._refuses():
            self._close()
            for relay in list(self._relays):
                relay.drain()
        elif self._server is None:
            self.start(self._open_again())

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
        protocol = lambda: ClientSide(self._begin)  # noqa: E731 - used twice
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


def _is_about_to_close(relay: Relay) -> bool:
    """Whether the client's end is closed in one of the next steps, because nothing is left to be sent."""
    transport = relay.client.transport
    return bool(transport.is_closing()) and not relay.client.lost and not transport.get_write_buffer_size()


class _Probe(asyncio.Protocol):
    """Connects and closes at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
