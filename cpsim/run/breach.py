"""Which asserts are broken while a replay still runs: those that cannot hold any more, whatever is still to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.config.thresholds import RATES, TIMES, Threshold, parts_of
from cpsim.errors import UsageError
from cpsim.evidence.journal import OperationOutcome
from cpsim.evidence.reader import JournalReader
from cpsim.run.latency import PERCENTILES, as_recorded_us, rank_of
from cpsim.scenario.workload import KIND_NAMES
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.evidence.journal import Journal
    from cpsim.run.plan import Plan
    from cpsim.scenario.workload import Workload

SHARES: Final = dict(zip(TIMES, (*PERCENTILES, 100.0), strict=True))
"""The percentile of each name of a time."""


class Breaches:
    """Counts what breaks asserts, as a replay goes on.

    Upper bounds on times and on rates of errors are counted. A bound on the 99th percentile is broken as soon as more
    than a hundredth of all operations that are planned took longer: then no later answer can mend it.

    Args:
        thresholds: the asserts; `check_told` says which of them can be told.
        workload: what is replayed.
        schedule_us: when each operation is due; None if none is.
        warm_up_s: seconds at the beginning that do not count.
    """

    def __init__(
        self,
        thresholds: Sequence[Threshold],
        workload: Workload,
        schedule_us: npt.NDArray[np.int64] | None,
        warm_up_s: float,
    ) -> None:
        self._workload, self._schedule_us, self._warm_up_ns = workload, schedule_us, int(warm_up_s * 1e9)
        planned = np.zeros(len(KIND_NAMES), np.int64)
        for where in stretches(len(workload)):
            kind = workload.kind[where]
            if schedule_us is not None:
                kind = kind[schedule_us[where] * 1000 >= self._warm_up_ns]
            planned += np.bincount(kind, minlength=len(planned))
        self._counted = [_Counted(each, planned) for each in thresholds if is_told(each)]

    def take(self, records: npt.NDArray[np.void]) -> Threshold | None:
        """Count new records, whose operations have their numbers in the workload; returns an assert that is broken."""
        ops = records["op"]
        due_ns = None if self._schedule_us is None else self._schedule_us[ops] * 1000
        since_ns = records["sent_ns"] if due_ns is None else due_ns
        counts = since_ns >= self._warm_up_ns
        kinds = self._workload.kind[ops[counts]]
        records = records[counts]
        times_ns = {
            "service": records["answered_ns"] - records["sent_ns"],
            "response": records["answered_ns"] - since_ns[counts],
        }
        for counted in self._counted:
            of_kind = slice(None) if counted.kind is None else kinds == counted.kind
            counted.take(records["outcome"][of_kind], {name: each[of_kind] for name, each in times_ns.items()})
        return self._broken()

    @property
    def counts(self) -> list[int]:
        """How many operations break each assert so far."""
        return [counted.count for counted in self._counted]

    def set_counts(self, counts: Sequence[int]) -> Threshold | None:
        """Have `counts` of several shares, added up, be those of the whole; returns an assert that is broken."""
        for counted, count in zip(self._counted, counts, strict=True):
            counted.count = count
        return self._broken()

    def _broken(self) -> Threshold | None:
        return next((counted.threshold for counted in self._counted if counted.is_broken), None)


class BreachWatch:
    """Looks for broken asserts in the journals of a replay that runs.

    Args:
        plan: says which asserts end the replay.
        schedule_us: when each operation is due; None if none is.

    Attributes:
        broken: the assert that is broken; "" as long as there is none.
    """

    def __init__(self, plan: Plan, schedule_us: npt.NDArray[np.int64] | None) -> None:
        self._breaches = Breaches(plan.stop_on, plan.workload, schedule_us, plan.warm_up_s) if plan.stop_on else None
        self._readers: list[JournalReader] = []
        self.broken = ""

    def follow(self, journals: Sequence[Journal], operations: Sequence[npt.NDArray[np.int64]]) -> None:
        """Look into these journals, of which each has operations with these numbers in the workload."""
        self._readers = list(map(JournalReader, journals, operations))

    def look(self) -> bool:
        """Read what is new; returns whether an assert is broken."""
        if self._breaches is not None and not self.broken:
            for reader in self._readers:
                self.broken = self.broken or str(self._breaches.take(reader.read()) or "")
        return bool(self.broken)


def is_told(threshold: Threshold) -> bool:
    """Whether an assert can be told broken before the end: an upper bound on a time or a rate of errors."""
    metric, _ = parts_of(threshold.metric)
    is_bound = threshold.comparison in {"<", "<="} or (threshold.comparison == "==" and not threshold.limit)
    return is_bound and (metric in RATES or _time_of(metric) in SHARES)


def check_told(thresholds: Sequence[Threshold], *, virtual: bool = False) -> None:
    """Raise UsageError if none of the asserts can be told broken before the end, or if time is virtual."""
    if virtual:
        raise UsageError("--stop-on-breach is for a replay that takes its time: leave it out, or --virtual")
    if not any(map(is_told, thresholds)):
        raise UsageError(
            "--stop-on-breach goes with an --assert that can be told broken before the end: an upper bound on a time, "
            "as p99_ms<20, or on a rate of errors, as error_rate<0.001"
        )


def _time_of(metric: str) -> str:
    """The name in TIMES of a metric that is a service or response time; another text if it is none."""
    return metric.removeprefix("service_").removeprefix("response_").removesuffix("_ms")


class _Counted:
    """An assert, and how many operations break it."""

    def __init__(self, threshold: Threshold, planned: npt.NDArray[np.int64]) -> None:
        self.threshold = threshold
        self._metric, kind = parts_of(threshold.metric)
        self.kind = None if kind is None else KIND_NAMES.index(kind)
        self._planned = int(planned.sum() if self.kind is None else planned[self.kind])
        self.count = 0

    def take(self, outcomes: npt.NDArray[np.uint8], times_ns: dict[str, npt.NDArray[np.int64]]) -> None:
        if self._metric in RATES:
            names = RATES[self._metric]
            self.count += sum(int(np.count_nonzero(outcomes == OperationOutcome[name.upper()])) for name in names)
        else:
            of = times_ns["service" if self._metric.startswith("service_") else "response"]
            values, counts = np.unique(as_recorded_us(of), return_counts=True)
            self.count += sum(
                count
                for value, count in zip(values.tolist(), counts.tolist(), strict=True)
                if not self.threshold.holds(value / 1000)
            )

    @property
    def is_broken(self) -> bool:
        if not self._planned:
            return False
        if self._metric in RATES:
            return not self.threshold.holds(self.count / self._planned)
        return self.count > self._planned - rank_of(SHARES[_time_of(self._metric)], self._planned)
