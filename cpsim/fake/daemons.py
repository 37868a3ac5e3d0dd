"""A site's daemon in front of the accounts of the same process, in memory or with a spool."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from cpdaemon.errors import ConnectFailed, Refused, ReplyLost, ReplyTimeout
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.client import accepted
from cpsim.daemon.courier import CONFLICT
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.quirks import QUIRKS, composed
from cpsim.quirks.policies.delivery import DeliveryPolicy
from cpsim.server.batches import BatchNotApplied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cpdaemon.endpoint import TcpEndpoint
    from cpdaemon.signing import Call
    from cpsim.clock import Clock
    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault
    from cpsim.metrics.waits import Waits
    from cpsim.server.service import AccountServer

MIN_FLUSH_INTERVAL_S: Final = 0.02
"""Shortest flush interval with a spool: a batch of any size costs three commits."""
MAX_BACKOFF_S: Final = 0.02
"""Longest backoff: a retry within the process costs little."""
REPLY_TIMEOUT_S: Final = 30.0
"""Timeout of a reply, as in `cpsim daemon`."""
POLL_S: Final = 0.01
SENDING: Final = DeliveryPolicy()
QUEUE_QUIRKS: Final = {
    name for name in QUIRKS if replace(composed(SENDING, [name]), durable=True, sees_errors=True) != SENDING
}
"""Quirks of delivery, for which commands must be queued."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site of a project: the addresses of its daemon.

    Attributes:
        project_id: the project.
        unix: path of the daemon's socket.
        tcp: TCP address of the daemon; port 0 takes a free one.
        flush_interval_s: seconds that the daemon keeps commands before it delivers them.
    """

    project_id: str
    unix: Path | None = None
    tcp: TcpEndpoint | None = None
    flush_interval_s: float = 0.0


class SiteDaemon(Daemon):
    """A site's daemon, in front of the accounts.

    Args:
        site: its project and addresses.
        accounts: receiver of the commands.
        faults: the plan of faults.
        spool: file that stores commands until the accounts have them; without one, memory does.
        waits: record of callers' waits; only without a spool.
        clock: by which it waits.

    Attributes:
        spool: file that stores the commands.

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
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.spool = spool
        self._server = InProcess(accounts, site.project_id, faults, clock)
        interval_s = site.flush_interval_s
        super().__init__(
            self._server,
            site.project_id,
            unix=site.unix,
            tcp=site.tcp,
            spool=None if spool is None else Spool(spool, clock=clock),
            flush_interval_s=interval_s if spool is None else max(interval_s, MIN_FLUSH_INTERVAL_S),
            max_backoff_s=MAX_BACKOFF_S,
            quirks=accounts.quirks,
            faults=faults,
            waits=waits,
            clock=clock,
        )
        self.on_malformed = partial(accounts.note_malformed, site.project_id)
        self._apply = partial(accounts.apply, site.project_id)
        self._dropping = threading.Lock()
        self._has_interval = bool(interval_s)

    def stop(self) -> None:
        """Stop listening, deliver acknowledged commands unless a fault prevents it, and remove the socket file."""
        self._server.stopping.set()
        super().stop()

    def drop(self) -> None:  # noqa: D102 - inherited
        with self._dropping:
            self._server.dropping = True
            try:
                super().drop()
            finally:
                self._server.dropping = False

    def _take(self, calls: Sequence[Call]) -> None:
        queues = self._has_interval or self._spool.pending or self.faults.delivery or QUEUE_QUIRKS & self._quirks
        if queues:
            super()._take(calls)
        else:
            self._apply(calls)


class InProcess:
    """The accounts as a courier's `Server`: they know batch ids, and fail only by a fault of the server."""

    def __init__(self, accounts: AccountServer, project_id: str, faults: FaultPlan, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock
        self._project_id = project_id
        self._faults = faults
        self.stopping = threading.Event()
        """Set to end the faults that hold a batch."""
        self.dropping = False
        """Whether no fault holds a batch: one that is under way is over before what waits is dropped."""

    def knows_batches(self) -> bool:
        """Return True."""
        return True

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Sequence[None]:
        """Apply a batch; only the accounts record which commands were refused."""
        fault = None
        if self._faults.delivery:
            if self._faults.refuses("server"):
                raise ConnectFailed("the server is down, by a fault")
            subjects = [(kind, str(arguments["slot"])) for kind, arguments in calls]
            fault = self._faults.draw("delivery", [("bulk", ""), *subjects], self._project_id)
        if fault is not None:
            self._fail_by(fault)
        store = self._accounts.store
        if store is not None:
            store.begin()
        try:
            self._accounts.apply(self._project_id, calls, batch_id)
        except BatchNotApplied as reason:
            raise Refused(str(reason), CONFLICT) from reason
        if store is not None:
            store.wait()
        if fault is not None and fault.action == "crash-after-commit":
            self._faults.crash()
        if fault is not None and fault.action in {"lose-reply", "cut"}:
            raise ReplyLost(f"the reply was lost by the fault {fault}")
        return [None] * len(calls)

    def give_up(self, batch_id: str | None, _: Sequence[Call]) -> None:
        """Refuse to give up: a batch fails by a fault, and a fault may end."""
        raise Refused(f"batch {batch_id} is retried", CONFLICT)

    def _fail_by(self, fault: Fault) -> None:
        """Raise the error of a fault of the server; return, after its delay if it has one, if the batch is applied."""
        match fault.action:
            case "status":
                assert fault.value is not None
                accepted(int(fault.value), b'{"result":"error","message":"a requested fault"}')
            case "not-json":
                accepted(200, b"<html>")
            case "close" | "reset":
                raise ReplyLost(f"the connection was lost by the fault {fault}")
            case "hang":
                self._hold(REPLY_TIMEOUT_S, lambda: fault in list(self._faults))
                raise ReplyTimeout(f"the reply timed out by the fault {fault}")
            case "late":
                assert fault.value is not None
                self._hold(fault.value, lambda: True)

    def _hold(self, longest_s: float, holds: Callable[[], bool]) -> None:
        """Wait while a fault holds a batch."""
        deadline_s = self._clock.monotonic() + longest_s
        while holds() and not self.dropping and (left_s := deadline_s - self._clock.monotonic()) > 0:
            if self.stopping.wait(min(left_s, POLL_S)):
                break
