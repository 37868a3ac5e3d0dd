"""A site's daemon in front of the accounts of the same process, in memory or with a spool."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint
from cpdaemon.errors import Refused
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.courier import CONFLICT
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.server.batches import BatchNotApplied
from cpsim.system.checks import check, check_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from socket import socket

    from cpdaemon.signing import Call
    from cpsim.clock import Clock
    from cpsim.faults.plan import FaultPlan
    from cpsim.metrics.waits import Waits
    from cpsim.server.service import AccountServer

TCP: Final = "a TcpEndpoint, such as TcpEndpoint('127.0.0.1', 8080) of cpdaemon.endpoint"
MIN_FLUSH_INTERVAL_S: Final = 0.02
"""Shortest flush interval with a spool: a batch of any size costs three commits."""
MAX_BACKOFF_S: Final = 0.02
"""Longest backoff: a retry within the process costs little."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site of a project: the addresses of its daemon.

    Attributes:
        project_id: the project.
        unix: path of the daemon's socket.
        mode: permissions of the socket file; by default as the process's umask has it.
        tcp: TCP address of the daemon; port 0 takes a free one.
        bound: sockets that listen already, by `unix` and `tcp`.
        flush_interval_s: seconds that the daemon keeps commands before it delivers them.

    Raises:
        WrongArgument: a value is of another type, or out of range.
    """

    project_id: str
    unix: Path | None = None
    mode: int | None = None
    tcp: TcpEndpoint | None = None
    bound: Mapping[str, socket] = field(default_factory=dict, hash=False)
    flush_interval_s: float = 0.0

    def __post_init__(self) -> None:
        check("project_id", self.project_id, str, "a text")
        check("unix", self.unix, (Path, NoneType), "a pathlib.Path")
        check("tcp", self.tcp, (TcpEndpoint, NoneType), TCP)
        check_seconds("flush_interval_s", self.flush_interval_s)


def daemon_of(
    site: Site,
    accounts: AccountServer,
    faults: FaultPlan,
    spool: Path | None = None,
    waits: Waits | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> Daemon:
    """Return a site's daemon, in front of the accounts.

    Args:
        site: its project and addresses.
        accounts: receiver of the commands.
        faults: the plan of faults.
        spool: file that stores commands until the accounts have them; without one, memory does.
        waits: record of callers' waits.
        clock: by which it waits.

    Raises:
        CpsimError: the spool cannot be used.
    """
    interval_s = site.flush_interval_s
    daemon = Daemon(
        InProcess(accounts, site.project_id),
        site.project_id,
        unix=site.unix,
        mode=site.mode,
        tcp=site.tcp,
        bound=site.bound,
        spool=None if spool is None else Spool(spool, clock=clock),
        flush_interval_s=interval_s if spool is None else max(interval_s, MIN_FLUSH_INTERVAL_S),
        max_backoff_s=MAX_BACKOFF_S,
        quirks=accounts.quirks,
        faults=faults,
        waits=waits,
        apply=partial(accounts.apply, site.project_id),
        clock=clock,
    )
    daemon.on_malformed = partial(accounts.note_malformed, site.project_id)
    return daemon


class InProcess:
    """The accounts as a courier's `Server`, which knows batch ids."""

    def __init__(self, accounts: AccountServer, project_id: str) -> None:
        self._accounts = accounts
        self._project_id = project_id

    def knows_batches(self) -> bool:
        """Return True."""
        return True

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Sequence[None]:
        """Apply a batch; only the accounts record which commands were refused."""
        store = self._accounts.store
        if store is not None:
            store.begin()
        try:
            self._accounts.apply(self._project_id, calls, batch_id)
        except BatchNotApplied as reason:
            raise Refused(str(reason), CONFLICT) from reason
        if store is not None:
            store.wait()
        return [None] * len(calls)

    def give_up(self, batch_id: str | None, _: Sequence[Call]) -> None:
        """Refuse to give up: a batch fails by a fault, and a fault may end."""
        raise Refused(f"batch {batch_id} is retried", CONFLICT)
