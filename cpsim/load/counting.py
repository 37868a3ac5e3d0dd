"""The figures of a worker's share, as sums and histograms that add up to those of a load."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cpsim.evidence.evidence import tally
from cpsim.load.grid import Grid
from cpsim.run.latency import Histogram, Times, timed_records
from cpsim.run.measured import after, errors_of, outcomes_of, own_lateness_ns, planned_of
from cpsim.run.over_time import Intervals, answers_by_bucket, earliest_ns, unanswered
from cpsim.run.page import slowest_of
from cpsim.system.external_sort import places_by_group
from cpsim.system.growing import made
from cpsim.system.mapped import stretches, taken

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence

    Ints = npt.NDArray[np.int64]
    Records = npt.NDArray[np.void]


class ShareFigures:
    """Counts the operations of a share. What it returns can be sent by Locust.

    Args:
        evidence: of the share.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._by_interval = (np.empty(0, np.int64), np.zeros(1, np.int64))

    def sums(self, warm_up_s: float) -> dict[str, Any]:
        """All that needs no moment of the whole load: see `cpsim.load.adding`."""
        whole = self._evidence
        evidence = after(whole, int(warm_up_s * 1e9))
        timed = timed_records(evidence)
        times = Times.of(evidence, timed)

        def late_ns(where: slice) -> Ints:
            return self._lateness_ns(timed[where])

        return {
            "planned": planned_of(whole).tolist(),
            "outcomes": outcomes_of(evidence).tolist(),
            "outcomes_of_whole": outcomes_of(whole).tolist(),
            "errors": list(whole.errors),
            "answers": tally(whole.workload.kind, whole.records, whole.errors).tolist(),
            "counted_errors": errors_of(evidence),
            "service": _of_kinds(times.service),
            "response": _of_kinds(times.response) if self._is_due else None,
            "per_second": times.per_second,
            "lateness": _histogram(made(len(timed), np.int64, lambda w: self._lateness_ns(timed[w])))
            if self._is_due
            else None,
            "own_lateness": _histogram(own_lateness_ns(whole)) if self._is_due else None,
            "sent": len(whole.records),
            "left_out": len(whole.records) - len(evidence.records),
            "last_ns": max((int(self._timed["answered_ns"][w].max()) for w in stretches(len(self._timed))), default=-1),
            "seconds": len(self._by_second[1]) - 1,
            "parts": [whole.counts_in(part) for part in range(whole.count)],
            "slowest": [
                [took, line.title, line.lines, [list(bar) for bar in line.bars], line.seconds]
                for took, line in slowest_of(whole)
            ],
        }

    def over_time(self, last_ns: int) -> dict[str, Any]:
        """Operations by interval of a load whose last answer came at that time."""
        evidence, records, intervals = self._evidence, self._timed, Intervals.of(last_ns)
        first_ns, latest_ns = answers_by_bucket(records, unanswered(evidence), last_ns)
        counts = intervals.counted(evidence, records)
        self._by_interval = intervals.grouped(len(records), lambda where: self._since_ns(records[where]))
        return {
            "counts": [None if each is None else each.tolist() for each in counts],
            "first_ns": first_ns.tolist(),
            "latest_ns": latest_ns.tolist(),
        }

    def by_interval(self, first: int, stop: int) -> dict[str, Any]:
        """Times of operations of some intervals of the load that `over_time` was asked about."""
        (places, bounds), grids = self._by_interval, []
        for number in range(first, min(stop, len(bounds) - 1)):
            of_interval = places[bounds[number] : bounds[number + 1]]
            for where in stretches(len(of_interval)):
                chosen = taken(self._timed, of_interval[where])
                groups = np.full(len(chosen), number - first)
                grids.append(self._grid(groups, [self._service_ns(chosen), self._response_ns(chosen)]))
        return {"grid": Grid.joined(grids).plain()}

    def earliest(self, begins: list[int], last_ns: int) -> list[int]:
        """See `earliest_ns`."""
        found: list[int] = earliest_ns(self._timed, np.array(begins, np.int64), last_ns).tolist()
        return found

    def by_second(self, first: int, stop: int) -> dict[str, Any]:
        """Operations of some seconds, by when they were due, or sent if none was."""
        places, bounds = self._by_second
        stop = min(stop, len(bounds) - 1)
        if first >= stop:
            return {"operations": [], "not_accepted": [], "grid": None}
        chosen = taken(self._timed, np.sort(places[bounds[first] : bounds[stop]]))
        groups = self._since_ns(chosen) // 1_000_000_000 - first
        times = [
            self._service_ns(chosen),
            self._response_ns(chosen),
            self._lateness_ns(chosen) if self._is_due else None,
        ]
        return {
            "operations": np.bincount(groups, minlength=stop - first).tolist(),
            "not_accepted": np.bincount(groups[chosen["outcome"] != 0], minlength=stop - first).tolist(),
            "grid": self._grid(groups, times).plain(),
        }

    def _grid(self, groups: Ints, times_ns: list[Ints | None]) -> Grid:
        """Times in as many columns of each group."""
        columns = len(times_ns)
        return Grid.joined(
            Grid.of(groups * columns + column, each) for column, each in enumerate(times_ns) if each is not None
        )

    @property
    def _is_due(self) -> bool:
        return self._evidence.schedule_us is not None

    @cached_property
    def _timed(self) -> Records:
        return timed_records(self._evidence)

    @cached_property
    def _by_second(self) -> tuple[Ints, Ints]:
        """The places of records by second, and where those of each begin."""
        records = self._timed
        last_ns = max((int(self._since_ns(records[w]).max()) for w in stretches(len(records))), default=-1)
        seconds = last_ns // 1_000_000_000 + 1
        return places_by_group(len(records), lambda w: self._since_ns(records[w]) // 1_000_000_000, seconds)

    def _since_ns(self, records: Records) -> Ints:
        due_us = self._evidence.schedule_us
        since_ns: Ints = records["sent_ns"] if due_us is None else due_us[records["op"]] * 1000
        return since_ns

    def _service_ns(self, records: Records) -> Ints:
        took_ns: Ints = records["answered_ns"] - records["sent_ns"]
        return took_ns

    def _response_ns(self, records: Records) -> Ints | None:
        return None if self._evidence.schedule_us is None else records["answered_ns"] - self._since_ns(records)

    def _lateness_ns(self, records: Records) -> Ints:
        late_ns: Ints = records["sent_ns"] - self._since_ns(records)
        return late_ns


def _of_kinds(times: dict[str, Histogram]) -> dict[str, list[Any]]:
    return {kind: histogram.plain() for kind, histogram in times.items()}


def _histogram(times_ns: Ints) -> list[list[int]]:
    return Histogram.joined(Histogram.of(times_ns[where]) for where in stretches(len(times_ns))).plain()
