"""What one process replays: all of a workload, or the slots of it that are its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.endpoint import UrlEndpoint
from cpsim.errors import CpsimError
from cpsim.replay.engine import operations
from cpsim.replay.payloads import frames, requests
from cpsim.replay.wires.lanes import addressed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from cpdaemon.endpoint import Endpoint, TcpEndpoint, UnixEndpoint
    from cpsim.replay.engine import Operation
    from cpsim.scenario.workload import Workload

AT_ONCE: Final = 512
"""Operations rendered in one go, half a millisecond's work: nothing is sent or read meanwhile."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Operations for one engine, and all it needs to know to send them.

    Attributes:
        workload: the operations; where they are part of a whole, its tables are those of the whole.
        ops: int64[operations], their numbers in the whole.
        schedule_us: int64[operations], when they are due; None if they are not waited for.
        slot_prefix: begins the ids of the slots.
        endpoint: a daemon or a server.
        credentials: (project id, secret), for a server.
        in_flight: operations under way at once.
        timeout_s: for one operation.
        think_s: how long nothing is sent in the place of an operation that was answered.
        lanes: the daemon of each of the workload's sites, where it has several; they stand for the endpoint then.

    Raises:
        CpsimError: the workload has several sites, and there are no daemons for them.
    """

    workload: Workload
    ops: npt.NDArray[np.int64]
    schedule_us: npt.NDArray[np.int64] | None
    slot_prefix: str
    endpoint: Endpoint
    credentials: tuple[str, str] | None
    in_flight: int
    timeout_s: float
    think_s: float = 0.0
    lanes: tuple[UnixEndpoint | TcpEndpoint, ...] = ()

    def __post_init__(self) -> None:
        sites = self.workload.sites
        if len(sites) != len(self.lanes):
            raise CpsimError(
                f"{self.workload.name} has {len(sites)} sites (projects {', '.join(self.workload.projects)}), and "
                f"{self.endpoint} is one: leave out --target, and cpsim run embeds them all, or replay it as one site "
                "with --set site=[]"
            )

    def operations(self) -> Iterator[Operation]:
        """The operations ready to go, under their own numbers from 0; made as they are asked for."""
        if isinstance(self.endpoint, UrlEndpoint):
            assert self.credentials is not None
            payloads = requests(self.workload, self.slot_prefix, self.endpoint, self.credentials, AT_ONCE)
        else:
            payloads = frames(self.workload, self.slot_prefix, AT_ONCE)
        if self.lanes:
            payloads = self._to_their_lanes(payloads)
        return operations(self.workload.slot, self.schedule_us, payloads)

    def _to_their_lanes(self, payloads: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
        start = 0
        for chunk in payloads:
            slots = self.workload.slot[start : start + len(chunk)]
            start += len(chunk)
            yield addressed(chunk, self.workload.site[slots])

    def part(self, index: int, count: int) -> Assignment:
        """The share number `index` of `count`: every slot is in one of them, with all its operations."""
        ops = np.flatnonzero(self.workload.slot % count == index)
        whole = self.workload
        share = replace(whole, due_us=whole.due_us[ops], kind=whole.kind[ops], slot=whole.slot[ops], row=whole.row[ops])
        return replace(
            self,
            workload=share,
            ops=self.ops[ops],
            schedule_us=None if self.schedule_us is None else self.schedule_us[ops],
            in_flight=max(1, (self.in_flight + index) // count),
        )
