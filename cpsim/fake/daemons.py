"""A site's daemons in front of the accounts, in memory or with a spool."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from cpdaemon.errors import ConnectFailed, EndpointError
from cpsim.daemon.addresses import listen_tcp, listen_unix
from cpsim.daemon.courier import Courier
from cpsim.daemon.faults import FaultyDurableListener, crash_if_due
from cpsim.daemon.forwarder import Forwarder
from cpsim.daemon.quirks import QuirkyListener, StarvingForwarder, by_class
from cpsim.daemon.site import STOP_WITHIN_S
from cpsim.daemon.spool import Spool
from cpsim.daemon.timed import TimedListener

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from cpdaemon.signing import Call
    from cpsim.daemon.forwarder import Deliver
    from cpsim.daemon.listener import Listener
    from cpsim.fault_plan import FaultPlan
    from cpsim.server.service import AccountServer
    from cpsim.waits import Waits

GATHER_S: Final = 0.02
"""How long a stored command waits for others at least: a batch costs three commits, however small it is."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the daemon of a project's site listens.

    Attributes:
        project_id: whose commands they are.
        unix: where to put the daemon's socket.
        tcp: its address; port 0 takes a free one.
        flush_interval_s: how long the daemon keeps commands before it passes them on.
    """

    project_id: str
    unix: Path | None = None
    tcp: TcpEndpoint | None = None
    flush_interval_s: float = 0.0


class Daemon:
    """A site's daemon, in front of the accounts.

    Args:
        site: where it listens.
        accounts: what it passes commands on to.
        faults: what goes wrong.
        waits: where it notes how long callers wait, if that is asked for.
    """

    def __init__(self, site: Site, accounts: AccountServer, faults: FaultPlan, waits: Waits | None = None) -> None:
        self._site = site
        self._faults = faults
        self._waits = waits
        self.addresses: dict[str, str] = {}
        self._apply = partial(accounts.apply, site.project_id)
        self._note_malformed = partial(accounts.note_malformed, site.project_id)
        self._quirks = accounts.quirks
        make = StarvingForwarder if "flush-starves" in self._quirks else Forwarder
        self._forwarder = make(self._hand_over, site.flush_interval_s) if site.flush_interval_s else None
        self._deliver: Deliver = self._forwarder.put if self._forwarder else self._hand_over
        self._sockets: list[socket.socket] = []
        self._listener: Listener | None = None

    def bind(self) -> None:
        """Take the addresses; `addresses` then says where: `unix`, `tcp`."""
        if self._site.unix is not None:
            self._sockets.append(listen_unix(self._site.unix))
            self.addresses["unix"] = _unix_address(self._site.unix)
        if self._site.tcp is not None:
            self._sockets.append(listen_tcp(self._site.tcp.host, self._site.tcp.port))
            self.addresses["tcp"] = address_of(self._sockets[-1])

    def release(self) -> None:
        """Give back the addresses, when they were bound and not served."""
        for sock in self._sockets:
            sock.close()
        self._remove_socket_file()

    def start(self) -> None:
        """Begin to serve."""
        if self._forwarder is not None:
            self._forwarder.start()
        make = QuirkyListener if self._waits is None else partial(TimedListener, waits=self._waits)
        self._listener = make(self._sockets, self._deliver, self._is_full, faults=self._faults, quirks=self._quirks)
        self._listener.on_malformed = self._note_malformed
        self._listener.start()

    def stop(self) -> None:
        """Stop listening, pass on what was acknowledged, and remove the socket file."""
        if self._listener is not None:
            self._listener.stop()
            self._remove_socket_file()
        if self._forwarder is not None:
            self._forwarder.stop()

    @property
    def project_id(self) -> str:
        """Whose commands it takes."""
        return self._site.project_id

    @property
    def pending(self) -> int:
        """How many commands were acknowledged that have not reached the accounts."""
        listening = self._listener.pending if self._listener is not None else 0
        return listening + (self._forwarder.pending if self._forwarder is not None else 0)

    def _hand_over(self, calls: Sequence[Call]) -> None:
        self._apply(by_class(calls) if "reorder-classes" in self._quirks else calls)
        crash_if_due(self._faults, calls)

    def _is_full(self) -> bool:
        return self._forwarder is not None and self._forwarder.is_full

    def _remove_socket_file(self) -> None:
        if "unix" in self.addresses:
            assert self._site.unix is not None
            self._site.unix.unlink(missing_ok=True)


class StoredDaemon(Daemon):
    """A site's daemon whose commands are on disk before they are answered OK."""

    def __init__(self, site: Site, accounts: AccountServer, faults: FaultPlan, spool: Path) -> None:
        super().__init__(replace(site, flush_interval_s=0.0), accounts, faults)  # it is the courier that waits
        self._spool = Spool(spool)
        interval_s = max(site.flush_interval_s, GATHER_S)
        self._courier = Courier(self._spool, InProcess(accounts, site.project_id, faults), interval_s)

    def release(self) -> None:
        """Give back the addresses and the spool, when they were taken and not used."""
        super().release()
        self._spool.close()

    def start(self) -> None:
        """Begin to serve, and to deliver what an earlier daemon has left."""
        self._courier.start()
        self._listener = FaultyDurableListener(self._sockets, self._spool, faults=self._faults)
        self._listener.on_malformed = self._note_malformed
        self._listener.start()

    def stop(self) -> None:
        """Stop listening, pass on what was acknowledged, and remove the socket file."""
        super().stop()
        if self._courier.stop(STOP_WITHIN_S):
            self._spool.close()

    @property
    def pending(self) -> int:
        """How many commands were acknowledged that have not reached the accounts."""
        return self._spool.pending


class InProcess:
    """The accounts as a courier sees them: they know batches, and are out of reach only by a fault."""

    def __init__(self, accounts: AccountServer, project_id: str, faults: FaultPlan) -> None:
        self._accounts = accounts
        self._project_id = project_id
        self._faults = faults

    def knows_batches(self) -> bool:
        """They do."""
        return True

    def post(self, batch_id: str, calls: Sequence[Call]) -> Sequence[None]:
        """Apply a batch; what is refused is for the accounts to know."""
        if self._faults.refuses("server"):
            raise ConnectFailed("the server is down, by a fault")
        self._accounts.apply(self._project_id, calls, batch_id)
        assert self._accounts.store is not None
        self._accounts.store.wait()
        crash_if_due(self._faults, calls)
        return [None] * len(calls)


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
