"""A replay over time: rates, latencies, apply delays and queues of each interval, and the outages between answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.failures import was_answered
from cpsim.run.latency import timed_records

if TYPE_CHECKING:
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
        unanswered = [code for code, error in enumerate(evidence.errors) if not was_answered(error)]
        sent_ns, answered_ns = records["sent_ns"].astype(np.int64), records["answered_ns"].astype(np.int64)
        is_answered = ~np.isin(records["error"], unanswered)
        schedule_ns = None if evidence.schedule_us is None else evidence.schedule_us * 1000
        due_ns = None if schedule_ns is None else schedule_ns[records["op"]]
        end_ns = max(1, int(answered_ns.max()))
        step_ns = round(_step_s(end_ns / 1e9) * 1e9)
        count = -(-end_ns // step_ns)
        is_cut = end_ns < count * step_ns

        def place(times_ns: Ints) -> Ints:
            places: Ints = np.minimum(times_ns // step_ns, count - 1)
            return places

        def rate(times_ns: Ints) -> Column:
            found = np.bincount(place(times_ns), minlength=count) * (1e9 / step_ns)
            rates: Column = [round(value, 3) for value in found.tolist()]
            return [*rates[:-1], None] if is_cut else rates

        ends_ns = np.minimum(np.arange(1, count + 1) * step_ns, end_ns)
        since = place(sent_ns if due_ns is None else due_ns)
        pending = apply_delay_ms = None
        if delay.delays_ns is not None and delay.answered_ns is not None:
            apply_delay_ms = _quantiles_ms(place(delay.answered_ns), delay.delays_ns, count)
            pending = _between(delay.answered_ns, delay.answered_ns + delay.delays_ns, ends_ns)
        return cls(
            step_s=step_ns / 1e9,
            end_s=end_ns / 1e9,
            begins_s=[round(number * step_ns / 1e9, 3) for number in range(count)],
            offered=None if schedule_ns is None else rate(schedule_ns[schedule_ns < end_ns]),
            achieved=rate(answered_ns[is_answered]),
            refused=rate(answered_ns[records["outcome"] == OperationOutcome.REFUSED]),
            unknown=rate(answered_ns[records["outcome"] == OperationOutcome.UNKNOWN]),
            service_ms=_quantiles_ms(since, answered_ns - sent_ns, count),
            response_ms=None if due_ns is None else _quantiles_ms(since, answered_ns - due_ns, count),
            apply_delay_ms=apply_delay_ms,
            in_flight=_between(sent_ns, answered_ns, ends_ns),
            pending=pending,
            outages=_outages_s(sent_ns, answered_ns, is_answered),
            is_cut=is_cut,
        )


def _step_s(end_s: float) -> float:
    """The length of intervals of a replay of `end_s` seconds."""
    if end_s < FEWEST:
        return next((step for step in reversed(STEPS_S) if end_s / step >= 2 * FEWEST), STEPS_S[0])
    return next((step for step in STEPS_S if step >= 1 and end_s / step <= MOST), STEPS_S[-1])


def _quantiles_ms(places: Ints, values_ns: Ints, count: int) -> dict[str, Column]:
    """Quantiles of the values in each of `count` intervals, by name; at least a microsecond."""
    order = np.lexsort((values_ns, places))
    of_each = np.bincount(places, minlength=count)
    starts = np.cumsum(of_each) - of_each
    sorted_ms = np.maximum(values_ns[order] / 1e6, 0.001)
    filled = of_each > 0
    found: dict[str, Column] = {}
    for name, share in QUANTILES.items():
        at = starts + np.maximum(np.ceil(share * of_each - 1e-9).astype(np.int64) - 1, 0)
        values = np.round(sorted_ms[np.where(filled, at, 0)], 4) if len(order) else np.zeros(count)
        found[name] = [value if there else None for value, there in zip(values.tolist(), filled.tolist(), strict=True)]
    return found


def _between(from_ns: Ints, to_ns: Ints, at_ns: Ints) -> list[int]:
    """How many have begun and not ended at each time."""
    begun = np.searchsorted(np.sort(from_ns), at_ns, "right")
    found: list[int] = (begun - np.searchsorted(np.sort(to_ns), at_ns, "right")).tolist()
    return found


def _outages_s(sent_ns: Ints, answered_ns: Ints, is_answered: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Stretches between two answers, or before the first or after the last, in which an operation waited for long."""
    answers = np.sort(answered_ns[is_answered])
    begins, ends = np.append(0, answers), np.append(answers, answered_ns.max())
    order = np.argsort(answered_ns)
    earliest_ns = np.append(np.minimum.accumulate(sent_ns[order][::-1])[::-1], ends[-1])
    since = np.maximum(begins, earliest_ns[np.searchsorted(answered_ns[order], begins, "right")])
    is_long = ends - since >= OUTAGE_NS
    return list(zip((since[is_long] / 1e9).tolist(), (ends[is_long] / 1e9).tolist(), strict=True))
