"""The fake: a site's daemon and the account server behind it, in one process and in memory.

`Fake` runs in threads of the calling process. `FakeProcess` runs one in a process of its own, which ends with the
process that started it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from cpdaemon.errors import ConnectFailed, EndpointError
from cpsim.daemon.addresses import listen_tcp, listen_unix
from cpsim.daemon.courier import Courier
from cpsim.daemon.faults import FaultyDurableListener, crash_if_due
from cpsim.daemon.forwarder import Forwarder
from cpsim.daemon.quirks import QuirkyListener, StarvingForwarder, by_class
from cpsim.daemon.site import STOP_WITHIN_S
from cpsim.daemon.spool import Spool
from cpsim.errors import Problem
from cpsim.fault_plan import FaultPlan
from cpsim.listen import is_loopback
from cpsim.quirks import QUIRKS
from cpsim.server.access import Access
from cpsim.server.control import Control
from cpsim.server.faults import FaultyApi
from cpsim.server.http import API_PATH
from cpsim.server.inspection import Inspector
from cpsim.server.journal import DEFAULT_LIMIT
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer
from cpsim.server.store import Store

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from cpdaemon.signing import Call
    from cpsim.daemon.forwarder import Deliver
    from cpsim.daemon.listener import Listener
    from cpsim.faults import Fault

ANY_PORT: Final = TcpEndpoint("127.0.0.1", 0)
IDLE_POLL_S: Final = 0.001
GATHER_S: Final = 0.02
"""How long a stored command waits for others at least: a batch costs three commits, however small it is."""
GARBAGE_THRESHOLD: Final = 200_000
"""A ledger is millions of objects and no cycles: looking through them for garbage more often is wasted time."""


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
    """A site's daemon, in front of the accounts."""

    def __init__(self, site: Site, accounts: AccountServer, faults: FaultPlan) -> None:
        self._site = site
        self._faults = faults
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
            self.addresses["tcp"] = _address(self._sockets[-1])

    def release(self) -> None:
        """Give back the addresses, when they were bound and not served."""
        for sock in self._sockets:
            sock.close()
        self._remove_socket_file()

    def start(self) -> None:
        """Begin to serve."""
        if self._forwarder is not None:
            self._forwarder.start()
        self._listener = QuirkyListener(
            self._sockets, self._deliver, self._is_full, faults=self._faults, quirks=self._quirks
        )
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


class Fake:
    """Daemons on UNIX sockets and TCP, and their account server on HTTP; on one ledger.

    Args:
        projects: project id to secret.
        unix: where to put the socket of a daemon that works for the first project.
        tcp: where that daemon listens; port 0 takes a free one.
        http: where the server listens; port 0 takes a free one.
        flush_interval_s: how long that daemon keeps commands before it passes them on.
        sites: other daemons.
        control_token: what a request of the control API has to show. Without one, the control API asks for nothing
            where `http` is loopback, and is not there elsewhere.
        quirks: how it differs from what is documented: names from `cpsim.quirks.QUIRKS`.
        journal_limit: how many commands of each project the journal keeps.
        store: the file that keeps the accounts; what a daemon has acknowledged is in `FILE.PROJECT.spool` beside it.
            Without it, all is in memory.
        faults: what goes wrong, as text or as `Fault`s; `faults` is then the plan that has them, and can be changed.
        seed: of the faults' probabilities.
        crash: ends this process at once; without it, a fault that crashes is a problem.

    Raises:
        OSError: an address cannot be listened at (from `start`).
        Problem: the store or a spool cannot be used, or there is no such fault (from the constructor).
        ValueError: no project, or one that cannot be (from the constructor).
    """

    def __init__(
        self,
        projects: Mapping[str, str],
        *,
        unix: Path | None = None,
        tcp: TcpEndpoint | None = None,
        http: TcpEndpoint | None = None,
        flush_interval_s: float = 0.0,
        sites: Sequence[Site] = (),
        control_token: str | None = None,
        quirks: frozenset[str] = frozenset(),
        journal_limit: int = DEFAULT_LIMIT,
        store: Path | None = None,
        faults: Iterable[Fault | str] = (),
        seed: int = 1,
        crash: Callable[[], object] | None = None,
    ) -> None:
        if not projects:
            raise ValueError("a fake needs a project")
        forgetful = [name for name in QUIRKS if name in quirks and QUIRKS[name].tier == "daemon"]
        if store is not None and forgetful and "ack-before-delivery" not in quirks:
            raise Problem(
                f"quirk {forgetful[0]}: a daemon that has it keeps commands in memory; with a store, add the quirk "
                "ack-before-delivery"
            )
        self.faults = FaultPlan(faults, seed=seed, crash=crash)
        self._store = None if store is None else Store(store)
        self.accounts = AccountServer(projects, quirks=quirks, journal_limit=journal_limit, store=self._store)
        self.inspector = Inspector(self.accounts, lambda: self.pending)
        self.addresses: dict[str, str] = {}
        self._http = http
        self._control_token = control_token
        if unix is not None or tcp is not None:
            own = Site(project_id=next(iter(projects)), unix=unix, tcp=tcp, flush_interval_s=flush_interval_s)
            sites = (own, *sites)
        self.daemons = [
            Daemon(site, self.accounts, self.faults)
            if store is None or "ack-before-delivery" in quirks
            else StoredDaemon(
                site, self.accounts, self.faults, Path(f"{store}.{quote(site.project_id, safe='')}.spool")
            )
            for site in sites
        ]
        self._server: HttpServer | None = None

    def start(self) -> None:
        """Listen on every address given.

        `addresses` then says where, by `unix`, `tcp` and `http`; where there are several daemons, it is the first,
        and each of `daemons` has its own `addresses`.
        """
        try:
            for daemon in self.daemons:
                daemon.bind()
            http = None if self._http is None else listen_tcp(self._http.host, self._http.port)
        except OSError:
            for daemon in self.daemons:
                daemon.release()
            self._close_store()
            raise
        self.faults.begin()
        for daemon in self.daemons:
            self.addresses = daemon.addresses | self.addresses
            daemon.start()
        if http is not None:
            self.addresses["http"] = f"http://{_address(http)}{API_PATH}"
            self._server = HttpServer(FaultyApi(self.accounts, self._control(), self.faults), [http], self.faults)
            self._server.start()

    def stop(self) -> None:
        """Stop listening, pass on what was acknowledged, and remove the socket files."""
        for daemon in self.daemons:
            daemon.stop()
        if self._server is not None:
            self._server.stop()
        self._close_store()

    @property
    def pending(self) -> int:
        """How many commands the daemons acknowledged that have not reached the accounts."""
        return sum(daemon.pending for daemon in self.daemons)

    def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        """Wait until every command that was acknowledged has reached the accounts.

        Raises:
            TimeoutError: that took longer.
        """
        deadline = time.monotonic() + timeout_s
        while self.pending:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.pending:,} commands have not reached the accounts in {timeout_s:g} s")
            time.sleep(IDLE_POLL_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()

    def _control(self) -> Control | None:
        """The control API, where it is to be served."""
        assert self._http is not None
        if self._control_token is None and not is_loopback(self._http.host):
            return None
        return Control(self.inspector, Access(self._http.host, self._control_token))


def _unix_address(path: Path) -> str:
    """A socket's absolute path, or the path as given where the absolute one is too long for a socket."""
    try:
        return str(parse_endpoint(str(path.absolute())))
    except EndpointError:
        return str(UnixEndpoint(str(path)))


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return str(TcpEndpoint(host, port))


class FakeProcess:
    """A `Fake` in a process of its own, without the caller's interpreter lock; a context manager.

    It serves a UNIX socket and HTTP on a free port of loopback, and ends when it is left or when this process ends.

    Args:
        projects: project id to secret; they travel over a pipe, not on the command line.
        unix: where to put the daemon's socket.

    Raises:
        Problem: the process did not start (from `addresses`).
    """

    def __init__(self, projects: Mapping[str, str], unix: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cpsim.fake"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller, who still wants to read the ledger
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"projects": dict(projects), "unix": str(unix)}) + "\n")
        self._process.stdin.flush()

    def addresses(self) -> dict[str, str]:
        """Where it listens, once it does: `unix` and `http`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Problem(f"the embedded fake ended with status {self._process.wait()}")
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def main() -> None:
    """Serve as a `FakeProcess`: configuration on standard input, addresses out, until the input ends."""
    configuration = json.loads(sys.stdin.readline())
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    projects, unix = configuration["projects"], Path(configuration["unix"])
    with Fake(projects, unix=unix, http=ANY_PORT, journal_limit=0) as fake:  # a run keeps a journal of its own
        print(json.dumps(fake.addresses), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
