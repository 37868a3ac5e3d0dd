"""The daemon of one site: its sockets, what it keeps, and the courier to the server."""

from __future__ import annotations

import logging
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.daemon.courier import LAST_RETRY_S, WHEN_UNKNOWN
from cpsim.daemon.memory import MemorySpool
from cpsim.daemon.quirks import QuirkyCourier, QuirkyDurableListener, QuirkyListener
from cpsim.daemon.spool import Spool
from cpsim.daemon.timed import TimedListener
from cpsim.faults.plan import FaultPlan
from cpsim.net.addresses import listen_tcp, listen_unix

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from cpdaemon.signing import Call
    from cpsim.daemon.courier import Server
    from cpsim.metrics.waits import Waits

POLL_S: Final = 0.001
STOP_WITHIN_S: Final = 10.0
"""How long a daemon that is told to stop tries to deliver what it has."""

log = logging.getLogger(__name__)


class Daemon:
    """A daemon; a context manager while which it runs.

    Args:
        server: where commands go.
        project: whose they are.
        unix: where to put its socket.
        tcp: where it listens; port 0 takes a free one.
        spool: keeps commands until they are delivered, and is closed with the daemon; without one, memory keeps them.
        flush_interval_s: how long a command waits for others.
        when_unknown: `set-aside` or `resend`; see `cpsim.daemon.courier`.
        longest_pause_s: the limit of the pause after a failure.
        quirks: how it differs from what is documented: names from `cpsim.protocol.quirks.QUIRKS`.
        faults: what goes wrong.
        waits: where it notes how long callers wait, if it keeps commands in memory and that is asked for.

    Attributes:
        project_id: whose commands it takes.
        addresses: where it listens, once it is bound: `unix`, `tcp`.
    """

    def __init__(
        self,
        server: Server,
        project: str,
        *,
        unix: Path | None = None,
        tcp: TcpEndpoint | None = None,
        spool: Spool | None = None,
        flush_interval_s: float = 0.0,
        when_unknown: str = WHEN_UNKNOWN[0],
        longest_pause_s: float = LAST_RETRY_S,
        quirks: frozenset[str] = frozenset(),
        faults: FaultPlan | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.addresses: dict[str, str] = {}
        self.project_id = project
        self._unix = unix
        self._tcp = tcp
        self._waits = waits
        self._quirks = quirks
        self._faults = FaultPlan() if faults is None else faults
        self._spool = MemorySpool() if spool is None else spool
        self._courier = QuirkyCourier(
            self._spool, server, flush_interval_s, when_unknown, longest_pause_s, quirks=quirks
        )
        self._sockets: list[socket.socket] = []
        self._listener: QuirkyListener | None = None
        self.on_malformed: Callable[[bytes], object] = bytes
        """Called with each frame that was not taken; set before it starts."""

    @property
    def pending(self) -> int:
        """How many commands were acknowledged that have not been delivered."""
        if isinstance(self._spool, Spool) or self._listener is None:
            return self._spool.pending
        return self._listener.pending + self._spool.pending

    @property
    def progress(self) -> tuple[int, int]:
        """How many commands it has taken, and how many of them have been delivered; counted from any number."""
        if isinstance(self._spool, Spool) or self._listener is None:
            delivered = self._spool.delivered_to
            return delivered + self._spool.pending, delivered
        delivered = self._listener.passed_on - self._spool.pending
        return self._listener.passed_on + self._listener.pending, delivered

    def catch_up(self, within_s: float) -> bool:
        """Deliver, without waiting for more, what has been acknowledged by now; whether that was in time.

        Raises:
            ThreadFailed: see `check`.
        """
        taken, delivered = self.progress
        deadline = monotonic() + within_s
        with self._courier.hurrying():
            while delivered < taken and monotonic() < deadline:
                self.check()
                sleep(POLL_S)
                _, delivered = self.progress
        return delivered >= taken

    def behave(self, quirks: frozenset[str]) -> None:
        """Have these quirks from now on; what was taken before may still meet those that were."""
        self._quirks = quirks
        self._courier.behave(quirks)
        if self._listener is not None:
            self._listener.behave(quirks)

    def bind(self) -> None:
        """Take the addresses.

        Raises:
            OSError: one cannot be listened at.
        """
        if self._unix is not None:
            self._sockets.append(listen_unix(self._unix))
            self.addresses["unix"] = _unix_address(self._unix)
        if self._tcp is not None:
            self._sockets.append(listen_tcp(self._tcp.host, self._tcp.port))
            self.addresses["tcp"] = address_of(self._sockets[-1])

    def release(self) -> None:
        """Give back the addresses and the spool, when they were taken and not used."""
        for sock in self._sockets:
            sock.close()
        self._remove_socket_file()
        self._close_spool()

    def start(self) -> None:
        """Begin to serve, and to deliver what an earlier daemon has left."""
        self._listener = self._listen(self._spool)
        self._listener.on_malformed = self.on_malformed
        self._courier.start()
        self._listener.start()

    def stop(self) -> None:
        """Stop listening, deliver what was acknowledged as far as the server takes it, and remove the socket file.

        Raises:
            ThreadFailed: see `check`; it has stopped all the same.
        """
        if self._listener is None:
            self.release()
            return
        self._listener.stop()
        self._remove_socket_file()
        if self._courier.stop(STOP_WITHIN_S):
            self._close_spool()
        self.check()

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
        where = ", ".join(f"{kind} {address}" for kind, address in self.addresses.items())
        log.info("listening at %s; %d commands in the spool", where, self._spool.pending)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        log.info("stopped; %d commands stay in the spool", self._spool.pending)

    def _listen(self, spool: Spool | MemorySpool) -> QuirkyListener:
        behaviour: dict[str, Any] = {
            "faults": self._faults,
            "project": self.project_id,
            "quirks": self._quirks,
            "on_turn": self._courier.hold_up,
        }
        if isinstance(spool, Spool):
            return QuirkyDurableListener(self._sockets, spool, **behaviour)
        arguments = self._sockets, self._take, lambda: spool.is_full
        if self._waits is None:
            return QuirkyListener(*arguments, **behaviour)
        return TimedListener(*arguments, waits=self._waits, **behaviour)

    def _take(self, calls: Sequence[Call]) -> None:
        """Keep commands in memory, which have been acknowledged."""
        assert isinstance(self._spool, MemorySpool)
        self._spool.put(calls)

    def _remove_socket_file(self) -> None:
        if "unix" in self.addresses:
            assert self._unix is not None
            self._unix.unlink(missing_ok=True)

    def _close_spool(self) -> None:
        if isinstance(self._spool, Spool):
            self._spool.close()


def _unix_address(path: Path) -> str:
    """A socket's absolute path, or the path as given where the absolute one is too long for a socket."""
    try:
        return str(parse_endpoint(str(path.absolute())))
    except EndpointError:
        return str(UnixEndpoint(str(path)))


def address_of(sock: socket.socket) -> str:
    """HOST:PORT of a listening socket."""
    host, port = sock.getsockname()[:2]
    return str(TcpEndpoint(host, port))
