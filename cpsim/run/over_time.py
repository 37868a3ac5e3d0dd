"""A replay over time: rates, latencies, apply delays and queues of each interval, and the outages between answers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.failures import was_answered
from cpsim.run.latency import timed_records
from cpsim.system.external_sort import places_by_group
from cpsim.system.mapped import let_go, stretches, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence
    from cpsim.run.pipeline import ApplyDelay

    Ints = npt.NDArray[np.int64]

Column = list[float | None]
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
STEPS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400),
)
FEWEST, MOST = 10, 600
"""Intervals of a second, unless these are too few or too many."""
OUTAGE_NS: Final = 1_000_000_000
"""How long nothing is answered in an outage, at least."""


@dataclass(frozen=True, slots=True)
class OverTime:
    """The figures of each interval; None where one is unknown or there is nothing to measure.

    Attributes:
        step_s: length of an interval.
        end_s: the last answer, in seconds since the replay began.
        begins_s: the begin of each interval.
        offered: operations due per second; None if they had no due times.
        achieved: operations answered per second.
        refused, unknown: operations per second with that outcome, by when it was known.
        service_ms, response_ms: by the name of the quantile, of the operations that were due in the interval, or
            sent in it if there are no due times; response times are None then.
        apply_delay_ms: likewise, of the commands that were answered in the interval; None if unknown.
        in_flight: operations sent and not answered at the end of the interval.
        pending: commands answered and not applied at the end of the interval, of those whose apply delay is known;
            None if none is.
        outages: stretches of a second and more in which operations waited and the target answered none, in seconds.
        is_cut: whether the last interval is not whole. Its rates are None: they would look like a fall.
    """

    step_s: float
    end_s: float
    begins_s: list[float]
    offered: Column | None
    achieved: Column
    refused: Column
    unknown: Column
    service_ms: dict[str, Column]
    response_ms: dict[str, Column] | None
    apply_delay_ms: dict[str, Column] | None
    in_flight: list[int]
    pending: list[int] | None
    outages: list[tuple[float, float]]
    is_cut: bool

    @classmethod
    def of(cls, evidence: Evidence, delay: ApplyDelay) -> OverTime | None:
        """Of a run that has ended; None if nothing was sent."""
        records = timed_records(evidence)
        if not len(records):
            return None
        schedule_us = evidence.schedule_us
        intervals = Intervals.of(_largest(records["answered_ns"]))
        counts = intervals.counted(evidence, records)
        due_ns = None if schedule_us is None else lambda places: schedule_us[records["op"][places]] * 1000
        since = intervals.grouped(len(records), lambda w: records["sent_ns"][w] if due_ns is None else due_ns(w))
        pending = apply_delay_ms = None
        if delay.delays_ns is not None and delay.answered_ns is not None:
            delays_ns, answers_ns = delay.delays_ns, delay.answered_ns
            of_answers = intervals.grouped(len(answers_ns), answers_ns.__getitem__)
            apply_delay_ms = _quantiles_ms(*of_answers, lambda places: taken(delays_ns, places))
            between = intervals.between(len(answers_ns), lambda w: (answers_ns[w], answers_ns[w] + delays_ns[w]))
            pending = between.tolist()
        return cls.counted(
            intervals,
            counts,
            service_ms=_quantiles_ms(*since, lambda places: _took_ns(taken(records, places))),
            response_ms=None
            if due_ns is None
            else _quantiles_ms(*since, lambda places: taken(records, places)["answered_ns"] - due_ns(places)),
            apply_delay_ms=apply_delay_ms,
            pending=pending,
            outages=_outages_s(records, unanswered(evidence), _largest(records["answered_ns"])),
        )

    @classmethod
    def counted(
        cls,
        intervals: Intervals,
        counts: Counts,
        *,
        service_ms: dict[str, Column],
        response_ms: dict[str, Column] | None,
        outages: list[tuple[float, float]],
        apply_delay_ms: dict[str, Column] | None = None,
        pending: list[int] | None = None,
    ) -> OverTime:
        """Of what was counted in each interval; for the others see the attributes."""
        step_s = intervals.step_ns / 1e9
        return cls(
            step_s=step_s,
            end_s=intervals.end_ns / 1e9,
            begins_s=[round(number * intervals.step_ns / 1e9, 3) for number in range(intervals.number)],
            offered=None if counts.offered is None else intervals.rate(counts.offered),
            achieved=intervals.rate(counts.achieved),
            refused=intervals.rate(counts.refused),
            unknown=intervals.rate(counts.unknown),
            service_ms=service_ms,
            response_ms=response_ms,
            apply_delay_ms=apply_delay_ms,
            in_flight=counts.in_flight.tolist(),
            pending=pending,
            outages=outages,
            is_cut=intervals.is_cut,
        )


class Counts(NamedTuple):
    """Operations of some records by interval: int64[intervals]; those of several shares of a replay add up.

    Attributes:
        offered: due; None if they had no due times.
        achieved: answered.
        refused, unknown: with that outcome.
        in_flight: sent and not answered at the end of the interval.
    """

    offered: Ints | None
    achieved: Ints
    refused: Ints
    unknown: Ints
    in_flight: Ints


@dataclass(frozen=True, slots=True)
class Intervals:
    """The intervals of a replay: their length, their number, and the end of the last answer."""

    step_ns: int
    number: int
    end_ns: int

    @classmethod
    def of(cls, last_ns: int) -> Intervals:
        """Those of a replay whose last answer came then."""
        end_ns = max(1, last_ns)
        step_ns = round(_step_s(end_ns / 1e9) * 1e9)
        return cls(step_ns, -(-end_ns // step_ns), end_ns)

    def counted(self, evidence: Evidence, records: npt.NDArray[np.void]) -> Counts:
        """The records of evidence whose times were measured, by interval."""
        achieved, by_outcome = np.zeros(self.number, np.int64), np.zeros((len(OperationOutcome), self.number), np.int64)
        no_answers, due_us = unanswered(evidence), evidence.schedule_us
        for where in stretches(len(records)):
            piece = records[where]
            achieved += self.count(piece["answered_ns"][~np.isin(piece["error"], no_answers)])
            for outcome in OperationOutcome:
                by_outcome[outcome] += self.count(piece["answered_ns"][piece["outcome"] == outcome])
        return Counts(
            None if due_us is None else self.offered(due_us),
            achieved,
            by_outcome[OperationOutcome.REFUSED],
            by_outcome[OperationOutcome.UNKNOWN],
            self.between(len(records), lambda w: (records["sent_ns"][w], records["answered_ns"][w])),
        )

    @property
    def is_cut(self) -> bool:
        """Whether the last one is not whole."""
        return self.end_ns < self.number * self.step_ns

    def places(self, times_ns: Ints) -> Ints:
        """The interval of each time."""
        found: Ints = np.minimum(times_ns // self.step_ns, self.number - 1)
        return found

    def grouped(self, total: int, times_ns: Callable[[slice], Ints]) -> tuple[Ints, Ints]:
        """The places of times in each interval, and where those of each begin and the last end."""
        return places_by_group(total, lambda where: self.places(times_ns(where)), self.number)

    def count(self, times_ns: Ints) -> Ints:
        """How many times are in each interval."""
        return np.bincount(self.places(times_ns), minlength=self.number)

    def offered(self, schedule_us: Ints) -> Ints:
        """How many operations were due in each interval, before the last answer."""
        counts = np.zeros(self.number, np.int64)
        for where in stretches(len(schedule_us)):
            due_ns = schedule_us[where] * 1000
            counts += self.count(due_ns[due_ns < self.end_ns])
        return counts

    def rate(self, counts: Ints) -> Column:
        """Numbers per second."""
        rates: Column = [round(value, 3) for value in (counts * (1e9 / self.step_ns)).tolist()]
        return [*rates[:-1], None] if self.is_cut else rates

    def between(self, total: int, times_ns: Callable[[slice], tuple[Ints, Ints]]) -> Ints:
        """How many have begun and not ended at the end of each interval.

        Args:
            total: how many there are.
            times_ns: when those of some places began and ended.
        """
        ends_ns = np.minimum(np.arange(1, self.number + 1) * self.step_ns, self.end_ns)
        changes = np.zeros(self.number + 1, np.int64)
        for where in stretches(total):
            for sign, times in zip((1, -1), times_ns(where), strict=True):
                changes += sign * np.bincount(np.searchsorted(ends_ns, times), minlength=self.number + 1)
        found: Ints = np.cumsum(changes[:-1])
        return found


def _largest(values: Ints) -> int:
    return max((int(values[where].max()) for where in stretches(len(values))), default=0)


def _step_s(end_s: float) -> float:
    """The length of intervals of a replay of `end_s` seconds."""
    if end_s < FEWEST:
        return next((step for step in reversed(STEPS_S) if end_s / step >= 2 * FEWEST), STEPS_S[0])
    return next((step for step in STEPS_S if step >= 1 and end_s / step <= MOST), STEPS_S[-1])


def _quantiles_ms(places: Ints, bounds: Ints, values_ns: Callable[[Ints], Ints]) -> dict[str, Column]:
    """Quantiles of the values in each interval, by name; at least a microsecond.

    Args:
        places: of the values among all, interval after interval.
        bounds: where those of each interval begin, and the last ones end.
        values_ns: the values at some places.
    """
    found: dict[str, Column] = {name: [] for name in QUANTILES}
    for start, stop in itertools.pairwise(bounds.tolist()):
        values = np.sort(values_ns(places[start:stop]))
        let_go()
        for name, share in QUANTILES.items():
            at = max(math.ceil(share * len(values) - 1e-9) - 1, 0)
            found[name].append(round(max(float(values[at]) / 1e6, 0.001), 4) if len(values) else None)
    return found


def _took_ns(records: npt.NDArray[np.void]) -> Ints:
    took_ns: Ints = records["answered_ns"] - records["sent_ns"]
    return took_ns


def unanswered(evidence: Evidence) -> list[int]:
    """The codes of errors that are no answers."""
    return [code for code, error in enumerate(evidence.errors) if not was_answered(error)]


def _outages_s(records: npt.NDArray[np.void], no_answers: Sequence[int], last_ns: int) -> list[tuple[float, float]]:
    """See `outages_s`, of records of which the last was answered, or given up, then."""
    pauses = pauses_ns(*answers_by_bucket(records, no_answers, last_ns), last_ns)
    return outages_s(*pauses, earliest_ns(records, pauses[0], last_ns))


def answers_by_bucket(records: npt.NDArray[np.void], no_answers: Sequence[int], last_ns: int) -> tuple[Ints, Ints]:
    """The first and the latest answer in each half of the time that an outage lasts; `last_ns` and -1 if there is none.

    Args:
        records: of operations that were sent.
        no_answers: the codes of errors that are none.
        last_ns: when the last operation of the replay was answered, or given up.
    """
    bucket_ns = OUTAGE_NS // 2  # in an outage, at least one is empty
    buckets = last_ns // bucket_ns + 1
    first_ns, latest_ns = np.full(buckets, last_ns), np.full(buckets, -1)
    for where in stretches(len(records)):
        piece = records[where]
        answers_ns = piece["answered_ns"][~np.isin(piece["error"], no_answers)].astype(np.int64)
        np.minimum.at(first_ns, answers_ns // bucket_ns, answers_ns)
        np.maximum.at(latest_ns, answers_ns // bucket_ns, answers_ns)
    return first_ns, latest_ns


def pauses_ns(first_ns: Ints, latest_ns: Ints, last_ns: int) -> tuple[Ints, Ints]:
    """When there were no answers for as long as an outage lasts, by `answers_by_bucket`: the begins and the ends."""
    filled = latest_ns >= 0
    begins, ends = np.append(0, latest_ns[filled]), np.append(first_ns[filled], last_ns)
    is_long = ends - begins >= OUTAGE_NS
    return begins[is_long], ends[is_long]


def earliest_ns(records: npt.NDArray[np.void], begins: Ints, last_ns: int) -> Ints:
    """When the first was sent of what was answered after each of these times, and before the next."""
    found = np.full(len(begins) + 1, last_ns)
    for where in stretches(len(records)):
        piece = records[where]
        np.minimum.at(found, np.searchsorted(begins, piece["answered_ns"]), piece["sent_ns"])
    return found


def outages_s(begins: Ints, ends: Ints, earliest: Ints) -> list[tuple[float, float]]:
    """Stretches between two answers, or before the first or after the last, in which an operation waited for long.

    Args:
        begins: of pauses, in nanoseconds.
        ends: of the same.
        earliest: for each begin what `earliest_ns` says.
    """
    since = np.maximum(begins, np.minimum.accumulate(earliest[:0:-1])[::-1])
    is_long = ends - since >= OUTAGE_NS
    return list(zip((since[is_long] / 1e9).tolist(), (ends[is_long] / 1e9).tolist(), strict=True))
