"""The daemon of one site: its sockets, its spool or memory, and its courier."""

from __future__ import annotations

import logging
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.courier import CAREFUL, MAX_BACKOFF_S, WHEN_UNKNOWN, Courier
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.faults import BatchFaults, FrameFaults
from cpsim.daemon.listener import Listener
from cpsim.daemon.memory import MemorySpool
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import status_of
from cpsim.faults.plan import FaultPlan
from cpsim.metrics.apply_delays import ApplyDelays
from cpsim.net.addresses import listen_tcp, listen_unix
from cpsim.quirks import composed
from cpsim.quirks.policies.delivery import DeliveryPolicy
from cpsim.quirks.policies.reading import ReadingPolicy
from cpsim.system.own_file import OwnFile
from cpsim.system.threads import in_sequence

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from cpdaemon.signing import Call
    from cpsim.clock import Clock
    from cpsim.daemon.client import Server
    from cpsim.daemon.spool_status import Status
    from cpsim.metrics.waits import Waits

STOP_TIMEOUT_S: Final = 10.0
"""Time for a stopping daemon to deliver its commands."""

log = logging.getLogger(__name__)


class Daemon:
    """A daemon; a context manager that runs it.

    Args:
        server: receiver of the batches.
        project: project of the commands.
        unix: path of its socket.
        mode: permissions of the socket file; by default as the process's umask has it.
        tcp: TCP address; port 0 takes a free one.
        bound: sockets that listen already, by `unix` and `tcp`; their addresses and files stay when they are closed.
        spool: stores commands until they are delivered, and is closed with the daemon; without one, memory does.
        flush_interval_s: longest time that a command waits for its batch to fill, in seconds.
        when_unknown: `dead-letter` or `resend`; see `cpsim.daemon.courier`.
        max_backoff_s: longest backoff, in seconds.
        quirks: differences from the documented daemon: names from `cpsim.quirks.QUIRKS`.
        faults: the plan of faults.
        waits: record of callers' waits.
        apply: applies commands at once where nothing has them wait; without it, all go through the spool.
        clock: by which it waits, and its clients have their time.

    Attributes:
        project_id: project of the commands.
        addresses: its addresses once bound, by `unix` and `tcp`.
        faults: the plan of faults.
        spool_path: file of the spool, if there is one.
        delays: the apply delays.
    """

    def __init__(
        self,
        server: Server,
        project: str,
        *,
        unix: Path | None = None,
        mode: int | None = None,
        tcp: TcpEndpoint | None = None,
        bound: Mapping[str, socket.socket] = MappingProxyType({}),
        spool: Spool | MemorySpool | None = None,
        flush_interval_s: float = 0.0,
        when_unknown: str = WHEN_UNKNOWN[0],
        max_backoff_s: float = MAX_BACKOFF_S,
        quirks: frozenset[str] = frozenset(),
        faults: FaultPlan | None = None,
        waits: Waits | None = None,
        apply: Callable[[Sequence[Call]], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.addresses: dict[str, str] = {}
        self.project_id = project
        self._unix = unix
        self._mode = mode
        self._tcp = tcp
        self._bound = bound
        self._waits = waits
        self._reading = composed(ReadingPolicy(), quirks)
        self._delivery = composed(DeliveryPolicy(), quirks)
        self.faults = FaultPlan() if faults is None else faults
        self._spool = MemorySpool() if spool is None else spool
        self.spool_path = spool.path if isinstance(spool, Spool) else None
        self._clock = clock
        self._has_interval = bool(flush_interval_s)
        self._apply = apply
        self._server = BatchFaults(server, self.faults, project, clock)
        delivery = self._server, flush_interval_s, when_unknown, max_backoff_s
        self._courier = Courier(self._spool, *delivery, clock=clock, delivery=self._delivery)
        self._sockets: list[socket.socket] = []
        self._socket_file: OwnFile | None = None
        self._listener: Listener | None = None
        self._frame_faults: FrameFaults | None = None
        self.delays = ApplyDelays(lambda: self.progress, clock.monotonic)
        self._courier.on_step = self.delays.note
        self.on_malformed: Callable[[bytes], object] = bytes
        """Called with each refused or malformed frame; set it before `start`."""

    @property
    def pending(self) -> int:
        """Number of acknowledged commands that have not been delivered."""
        if isinstance(self._spool, Spool) or self._listener is None:
            return self._spool.pending
        return self._listener.pending + self._spool.pending

    @property
    def progress(self) -> tuple[int, int]:
        """Number of accepted commands and number of delivered ones; both counted from the same, arbitrary number."""
        if isinstance(self._spool, Spool) or self._listener is None:
            delivered = self._spool.delivered_to
            return delivered + self._spool.pending, delivered
        delivered = self._listener.passed_on - self._spool.pending
        return self._listener.passed_on + self._listener.pending, delivered

    def spool_status(self) -> Status | None:
        """Return the status of its spool; None without one. Raises CpsimError if it cannot be read."""
        return status_of(self._spool) if isinstance(self._spool, Spool) else None

    @property
    def listener(self) -> Listener | None:
        """What listens at its addresses, once it was started."""
        return self._listener

    def drop(self) -> None:
        """Close every connection, and forget all commands that have not been delivered, failed ones included.

        Once this has returned, no command that came before it is delivered.

        Raises:
            CpsimError: the spool cannot be written, or the listener's thread is busy.
        """
        with self.delays.forgetting(), self._server.letting_go():
            if self._listener is not None:
                self._listener.drop()
            self._courier.drop()
        if self._waits is not None:
            self._waits.clear()

    def set_quirks(self, quirks: frozenset[str]) -> None:
        """Replace the quirks; commands accepted before may still see the previous ones."""
        self._reading = composed(ReadingPolicy(), quirks)
        self._delivery = composed(DeliveryPolicy(), quirks)
        self._courier.set_delivery(self._delivery)
        if self._listener is not None:
            self._listener.set_reading(self._reading)
            self._listener.on_turn = self._on_turn
            self._parse_records()

    def set_flush_interval(self, flush_interval_s: float) -> None:
        """Replace the longest time that a command waits for its batch to fill."""
        self._has_interval = bool(flush_interval_s)
        self._courier.set_interval(flush_interval_s)

    def bind(self) -> None:
        """Bind the addresses.

        Raises:
            OSError: an address cannot be bound.
        """
        if self._unix is not None:
            self._sockets.append(listen_unix(self._unix, self._mode))
            self._socket_file = OwnFile(self._unix)
            self.addresses["unix"] = _unix_address(self._unix)
        if self._tcp is not None:
            self._sockets.append(listen_tcp(self._tcp.host, self._tcp.port))
            self.addresses["tcp"] = address_of(self._sockets[-1])
        for kind, sock in self._bound.items():
            self._sockets.append(sock)
            self.addresses[kind] = _unix_address(Path(sock.getsockname())) if kind == "unix" else address_of(sock)

    def release(self) -> None:
        """Release the addresses and the spool of a daemon that was not started."""
        for sock in self._sockets:
            sock.close()
        self._remove_socket_file()
        self._close_spool()

    def start(self) -> None:
        """Start to serve, and to deliver commands that an earlier daemon has left."""
        self._listener = self._listen(self._spool)
        self._parse_records()
        self._listener.on_malformed = self.on_malformed
        if self._socket_file is not None:
            self._listener.on_rebound = self._socket_file.note
        self._listener.on_turn = self._on_turn
        self._listener.on_progress = self.delays.note
        self._listener.open()
        self._frame_faults = FrameFaults(self._listener, self.faults, self.project_id)
        self._frame_faults.begin()
        self._courier.start()
        self._listener.start()

    def stop(self) -> None:
        """Stop listening, deliver acknowledged commands unless a fault prevents it, and remove the socket file.

        Raises:
            ThreadFailed: see `check`; the daemon has stopped nevertheless.
        """
        self._server.stop()
        if self._listener is None:
            self.release()
            return
        self._stop_listening()
        has_ended = self._courier.stop(STOP_TIMEOUT_S)
        if has_ended or (isinstance(self._spool, Spool) and self._spool.is_gone):
            self._close_spool()
        self.check()

    def drain(self, then: Callable[[], object]) -> None:
        """Stop listening, and deliver acknowledged commands, whatever fails meanwhile; `stop` ends that.

        Args:
            then: called from another thread once none is left.
        """
        self._stop_listening()
        log.info("draining: %d commands are to be delivered", self.pending)
        self._courier.drain(then)

    def after_a_turn(self, then: Callable[[], object]) -> None:
        """Call a function once the listener, unless it is draining, has taken a turn and the spool has written."""
        listens = [self._listener.call] if self._listener is not None and self._frame_faults is not None else []
        spool = self._spool
        writes = [lambda then: spool.put([], {}, lambda _: then())] if isinstance(spool, Spool) else []
        in_sequence([*listens, *writes], then)

    @property
    def status_line(self) -> str:
        """What it does, in a line."""
        outage = self._courier.outage
        trouble = "" if outage is None else f"; nothing is delivered: {outage}"
        where = "draining" if self._frame_faults is None else " and ".join(self.addresses.values())
        return f"{where}: {self.pending} commands wait{trouble}"

    @property
    def has_socket_file(self) -> bool:
        """Whether its socket's file is there, and is still its own."""
        return self._socket_file is not None and self._socket_file.is_there

    def check(self) -> None:
        """Raise ThreadFailed if one of its threads has failed."""
        self._courier.check()
        if self._listener is not None:
            self._listener.check()
        if isinstance(self._spool, Spool):
            self._spool.check()

    def __enter__(self) -> Self:
        try:
            self.bind()
        except OSError:
            self.release()
            raise
        addresses = ", ".join(f"{kind} {address}" for kind, address in self.addresses.items())
        log.info("listening at %s; %d commands in the spool", addresses or "no address", self._spool.pending)
        if isinstance(self._spool, Spool) and self._spool.failed:
            log.warning("%d refused commands and dead letters, listed by `cpsim daemon --failed`", self._spool.failed)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        log.info("stopped; %d commands stay in the spool", self._spool.pending)

    def _stop_listening(self) -> None:
        """Take nothing new, answer what has arrived, and remove the socket file."""
        if self._listener is not None and self._frame_faults is not None:
            self._frame_faults.end()
            self._listener.stop()
            self._frame_faults = None
            self._remove_socket_file()

    def _parse_records(self) -> None:
        """Have the spool parse what the listener lets pass."""
        if isinstance(self._spool, Spool):
            self._spool.parse = self._reading.parser()

    @property
    def _on_turn(self) -> Callable[[int], object] | None:
        return None if self._delivery.busy is None and not self._reading.turn_s else self._delay_turn

    def _delay_turn(self, acknowledged: int) -> None:
        """Have a turn of the listener's loop take as long as in production."""
        self._clock.sleep(self._reading.turn_s)
        self._courier.delay_turn(acknowledged)

    def _listen(self, spool: Spool | MemorySpool) -> Listener:
        options: dict[str, Any] = {"waits": self._waits, "reading": self._reading}
        if isinstance(spool, Spool):
            return DurableListener(self._sockets, spool, self._clock, **options)
        return Listener(self._sockets, self._take, lambda: spool.is_full, self._clock, **options)

    def _take(self, calls: Sequence[Call]) -> None:
        """Apply acknowledged commands, or queue them in memory."""
        spool = self._spool
        assert isinstance(spool, MemorySpool)
        queues = self._has_interval or spool.pending or self.faults.delivery or self._delivery != CAREFUL
        if self._apply is None or queues:
            spool.put(calls)
        else:
            self._apply(calls)

    def _remove_socket_file(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()

    def _close_spool(self) -> None:
        if isinstance(self._spool, Spool):
            self._spool.close()


def _unix_address(path: Path) -> str:
    """Return a socket's absolute path, or the given path where the absolute one is too long for a socket."""
    try:
        return str(parse_endpoint(str(path.absolute())))
    except EndpointError:
        return str(UnixEndpoint(str(path)))


def address_of(sock: socket.socket) -> str:
    """Return HOST:PORT of a listening socket."""
    host, port = sock.getsockname()[:2]
    return str(TcpEndpoint(host, port))
