"""Latencies: HdrHistograms of a journal's columns.

*Service time* runs from the send of an operation to its answer. *Response time* runs from when the operation was due,
so that a stall of the target counts for every operation that it delays; it exists only if operations had due times.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np

from cpsim.replay.failures import LOST, was_answered
from cpsim.scenario.workload import KIND_NAMES
from cpsim.system.external_sort import in_order, places_by_group
from cpsim.system.growing import gathered, made
from cpsim.system.mapped import ROWS, let_go, stretches, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence

PRECISION_BITS: Final = 11
"""The leading bits of a value that a histogram keeps: three significant digits."""
BINS: Final = 1 << 16
"""Into so many parts a range is divided to find a value in it."""
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
WAITING: Final = np.dtype(
    [("slot", np.int32), ("ready_ns", np.int64), ("sent_ns", np.int64), ("answered_ns", np.int64)]
)
"""An operation while its waits are told from its sender's lateness."""


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

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """The histogram of the values of several."""
        found = [cls.of(np.empty(0, np.int64)), *parts]
        values, places = np.unique(np.concatenate([part.values for part in found]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, places, np.concatenate([part.counts for part in found]))
        return cls(values, counts)

    def at_ms(self, share: float) -> float:
        """Milliseconds that so large a share of the values, of which there is one at least, does not exceed."""
        rank = max(1, math.ceil(share * self.total - 1e-9))
        return float(self.values[np.searchsorted(np.cumsum(self.counts), rank)]) / 1000

    def plain(self) -> list[list[int]]:
        """The same as values that JSON carries."""
        return [self.values.tolist(), self.counts.tolist()]

    @classmethod
    def of_plain(cls, values: Sequence[Sequence[int]]) -> Self:
        """What `plain` has made values of."""
        return cls(*(np.array(each, np.int64) for each in values))

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


class Times(NamedTuple):
    """The times of a replay.

    Attributes:
        service, response: by kind of operation; no response times without due times.
        per_second: how many operations were answered in each second.
    """

    service: dict[str, Histogram]
    response: dict[str, Histogram]
    per_second: list[int]

    @classmethod
    def of(cls, evidence: Evidence, timed: npt.NDArray[np.void]) -> Self:
        """Of some records, which are looked at stretch by stretch."""
        unanswered = [code for code, error in enumerate(evidence.errors) if not was_answered(error)]
        parts: tuple[defaultdict[int, list[Histogram]], ...] = defaultdict(list), defaultdict(list)
        per_second = np.zeros(0, np.int64)
        for where in stretches(len(timed)):
            piece = timed[where]
            kinds = evidence.workload.kind[piece["op"]]
            since_ns = [piece["sent_ns"]]
            if evidence.schedule_us is not None:
                since_ns.append(evidence.schedule_us[piece["op"]] * 1000)
            for found, begun_ns in zip(parts, since_ns, strict=False):
                for code in np.unique(kinds).tolist():
                    mine = kinds == code
                    found[code].append(Histogram.of(piece["answered_ns"][mine] - begun_ns[mine]))
            answered_s = piece["answered_ns"][~np.isin(piece["error"], unanswered)] // 1_000_000_000
            of_piece = np.bincount(answered_s, minlength=len(per_second))
            of_piece[: len(per_second)] += per_second
            per_second = of_piece
        service, response = (
            {KIND_NAMES[code]: Histogram.joined(found[code]) for code in sorted(found)} for found in parts
        )
        return cls(service, response, per_second.tolist())

    def by_kind_ms(self) -> dict[str, dict[str, dict[str, float] | None]]:
        """Service and response times of each kind, at percentiles."""
        return {
            kind: {
                "service_ms": service.percentiles_ms(),
                "response_ms": self.response[kind].percentiles_ms() if self.response else None,
            }
            for kind, service in self.service.items()
        }


def timed_records(evidence: Evidence) -> npt.NDArray[np.void]:
    """The records whose times were measured: without those that were lost with their worker."""
    lost = [code for code, error in enumerate(evidence.errors) if error == LOST]
    return chosen(evidence.records, lambda piece: ~np.isin(piece["error"], lost)) if lost else evidence.records


def chosen(
    records: npt.NDArray[np.void], of_piece: Callable[[npt.NDArray[np.void]], npt.NDArray[np.bool]]
) -> npt.NDArray[np.void]:
    """Some records, of which a function says piece by piece which they are."""
    pieces = (records[where] for where in stretches(len(records)))
    return gathered((piece[of_piece(piece)] for piece in pieces), records.dtype)


def percentile(count: int, values_at: Callable[[slice], npt.NDArray[np.int64]], percent: float) -> float:
    """The percentile of values that are looked at stretch by stretch, as `numpy.percentile` has it.

    Args:
        count: how many there are, at least one.
        values_at: those at some places.
        percent: from 0 to 100.
    """
    rank = (count - 1) * percent / 100
    low = int(rank)
    around = [_at_rank(count, values_at, each) for each in (low, min(low + 1, count - 1))]
    return float(np.percentile(around, (rank - low) * 100))


def _at_rank(count: int, values_at: Callable[[slice], npt.NDArray[np.int64]], rank: int) -> int:
    """The value at a rank, from 0, in ascending order."""
    bounds = [(values.min(), values.max()) for values in map(values_at, stretches(count))]
    first, last = int(min(low for low, _ in bounds)), int(max(high for _, high in bounds))
    while first < last:
        width = (last - first) // BINS + 1
        counts = np.zeros(BINS, np.int64)
        for where in stretches(count):
            values = values_at(where)
            inside = values[(values >= first) & (values <= last)]
            counts += np.bincount((inside - first) // width, minlength=BINS)
        upto = np.cumsum(counts)
        place = int(np.searchsorted(upto, rank, "right"))
        rank -= int(upto[place] - counts[place])
        first, last = first + place * width, min(last, first + (place + 1) * width - 1)
    return first


def senders_lateness_ns(
    records: npt.NDArray[np.void],
    due_ns: Callable[[npt.NDArray[np.void]], npt.NDArray[np.int64]],
    slots: Callable[[npt.NDArray[np.void]], npt.NDArray[np.int32]],
    in_flight: int = 0,
) -> npt.NDArray[np.int64]:
    """Lateness of operations that the sender alone caused.

    An operation waits for its due time, for the answer to the previous operation of its slot, and for a free place in
    flight, which is another operation's until that is answered. Any lateness beyond these waits is the sender's.

    Args:
        records: of a journal, in the order of the operations.
        due_ns: the due times of the operations of some records.
        slots: their slots.
        in_flight: the limit of operations in flight; 0 takes the highest number observed.

    Returns:
        Nanoseconds, for each operation in the order of sending.
    """

    def pieces() -> Iterator[npt.NDArray[np.void]]:
        for where in stretches(len(records)):
            some = records[where]
            piece = np.empty(len(some), WAITING)
            piece["slot"], piece["ready_ns"] = slots(some), due_ns(some)
            piece["sent_ns"], piece["answered_ns"] = some["sent_ns"], some["answered_ns"]
            yield piece

    def after_the_slots_answers() -> Iterator[npt.NDArray[np.void]]:
        slot, answered_ns = -1, 0
        for piece in in_order(pieces(), "slot"):
            follows = np.append(slot, piece["slot"][:-1]) == piece["slot"]
            before_ns = np.append(answered_ns, piece["answered_ns"][:-1])
            slot, answered_ns = piece["slot"][-1], piece["answered_ns"][-1]
            piece["ready_ns"] = np.where(follows, np.maximum(piece["ready_ns"], before_ns), piece["ready_ns"])
            yield piece

    answers_ns = gathered((piece["answered_ns"] for piece in in_order(pieces(), "answered_ns")), np.int64)
    sent = gathered(in_order(after_the_slots_answers(), "sent_ns"), WAITING)
    most = 0
    for where in stretches(0 if in_flight else len(sent)):
        answered = np.searchsorted(answers_ns, sent["sent_ns"][where], "right")
        most = max(most, int((np.arange(where.start, where.stop) - answered).max()))
    places = in_flight or most + 1

    def late_ns(where: slice) -> npt.NDArray[np.int64]:
        ready_ns = sent["ready_ns"][where].copy()
        waiting = ready_ns[max(0, places - where.start) :]
        np.maximum(waiting, answers_ns[max(0, where.start - places) :][: len(waiting)], out=waiting)
        late: npt.NDArray[np.int64] = np.maximum(sent["sent_ns"][where] - ready_ns, 0)
        return late

    return made(len(sent), np.int64, late_ns)


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
    last_ns = max((int(since_ns[where].max()) for where in stretches(len(records))), default=-1)
    places, bounds = places_by_group(
        len(records), lambda where: since_ns[where] // 1_000_000_000, last_ns // 1_000_000_000 + 1
    )
    rows: list[dict[str, float | None]] = []
    for second, (start, stop) in enumerate(pairwise(bounds.tolist())):
        mine = places[start:stop]
        rows.append(_of_second(second, taken(records, mine), None if due_ns is None else taken(due_ns, mine)))
        if stop // ROWS > start // ROWS:
            let_go()
    return rows


def _of_second(
    second: int, mine: npt.NDArray[np.void], due_ns: npt.NDArray[np.int64] | None
) -> dict[str, float | None]:
    """The row of a second, of its records and their due times."""
    row: dict[str, float | None] = {
        "second": second,
        "operations": len(mine),
        "not_accepted": int(np.count_nonzero(mine["outcome"])),
    }
    times = {"service": mine["answered_ns"] - mine["sent_ns"]}
    if due_ns is not None:
        times["response"] = mine["answered_ns"] - due_ns
        times["lateness"] = mine["sent_ns"] - due_ns
    for name, values in times.items():
        for q in (50, 99, 100):
            figure = round(float(np.percentile(values, q)) / 1e6, 4) if len(values) else None
            row[f"{name}_{'max' if q == 100 else f'p{q}'}_ms"] = figure
    return row
