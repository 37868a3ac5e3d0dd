"""The plan of a run: what is replayed, where, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cpsim.replay.assignment import Assignment
from cpsim.replay.pace import Users
from cpsim.system.growing import gathered
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import numpy.typing as npt

    from cpdaemon.endpoint import Endpoint, UnixEndpoint, UrlEndpoint
    from cpsim.accounts.sources import AccountsSource
    from cpsim.config.thresholds import Threshold
    from cpsim.replay.pace import Pace
    from cpsim.scenario.workload import Workload


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """The endpoint of a replay, and the server whose accounts are observed.

    Attributes:
        endpoint: a daemon or a server.
        server: the server whose accounts show what was applied; None if there is none to observe.
        credentials: (project id, secret) at the server.
        lanes: the daemon of each site, if the workload has several sites; they replace the endpoint.
        accounts: shows the accounts, in place of the server; None if the server shows them itself.
        accounts_project: whose slots it shows, where there are no credentials.
        quirks: names of the quirks that it is known to have.
    """

    endpoint: Endpoint
    server: UrlEndpoint | None = None
    credentials: tuple[str, str] | None = None
    lanes: tuple[UnixEndpoint, ...] = ()
    accounts: AccountsSource | None = None
    accounts_project: str | None = None
    quirks: frozenset[str] = frozenset()

    @property
    def project(self) -> str | None:
        """Whose slots are verified; None if no accounts are looked at."""
        return self.accounts_project if self.credentials is None else self.credentials[0]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is replayed, where, and how fast.

    Attributes:
        workload: the operations.
        target: where they are sent, and whose accounts are observed.
        pace: when operations are due.
        slot_prefix: prefix of slot ids.
        started: when the run began.
        in_flight: most operations in flight at once.
        timeout_s: seconds to wait for an answer, and for a command to be applied.
        embedded: whether the target is a fake of the run's own.
        fresh: whether no other run uses the slot prefix.
        processes: number of processes that replay; they divide the slots among them.
        stop_after_s: seconds after which the replay ends, complete or not.
        warm_up_s: seconds at the beginning of the replay that the figures leave out.
        stop_on: asserts of which the first that is broken ends the replay.
        command: the command line that repeats the run; "" if there is none.
        folder: has the evidence while the run lasts; None for none.
        digest: of the workload of which `workload` has no operations, as others have them; "" if it has its own.
    """

    workload: Workload
    target: ReplayTarget
    pace: Pace
    slot_prefix: str
    started: datetime
    in_flight: int
    timeout_s: float
    embedded: bool = False
    fresh: bool = True
    processes: int = 1
    stop_after_s: float = math.inf
    warm_up_s: float = 0.0
    stop_on: tuple[Threshold, ...] = ()
    command: str = ""
    folder: Path | None = None
    digest: str = ""

    def assignment(self, ops: npt.NDArray[np.int64] | None = None) -> Assignment:
        """The assignment of the workload.

        Args:
            ops: the numbers of its operations in the whole of which it is a share; None if it is the whole.

        Raises:
            CpsimError: the workload has several sites, and the target is one.
        """
        count, due_us = len(self.workload), self.workload.due_us
        if ops is None:
            ops = gathered((np.arange(where.start, where.stop) for where in stretches(count)), np.int64)
        pieces = (self.pace.schedule(due_us[where], ops[where]) for where in stretches(count))
        has_due_times = self.pace.schedule(due_us[:0]) is not None
        return Assignment(
            workload=self.workload,
            ops=ops,
            schedule_us=gathered((piece for piece in pieces if piece is not None), np.int64) if has_due_times else None,
            slot_prefix=self.slot_prefix,
            endpoint=self.target.endpoint,
            credentials=self.target.credentials,
            in_flight=self.in_flight,
            timeout_s=self.timeout_s,
            think_s=self.pace.think_s if isinstance(self.pace, Users) else 0.0,
            lanes=self.target.lanes,
        )
