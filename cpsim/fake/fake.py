"""The fake in threads of the calling process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from glob import escape
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from cpdaemon.endpoint import TcpEndpoint
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.metrics import daemon_metrics
from cpsim.daemon.site import address_of
from cpsim.daemon.spool_status import read_status
from cpsim.errors import CpsimError
from cpsim.fake.daemons import TCP, Site, daemon_of
from cpsim.fake.sites import AddedSites
from cpsim.faults.plan import FaultPlan
from cpsim.metrics.duration_buckets import DurationBuckets
from cpsim.metrics.exposition import Family, build_info, faults_fired
from cpsim.net.addresses import listen_tcp
from cpsim.net.listen import is_loopback
from cpsim.quirks import chosen
from cpsim.server.control.access import Access
from cpsim.server.control.api import Control
from cpsim.server.control.inspection import Inspector
from cpsim.server.dashboard.pages import Dashboard
from cpsim.server.dashboard.watch import Watch
from cpsim.server.faults import RequestFaults
from cpsim.server.http import API_PATH, Api
from cpsim.server.journal import DEFAULT_LIMIT
from cpsim.server.metrics import server_metrics
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer
from cpsim.server.store import Store
from cpsim.server.timed import Timed
from cpsim.store.log import Log
from cpsim.system.checks import check, check_many
from cpsim.system.threads import in_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from socket import socket
    from types import TracebackType
    from typing import Self

    from cpsim.clock import Clock
    from cpsim.daemon.site import Daemon
    from cpsim.faults.spec import Fault
    from cpsim.metrics.waits import Waits
    from cpsim.net.tls import ServerCertificate
    from cpsim.server.http import SingleCommand

ANY_PORT: Final = TcpEndpoint("127.0.0.1", 0)
IDLE_POLL_S: Final = 0.001


class Fake:
    """Daemons on UNIX sockets and TCP, and their account server on HTTP, with one ledger.

    Args:
        projects: project id to secret.
        unix: path of the socket of the first project's daemon.
        tcp: TCP address of that daemon; port 0 takes a free one.
        http: address of the server; port 0 takes a free one.
        tls: the certificate with which the server speaks HTTPS; without one, it speaks HTTP.
        bound_http: a socket that listens there already.
        flush_interval_s: seconds that that daemon keeps commands before it delivers them.
        sites: further daemons.
        control_token: token of requests to the control API. Without one, the control API needs no token on loopback,
            and is off elsewhere.
        quirks: differences from the documented system: names from `cpsim.quirks.QUIRKS`.
        journal_limit: number of commands of each project that the journal keeps.
        store: file of the accounts; a daemon stores acknowledged commands in `FILE.PROJECT.spool` beside it, a
            project's second daemon in `FILE.PROJECT+2.spool`. Without it, everything is in memory.
        faults: faults, as text or as `Fault`s; the attribute `faults` is their plan, which can be changed.
        seed: seed of the faults' probabilities.
        crash: ends this process at once; without it, a fault that crashes raises.
        waits: record of callers' waits at the server and, without a store, at the first project's daemon.
        clock: real time, which the server's clock follows; the attribute `clock` is this one.

    Raises:
        OSError: an address cannot be bound (from `start`).
        CpsimError: the store or a spool cannot be used, or there is no such fault (from the constructor).
        ValueError: there is no project, or a project is invalid (from the constructor).
        WrongArgument: an argument is of another type (from the constructor).
    """

    def __init__(
        self,
        projects: Mapping[str, str],
        *,
        unix: Path | None = None,
        tcp: TcpEndpoint | None = None,
        http: TcpEndpoint | None = None,
        tls: ServerCertificate | None = None,
        bound_http: socket | None = None,
        flush_interval_s: float = 0.0,
        sites: Sequence[Site] = (),
        control_token: str | None = None,
        quirks: frozenset[str] = frozenset(),
        journal_limit: int = DEFAULT_LIMIT,
        store: Path | None = None,
        faults: Iterable[Fault | str] = (),
        seed: int = 1,
        crash: Callable[[], object] | None = None,
        waits: Waits | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check("projects", projects, Mapping, "a secret for each project id, such as {'demo': 'secret'}")
        if not projects:
            raise ValueError("a fake needs a project")
        check("http", http, (TcpEndpoint, NoneType), TCP)
        check("store", store, (Path, NoneType), "a pathlib.Path")
        check("control_token", control_token, (str, NoneType), "a text")
        check("journal_limit", journal_limit, int, "a number of commands")
        check_many("sites", sites, "Site(project_id='demo', unix=Path('daemon.socket'))")
        for site in sites:
            check("a site", site, Site, "a Site")
        quirks = chosen("documented", quirks)
        self.clock = clock
        held = {"daemon": any(site.bound for site in sites), "server": bound_http is not None}
        self.faults = FaultPlan(
            faults, clock=clock, seed=seed, crash=crash, held={stage for stage, is_held in held.items() if is_held}
        )
        self._store = None if store is None else Store(store, partial(Log, clock=clock))
        try:
            self.accounts = AccountServer(projects, clock.now_us, quirks, journal_limit, self._store)
        except BaseException:
            self._close_store()
            raise
        self._sites = AddedSites(self, stored=store is not None)
        self.inspector = Inspector(
            self.accounts, lambda: self.pending, self.faults, self.set_quirks, self._drop, sites=self._sites
        )
        self._watch = Watch(self.accounts, lambda: self.daemons, clock)
        self.addresses: dict[str, str] = {}
        self._http = http
        self._tls = tls
        self._bound_http = bound_http
        self._api: RequestFaults[SingleCommand] | None = None
        self._initial_quirks = quirks
        self._control_token = control_token
        self._access: Access | None = None
        self._waits = waits
        self._latency = DurationBuckets()
        self._stores = {store, self._store.path} if store is not None and self._store is not None else set()
        self._spools = None if "ack-before-delivery" in quirks or self._store is None else self._store.path
        self._serving = False
        self._server: HttpServer | None = None
        self.daemons: list[Daemon] = []
        if unix is not None or tcp is not None:
            own = Site(project_id=next(iter(projects)), unix=unix, tcp=tcp, flush_interval_s=flush_interval_s)
            self.add_site(own, waits=waits)
        for site in sites:
            self.add_site(site)

    def start(self) -> None:
        """Listen on every address given.

        `addresses` then has the keys `unix` and `tcp` of the first daemon and `http`; each of `daemons` has its own
        `addresses`.
        """
        try:
            for daemon in self.daemons:
                daemon.bind()
            http = self._bound_http
            if http is None and self._http is not None:
                http = listen_tcp(self._http.host, self._http.port)
        except OSError:
            for daemon in self.daemons:
                daemon.release()
            self._close_store()
            raise
        self._serving = True
        self._pid = os.getpid()
        self.faults.begin()
        for daemon in self.daemons:
            self.addresses = daemon.addresses | self.addresses
            daemon.start()
        if http is not None:
            scheme = "http" if self._tls is None else "https"
            self.addresses["http"] = f"{scheme}://{address_of(http)}{API_PATH}"
            api = Api(self.accounts, self._control())
            self._api = RequestFaults(api, self.faults, self.accounts.known_id)
            app = Timed(self._api, self._latency, self._waits, self.clock)
            self._server = HttpServer(app, [http], self.faults, tls=self._tls)
            self._server.start()

    def stop(self) -> None:
        """Stop listening, deliver acknowledged commands unless a fault prevents it, and remove the socket files.

        In a fork of the serving process, this does nothing: the addresses belong to the parent.

        Raises:
            ThreadFailed: see `check`; the fake has stopped nevertheless.
        """
        if self._serving and os.getpid() != self._pid:
            return
        self._serving = False
        with ExitStack() as last_first:  # every part ends, even if another fails
            last_first.callback(self._sites.close)
            last_first.callback(self._close_store)
            last_first.callback(self._save_clock)
            last_first.callback(self._watch.close)
            if self._server is not None:
                last_first.callback(self._server.stop)
            for daemon in reversed(self.daemons):
                last_first.callback(daemon.stop)
        self.check()

    def check(self) -> None:
        """Raise ThreadFailed if one of its threads has failed: its replies are then unreliable."""
        for daemon in self.daemons:
            daemon.check()
        for part in (self._server, self._watch, self._store):
            if part is not None:
                part.check()

    def after_a_turn(self, then: Callable[[], object]) -> None:
        """Call a function once each thread that serves has taken a turn, and what is to be stored is."""
        parts = (*self.daemons, self._server, self._store)
        in_sequence([part.after_a_turn for part in parts if part is not None], then)

    def add_site(self, site: Site, *, faults: FaultPlan | None = None, waits: Waits | None = None) -> Daemon:
        """Add a daemon; it serves while the fake does.

        Args:
            site: project and addresses of the daemon.
            faults: its own plan of faults; by default that of the fake.
            waits: record of callers' waits.

        Raises:
            OSError: an address cannot be bound.
            CpsimError: the spool cannot be used.
            ValueError: there is no such project.
        """
        if site.project_id not in self.accounts.projects:
            raise ValueError(f"there is no project {site.project_id!r}; there are {', '.join(self.accounts.projects)}")
        spool = None if self._spools is None else self._free_spool(self._spools, site.project_id)
        daemon = daemon_of(
            site, self.accounts, self.faults if faults is None else faults, spool, waits, clock=self.clock
        )
        if self._serving:
            try:
                daemon.bind()
            except OSError:
                daemon.release()
                raise
            daemon.start()
        self.daemons = [*self.daemons, daemon]
        return daemon

    def remove_site(self, daemon: Daemon) -> None:
        """Remove a daemon, once it has delivered its acknowledged commands."""
        self.daemons = [other for other in self.daemons if other is not daemon]
        if self._serving:
            daemon.stop()
        else:
            daemon.release()

    def add_project(self, project_id: str, secret: str) -> None:
        """Add a project with its own accounts.

        Raises:
            ValueError: the id is taken (case does not count), or the id or the secret is invalid.
        """
        self.accounts.add_project(project_id, secret)

    def remove_project(self, project_id: str) -> None:
        """Remove a project, its daemons and its accounts."""
        for daemon in self.daemons:
            if daemon.project_id == project_id:
                self.remove_site(daemon)
        self.accounts.remove_project(project_id)

    @property
    def pending(self) -> int:
        """Number of acknowledged commands that have not reached the accounts."""
        return sum(daemon.pending for daemon in self.daemons)

    def left_spools(self) -> dict[Path, int]:
        """Return the spools beside the store that no daemon uses, each with its number of queued commands."""
        beside = {path for store in self._stores for path in store.parent.glob(f"{escape(store.name)}.*.spool")}
        left = sorted(beside - {daemon.spool_path for daemon in self.daemons if daemon.spool_path is not None})
        return {path: queued for path in left if (queued := read_status(path).queued)}

    def set_quirks(self, quirks: frozenset[str]) -> None:
        """Replace the quirks.

        Args:
            quirks: names from `cpsim.quirks.QUIRKS`.

        Raises:
            CpsimError: with a store, "ack-before-delivery" would change, which only the constructor sets.
        """
        if self._store is not None and "ack-before-delivery" in self.accounts.quirks ^ quirks:
            raise CpsimError("with a store, ack-before-delivery cannot change while the fake serves: restart with it")
        self.accounts.set_quirks(quirks)
        for daemon in self.daemons:
            daemon.set_quirks(quirks)

    def set_secrets(self, projects: Mapping[str, str], control_token: str | None = None) -> None:
        """Replace the secrets of the projects it was made with, and the control API's token if one is given.

        Connections stay.

        Raises:
            ValueError: they are not the same projects, or the control API was started without a token.
        """
        access = None if control_token is None else self._access
        if access is not None and not access.needs_token:
            raise ValueError("the control API was started without a token: restart to require one")
        self.accounts.set_secrets(projects)
        if access is not None and control_token is not None:
            access.set_token(control_token)

    def read_certificate(self) -> None:
        """Read the certificate and its key again, for further connections; raises CpsimError if they cannot be used."""
        if self._tls is not None:
            self._tls.read()

    behave = set_quirks
    """The name in version 0.1."""

    def reset(self, project_id: str | None = None) -> None:
        """Reset everything, or one project, as `POST /__cpsim/reset` does: see `Inspector.reset`.

        Projects and daemons stay, with their addresses. No fault prevents it.

        Raises:
            CpsimError: the store cannot be written.
            ValueError: a spool cannot be written, or a daemon is too busy.
            LookupError: there is no such project.
        """
        self.inspector.reset(project_id)

    def metrics(self) -> list[Family]:
        """Return the metrics of the server and its daemons, which `/metrics` shows.

        Raises:
            CpsimError: a spool cannot be read.
        """
        server = server_metrics(self.accounts, self.inspector.totals(), self._latency)
        return [build_info(), *server, *daemon_metrics(self.daemons), faults_fired(self.faults.fired)]

    def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        """Wait until every acknowledged command has reached the accounts.

        Raises:
            TimeoutError: they did not in `timeout_s` seconds.
            ThreadFailed: see `check`.
        """
        deadline = self.clock.monotonic() + timeout_s
        while self.pending:
            self.check()
            if self.clock.monotonic() > deadline:
                raise TimeoutError(f"{self.pending:,} commands have not reached the accounts in {timeout_s:g} s")
            self.clock.sleep(IDLE_POLL_S)

    def _drop(self, project_id: str | None) -> None:
        """Reset all but the accounts, of a project or of all."""
        if self._api is not None:
            self._api.drop(project_id)
        for daemon in self.daemons:
            if project_id in {None, daemon.project_id}:
                daemon.drop()
                if daemon.faults is not self.faults:
                    daemon.faults.restart()
        if project_id is not None:
            self.faults.forget_firings(project_id)
            return
        if self.accounts.quirks != self._initial_quirks:
            self.set_quirks(self._initial_quirks)
        self.faults.restart()
        if self._waits is not None:
            self._waits.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _free_spool(self, store: Path, project_id: str) -> Path:
        """Return the first spool path of a project that no daemon uses."""
        name = f"{store}.{quote(project_id, safe='')}"
        numbers = ("", *(f"+{number}" for number in range(2, len(self.daemons) + 2)))
        taken = {daemon.spool_path for daemon in self.daemons}
        return next(path for number in numbers if (path := Path(f"{name}{number}.spool")) not in taken)

    def _save_clock(self) -> None:
        with suppress(CpsimError):  # then the store has the time of the last change
            self.accounts.write_time()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()

    def _control(self) -> Control | None:
        """Return the control API; None if it is off."""
        assert self._http is not None
        if self._control_token is None and not is_loopback(self._http.host):
            return None
        self._access = access = Access(self._http.host, self._control_token)
        self._watch.start()
        dashboard = Dashboard(self.inspector, self.accounts, self.faults, self._watch, access)
        return Control(self.inspector, access, dashboard, self.metrics)
