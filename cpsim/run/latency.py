"""Latencies: HdrHistograms of a journal's columns.

*Service time* runs from the send of an operation to its answer. *Response time* runs from when the operation was due,
so that a stall of the target counts for every operation that it delays; it exists only if operations had due times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from cpsim.replay.failures import LOST

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence

PRECISION_BITS: Final = 11
"""The leading bits of a value that a histogram keeps: three significant digits."""
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True)
class Histogram:
    """An HdrHistogram to three significant digits, of which only the buckets that hold a value are kept.

    Attributes:
        values: the highest value of each bucket, in microseconds, ascending.
        counts: the number of values in each bucket.
    """

    values: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, latencies_ns: npt.NDArray[np.int64]) -> Self:
        """The histogram, in microseconds, at least 1, of latencies in nanoseconds."""
        return cls(*np.unique(as_recorded_us(latencies_ns), return_counts=True))

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.counts.sum())

    def percentiles_ms(self) -> dict[str, float]:
        """Milliseconds at each of PERCENTILES and the maximum: `{"p50": 0.31, ..., "max": 8.2}`; empty if no values."""
        if not self.total:
            return {}
        upto = np.cumsum(self.counts)
        ranks = [rank_of(q, self.total) for q in PERCENTILES]
        names = [*(f"p{q:g}" for q in PERCENTILES), "max"]
        figures = self.values[np.searchsorted(upto, [*ranks, self.total])] / 1000
        return dict(zip(names, figures.tolist(), strict=True))

    def quantile_ms(self, share: float) -> float | None:
        """Milliseconds that so large a share of the values does not exceed.

        None if only the greatest value would tell: of 100 values, the 99th percentile is the last one known.
        """
        if not self.total or 1 - share < 1 / self.total * (1 - 1e-9):
            return None
        rank = max(1, int(share * self.total + 0.5))
        return float(self.values[np.searchsorted(np.cumsum(self.counts), rank)]) / 1000

    def write(self, path: Path) -> None:
        """Write the percentile distribution in milliseconds, in the format of HdrHistogram's tools."""
        middles = (self.values - _widths(self.values) // 2 + 1).clip(max=self.values) / 1000
        total, mean, deviation = self.total, 0.0, 0.0
        if total:
            mean = float(np.average(middles, weights=self.counts))
            deviation = math.sqrt(np.average((middles - mean) ** 2, weights=self.counts))
        highest = int(self.values.max(initial=0))
        buckets = max(1, highest.bit_length() - PRECISION_BITS + 1)
        lines = [
            "       Value     Percentile TotalCount 1/(1-Percentile)\n",
            *self._distribution(),
            f"#[Mean    = {mean:12.3f}, StdDeviation   = {deviation:12.3f}]",
            f"#[Max     = {highest / 1000:12.3f}, TotalCount     = {total:12.3f}]",
            f"#[Buckets = {buckets:12d}, SubBuckets     = {2**PRECISION_BITS:12d}]",
        ]
        path.write_text("\n".join(lines) + "\n", encoding="ascii")

    def _distribution(self) -> list[str]:
        """A line at each tenth of the way from the last percentile to 100, until all values are counted."""
        lines: list[str] = []
        upto = np.cumsum(self.counts)
        total, counted, share = self.total, 0, 0.0
        while counted < total:
            bucket = int(np.searchsorted(upto, share * total))
            value, counted = self.values[bucket] / 1000, int(upto[bucket])
            lines.append(f"{value:12.3f} {share:14.12f} {counted:10d} {1 / (1 - share):14.2f}")
            share += (1 - share) / 10
        return [*lines, f"{value:12.3f} {1:14.12f} {total:10d}"] if total else []


def as_recorded_us(latencies_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The value that a histogram keeps of each latency: the highest of its bucket, in microseconds."""
    values = np.maximum(latencies_ns // 1000, 1)
    kept: npt.NDArray[np.int64] = values | (_widths(values) - 1)
    return kept


def rank_of(percentile: float, total: int) -> int:
    """Which of `total` values, in ascending order and from 1 on, is at a percentile."""
    return max(1, int(percentile * total / 100 + 0.5))


def _widths(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The width of each value's bucket: 1 below 2,048, twice as much from each power of two on."""
    widths: npt.NDArray[np.int64] = np.left_shift(
        1, np.maximum(np.frexp(values)[1] - PRECISION_BITS, 0), dtype=np.int64
    )
    return widths


def timed_records(evidence: Evidence) -> npt.NDArray[np.void]:
    """The records whose times were measured: without those that were lost with their worker."""
    lost = [code for code, error in enumerate(evidence.errors) if error == LOST]
    return evidence.records[~np.isin(evidence.records["error"], lost)] if lost else evidence.records


def senders_lateness_ns(
    records: npt.NDArray[np.void], due_ns: npt.NDArray[np.int64], slots: npt.NDArray[np.int32], in_flight: int = 0
) -> npt.NDArray[np.int64]:
    """Lateness of operations that the sender alone caused.

    An operation waits for its due time, for the answer to the previous operation of its slot, and for a free place in
    flight, which is another operation's until that is answered. Any lateness beyond these waits is the sender's.

    Args:
        records: of a journal, in the order of the operations.
        due_ns: the due time of each operation.
        slots: the slot of each operation.
        in_flight: the limit of operations in flight; 0 takes the highest number observed.

    Returns:
        Nanoseconds, for each operation.
    """
    sent_ns, answered_ns = records["sent_ns"], records["answered_ns"]
    by_slot = np.argsort(slots, kind="stable")
    follows = slots[by_slot][1:] == slots[by_slot][:-1]
    ready_ns = due_ns.copy()
    later, earlier = by_slot[1:][follows], by_slot[:-1][follows]
    ready_ns[later] = np.maximum(ready_ns[later], answered_ns[earlier])
    in_order, answers = np.argsort(sent_ns, kind="stable"), np.sort(answered_ns)
    flying = np.arange(len(records)) - np.searchsorted(answers, sent_ns[in_order], "right")
    places = in_flight or int(flying.max(initial=0)) + 1
    waiting = in_order[places:]
    ready_ns[waiting] = np.maximum(ready_ns[waiting], answers[: len(waiting)])
    late_ns: npt.NDArray[np.int64] = np.maximum(sent_ns - ready_ns, 0)
    return late_ns


def by_second(records: npt.NDArray[np.void], due_ns: npt.NDArray[np.int64] | None) -> list[dict[str, float | None]]:
    """Figures of each second of a replay, of the operations due in the second, or sent if there are no due times.

    Args:
        records: of a journal.
        due_ns: the due time of each operation; None if there are none.

    Returns:
        A row per second: `second`, `operations`, `not_accepted`, and p50, p99 and max of service time, response time
        and lateness in milliseconds.
    """
    since_ns = records["sent_ns"] if due_ns is None else due_ns
    order = np.argsort(since_ns, kind="stable")
    seconds = since_ns[order] // 1_000_000_000
    last = int(seconds[-1]) if len(seconds) else -1
    borders = np.searchsorted(seconds, np.arange(last + 2))
    rows: list[dict[str, float | None]] = []
    for second, (start, stop) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
        mine = records[order[start:stop]]
        row: dict[str, float | None] = {
            "second": second,
            "operations": len(mine),
            "not_accepted": int(np.count_nonzero(mine["outcome"])),
        }
        times = {"service": mine["answered_ns"] - mine["sent_ns"]}
        if due_ns is not None:
            times["response"] = mine["answered_ns"] - due_ns[order[start:stop]]
            times["lateness"] = mine["sent_ns"] - due_ns[order[start:stop]]
        for name, values in times.items():
            for q in (50, 99, 100):
                figure = round(float(np.percentile(values, q)) / 1e6, 4) if len(values) else None
                row[f"{name}_{'max' if q == 100 else f'p{q}'}_ms"] = figure
        rows.append(row)
    return rows
