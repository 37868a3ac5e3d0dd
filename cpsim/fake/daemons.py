"""A site's daemon in front of the accounts of the same process, in memory or with a spool."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from cpdaemon.errors import ConnectFailed, Refused, ReplyLost, ReplyTimeout
from cpsim.daemon.courier import NOT_AGAIN, accepted
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.server.batches import BatchNotApplied

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cpdaemon.endpoint import TcpEndpoint
    from cpdaemon.signing import Call
    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault
    from cpsim.metrics.waits import Waits
    from cpsim.server.service import AccountServer

GATHER_S: Final = 0.02
"""How long a stored command waits for others at least: a batch costs three commits, however small it is."""
PAUSE_S: Final = 0.02
"""How long a daemon waits at most before it tries the accounts again, which costs nothing here."""
HANG_S: Final = 30.0
"""How long it waits for a reply, as `cpsim daemon` does."""
POLL_S: Final = 0.01
PASSED_ON_LATER: Final = {"flush-starves", "reorder-classes", "drop-on-error", "resend-duplicates", "busy-when-down"}
"""Quirks that show in how commands are passed on."""


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


class SiteDaemon(Daemon):
    """A site's daemon, in front of the accounts.

    Args:
        site: where it listens.
        accounts: where commands go.
        faults: what goes wrong.
        spool: the file that keeps commands until the accounts have them; without one, memory does.
        waits: where it notes how long callers wait, if it keeps commands in memory and that is asked for.

    Attributes:
        spool: the file that keeps them.

    Raises:
        CpsimError: the spool cannot be used.
    """

    def __init__(
        self,
        site: Site,
        accounts: AccountServer,
        faults: FaultPlan,
        spool: Path | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.spool = spool
        self._server = InProcess(accounts, site.project_id, faults)
        interval_s = site.flush_interval_s
        super().__init__(
            self._server,
            site.project_id,
            unix=site.unix,
            tcp=site.tcp,
            spool=None if spool is None else Spool(spool),
            flush_interval_s=interval_s if spool is None else max(interval_s, GATHER_S),
            longest_pause_s=PAUSE_S,
            quirks=accounts.quirks,
            faults=faults,
            waits=waits,
        )
        self.on_malformed = partial(accounts.note_malformed, site.project_id)
        self._apply = partial(accounts.apply, site.project_id)
        self._has_interval = bool(interval_s)

    def stop(self) -> None:
        """Stop listening, pass on what was acknowledged unless a fault forbids it, and remove the socket file."""
        self._server.stopping.set()
        super().stop()

    def _take(self, calls: Sequence[Call]) -> None:
        queues = self._has_interval or self._spool.pending or self._faults.delivery or PASSED_ON_LATER & self._quirks
        if queues:
            super()._take(calls)
        else:
            self._apply(calls)


class InProcess:
    """The accounts as a courier sees them: they know batches, and fail only by a fault of the server."""

    def __init__(self, accounts: AccountServer, project_id: str, faults: FaultPlan) -> None:
        self._accounts = accounts
        self._project_id = project_id
        self._faults = faults
        self.stopping = threading.Event()
        """Nobody waits any more for a fault that takes its time."""

    def knows_batches(self) -> bool:
        """They do."""
        return True

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Sequence[None]:
        """Apply a batch; what is refused is for the accounts to know."""
        fault = None
        if self._faults.delivery:
            if self._faults.refuses("server"):
                raise ConnectFailed("the server is down, by a fault")
            subjects = [(kind, str(arguments["slot"])) for kind, arguments in calls]
            fault = self._faults.draw("delivery", [("bulk", ""), *subjects], self._project_id)
        if fault is not None:
            self._meet(fault)
        store = self._accounts.store
        if store is not None:
            store.begin()
        try:
            self._accounts.apply(self._project_id, calls, batch_id)
        except BatchNotApplied as reason:
            raise Refused(str(reason), NOT_AGAIN) from reason
        if store is not None:
            store.wait()
        if fault is not None and fault.action == "crash-after-commit":
            self._faults.crash()
        if fault is not None and fault.action in {"lose-reply", "cut"}:
            raise ReplyLost(f"the reply was lost, by the fault {fault}")
        return [None] * len(calls)

    def give_up(self, batch_id: str | None, _: Sequence[Call]) -> None:
        """They give up nothing: a fault is why a batch fails, and it may pass."""
        raise Refused(f"batch {batch_id} is tried again", NOT_AGAIN)

    def _meet(self, fault: Fault) -> None:
        """Fail as a fault of the server wants it, if the batch is not to be applied; else return in time for that."""
        match fault.action:
            case "status":
                assert fault.value is not None
                accepted(int(fault.value), b'{"result":"error","message":"a fault that was asked for"}')
            case "not-json":
                accepted(200, b"<html>")
            case "close" | "reset":
                raise ReplyLost(f"the connection was lost, by the fault {fault}")
            case "hang":
                deadline = monotonic() + HANG_S
                while fault in list(self._faults) and monotonic() < deadline and not self.stopping.wait(POLL_S):
                    pass
                raise ReplyTimeout(f"no reply came in time, by the fault {fault}")
            case "late":
                self.stopping.wait(fault.value)
