"""The fake in threads of the calling process."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from cpdaemon.endpoint import TcpEndpoint
from cpsim.daemon.site import address_of
from cpsim.daemon.spool import read_status
from cpsim.errors import CpsimError
from cpsim.fake.daemons import Site, SiteDaemon
from cpsim.faults.plan import FaultPlan
from cpsim.net.addresses import listen_tcp
from cpsim.net.listen import is_loopback
from cpsim.server.control.access import Access
from cpsim.server.control.api import Control
from cpsim.server.control.inspection import Inspector
from cpsim.server.dashboard.pages import Dashboard
from cpsim.server.dashboard.watch import Watch
from cpsim.server.faults import FaultyApi
from cpsim.server.http import API_PATH
from cpsim.server.journal import DEFAULT_LIMIT
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer
from cpsim.server.store import Store
from cpsim.server.timed import TimedApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from cpsim.faults.spec import Fault
    from cpsim.metrics.waits import Waits

ANY_PORT: Final = TcpEndpoint("127.0.0.1", 0)
CATCH_UP_S: Final = 2.0
"""How long a reset waits for what daemons have acknowledged."""
IDLE_POLL_S: Final = 0.001


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
        quirks: how it differs from what is documented: names from `cpsim.protocol.quirks.QUIRKS`.
        journal_limit: how many commands of each project the journal keeps.
        store: the file that keeps the accounts; what a daemon has acknowledged is in `FILE.PROJECT.spool` beside it,
            of a project's second daemon in `FILE.PROJECT+2.spool`. Without it, all is in memory.
        faults: what goes wrong, as text or as `Fault`s; `faults` is then the plan that has them, and can be changed.
        seed: of the faults' probabilities.
        crash: ends this process at once; without it, a fault that crashes is a problem.
        waits: where the server notes how long callers wait, and, if it keeps commands in memory, the daemon that works
            for the first project.

    Raises:
        OSError: an address cannot be listened at (from `start`).
        CpsimError: the store or a spool cannot be used, or there is no such fault (from the constructor).
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
        waits: Waits | None = None,
    ) -> None:
        if not projects:
            raise ValueError("a fake needs a project")
        self.faults = FaultPlan(faults, seed=seed, crash=crash)
        self._store = None if store is None else Store(store)
        self.accounts = AccountServer(projects, quirks=quirks, journal_limit=journal_limit, store=self._store)
        self.inspector = Inspector(self.accounts, lambda: self.pending, self.faults, self.behave, self._catch_up)
        self._watch = Watch(self.accounts, lambda: self.daemons)
        self.addresses: dict[str, str] = {}
        self._http = http
        self._control_token = control_token
        self._waits = waits
        self._stores = {store, self._store.path} if store is not None and self._store is not None else set()
        self._spools = None if "ack-before-delivery" in quirks or self._store is None else self._store.path
        self._serving = False
        self._server: HttpServer | None = None
        self.daemons: list[SiteDaemon] = []
        if unix is not None or tcp is not None:
            own = Site(project_id=next(iter(projects)), unix=unix, tcp=tcp, flush_interval_s=flush_interval_s)
            self.add_site(own, waits=waits)
        for site in sites:
            self.add_site(site)

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
        self._serving = True
        self._pid = os.getpid()
        self.faults.begin()
        for daemon in self.daemons:
            self.addresses = daemon.addresses | self.addresses
            daemon.start()
        if http is not None:
            self.addresses["http"] = f"http://{address_of(http)}{API_PATH}"
            self._server = HttpServer(self._api(), [http], self.faults)
            self._server.start()

    def stop(self) -> None:
        """Stop listening, pass on what was acknowledged unless a fault forbids it, and remove the socket files.

        In a process forked from the one that serves, nothing is done: the addresses are the other's.

        Raises:
            ThreadFailed: see `check`; it has stopped all the same.
        """
        if self._serving and os.getpid() != self._pid:
            return
        self._serving = False
        with ExitStack() as last_first:  # all of it ends, whatever fails
            last_first.callback(self._close_store)
            last_first.callback(self._keep_time)
            last_first.callback(self._watch.close)
            if self._server is not None:
                last_first.callback(self._server.stop)
            for daemon in reversed(self.daemons):
                last_first.callback(daemon.stop)
        self.check()

    def check(self) -> None:
        """Raise ThreadFailed if one of its threads has failed: what it serves then is not to be relied on."""
        for daemon in self.daemons:
            daemon.check()
        for part in (self._server, self._watch, self._store):
            if part is not None:
                part.check()

    def add_site(self, site: Site, *, faults: FaultPlan | None = None, waits: Waits | None = None) -> SiteDaemon:
        """One more daemon; it serves when the fake does.

        Args:
            site: where it listens, and for which project.
            faults: a plan of its own; it meets those of the fake otherwise.
            waits: where it notes how long callers wait, if it keeps commands in memory.

        Raises:
            OSError: it cannot listen there.
            CpsimError: its spool cannot be used.
            ValueError: there is no such project.
        """
        if site.project_id not in self.accounts.projects:
            raise ValueError(f"there is no project {site.project_id!r}; there are {', '.join(self.accounts.projects)}")
        spool = None if self._spools is None else self._free_spool(self._spools, site.project_id)
        daemon = SiteDaemon(site, self.accounts, self.faults if faults is None else faults, spool, waits)
        if self._serving:
            try:
                daemon.bind()
            except OSError:
                daemon.release()
                raise
            daemon.start()
        self.daemons = [*self.daemons, daemon]
        return daemon

    def remove_site(self, daemon: SiteDaemon) -> None:
        """Take a daemon away, when it has passed on what it acknowledged."""
        self.daemons = [other for other in self.daemons if other is not daemon]
        if self._serving:
            daemon.stop()
        else:
            daemon.release()

    def add_project(self, project_id: str, secret: str) -> None:
        """One more project, with accounts of its own.

        Raises:
            ValueError: there is one of that id, whatever its case, or the id or the secret cannot be.
        """
        self.accounts.add_project(project_id, secret)

    def remove_project(self, project_id: str) -> None:
        """Take a project away, with its daemons and all that is known of it."""
        for daemon in self.daemons:
            if daemon.project_id == project_id:
                self.remove_site(daemon)
        self.accounts.remove_project(project_id)

    @property
    def pending(self) -> int:
        """How many commands the daemons acknowledged that have not reached the accounts."""
        return sum(daemon.pending for daemon in self.daemons)

    def left_spools(self) -> dict[Path, int]:
        """The spools beside the store that none of the daemons has, with how many commands wait in each."""
        beside = {path for store in self._stores for path in store.parent.glob(f"{escape(store.name)}.*.spool")}
        left = sorted(beside - {daemon.spool for daemon in self.daemons if daemon.spool is not None})
        return {path: queued for path in left if (queued := read_status(path).queued)}

    def behave(self, quirks: frozenset[str]) -> None:
        """Have these quirks, and no others, from now on.

        Args:
            quirks: names from `cpsim.protocol.quirks.QUIRKS`.

        Raises:
            CpsimError: with a store, "ack-before-delivery" would come or go: that is decided when the fake is made.
        """
        if self._store is not None and "ack-before-delivery" in self.accounts.quirks ^ quirks:
            raise CpsimError("with a store, ack-before-delivery cannot be switched while it serves: start anew with it")
        self.accounts.set_quirks(quirks)
        for daemon in self.daemons:
            daemon.behave(quirks)

    def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        """Wait until every command that was acknowledged has reached the accounts.

        Raises:
            TimeoutError: that took longer.
            ThreadFailed: see `check`.
        """
        deadline = time.monotonic() + timeout_s
        while self.pending:
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.pending:,} commands have not reached the accounts in {timeout_s:g} s")
            time.sleep(IDLE_POLL_S)

    def _catch_up(self, project_id: str | None) -> None:
        """Have in the accounts what daemons have acknowledged by now: those of a project, or all."""
        for daemon in self.daemons:
            if project_id in {None, daemon.project_id} and not daemon.catch_up(CATCH_UP_S):
                raise CpsimError(
                    f"{daemon.pending:,} commands that a daemon of project {daemon.project_id!r} acknowledged have not "
                    f"reached the accounts in {CATCH_UP_S:g} s: remove the fault that holds them up"
                )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _free_spool(self, store: Path, project_id: str) -> Path:
        """The first of the files for a project's daemons that none of them has."""
        name = f"{store}.{quote(project_id, safe='')}"
        numbers = ("", *(f"+{number}" for number in range(2, len(self.daemons) + 2)))
        taken = {daemon.spool for daemon in self.daemons}
        return next(path for number in numbers if (path := Path(f"{name}{number}.spool")) not in taken)

    def _keep_time(self) -> None:
        with suppress(CpsimError):  # then the store has the time of what was last changed
            self.accounts.write_time()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()

    def _api(self) -> FaultyApi:
        control = self._control()
        if self._waits is None:
            return FaultyApi(self.accounts, control, self.faults)
        return TimedApi(self.accounts, control, self.faults, self._waits)

    def _control(self) -> Control | None:
        """The control API, where it is to be served."""
        assert self._http is not None
        if self._control_token is None and not is_loopback(self._http.host):
            return None
        access = Access(self._http.host, self._control_token)
        dashboard = Dashboard(self.inspector, self.accounts, self.faults, self._watch, access)
        return Control(self.inspector, access, dashboard)
