"""The operations that one process replays: a whole workload, or its share of the slots."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UrlEndpoint
from cpsim.errors import CpsimError
from cpsim.replay.engine import operations
from cpsim.replay.payloads import frames, requests
from cpsim.replay.wires.lanes import addressed
from cpsim.scenario.share import numbers_of_share
from cpsim.system.mapped import taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

    from cpdaemon.endpoint import Endpoint, TcpEndpoint, UnixEndpoint
    from cpsim.replay.engine import Operation
    from cpsim.scenario.workload import Workload

AT_ONCE: Final = 512
"""Operations rendered at a time: about half a millisecond, during which nothing is sent or read."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Operations for one engine, and the parameters of sending them.

    Attributes:
        workload: the operations; a share has the tables of the whole workload.
        ops: int64[operations], their numbers in the whole workload.
        schedule_us: int64[operations], their due times; None sends without waiting.
        slot_prefix: prefix of slot ids.
        endpoint: a daemon or a server.
        credentials: (project id, secret), for a server.
        in_flight: most operations in flight at once.
        timeout_s: seconds to wait for an answer.
        think_s: seconds that a place in flight stays empty after an answer.
        lanes: the daemon of each site, if the workload has several sites; they replace the endpoint.

    Raises:
        CpsimError: the workload has several sites, and `lanes` has another number of daemons.
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

    def operations(self, on_chunk: Callable[[int], object] = lambda _: None) -> Iterator[Operation]:
        """The operations, numbered from 0, of which the first ones are rendered now. For `on_chunk` see `engine`."""
        if isinstance(self.endpoint, UrlEndpoint):
            assert self.credentials is not None
            payloads = requests(self.workload, self.slot_prefix, self.endpoint, self.credentials, AT_ONCE)
        else:
            payloads = frames(self.workload, self.slot_prefix, AT_ONCE)
        if self.lanes:
            payloads = self._to_their_lanes(payloads)
        upcoming = operations(self.workload.slot, self.schedule_us, payloads, on_chunk)
        return itertools.chain(list(itertools.islice(upcoming, 1)), upcoming)

    def _to_their_lanes(self, payloads: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
        start = 0
        for chunk in payloads:
            slots = self.workload.slot[start : start + len(chunk)]
            start += len(chunk)
            yield addressed(chunk, self.workload.site[slots])

    def part(self, index: int, count: int) -> Assignment:
        """Share `index` of `count`; each slot is in one share, by its number, with all its operations."""
        ops = numbers_of_share(self.workload, index, count)
        return replace(
            self,
            workload=self.workload.of_operations(ops),
            ops=taken(self.ops, ops),
            schedule_us=None if self.schedule_us is None else taken(self.schedule_us, ops),
            in_flight=max(1, (self.in_flight + index) // count),
        )
