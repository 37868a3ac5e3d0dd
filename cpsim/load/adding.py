"""The figures of a load: sums of those of its workers, and HdrHistograms that are added bucket by bucket."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from cpsim.judge.timeline import Bar, Timeline
from cpsim.load.grid import Grid
from cpsim.run.latency import Histogram, Times
from cpsim.run.measured import Measured, by_kind
from cpsim.run.over_time import QUANTILES, Counts, Intervals, OverTime, outages_s, pauses_ns
from cpsim.run.page import SLOWEST, Drawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

AT_ONCE: Final = 30
"""Seconds, or intervals, of a load whose histograms are in memory at a time."""


class AskAll(Protocol):
    """Asks whoever has a share, all at once, a question of `WorkersShare`; the answers are in the order of shares."""

    def __call__(self, what: str, **given: object) -> list[Any]: ...  # noqa: D102 - it is described above


class Added(NamedTuple):
    """What the workers of a load have counted.

    Attributes:
        measured: figures of all operations.
        drawn: what a page draws of them.
        errors: the texts of errors, of which the first is none.
        answers: int64[kinds, errors], how many operations of each kind had each.
        parts: of each partition how many operations were planned, and how many were sent.
    """

    measured: Measured
    drawn: Drawn
    errors: list[str]
    answers: Ints
    parts: list[tuple[int, int]]

    @property
    def sent(self) -> int:
        """Operations that were sent."""
        return sum(sent for _, sent in self.parts)


def add_up(ask_all: AskAll, warm_up_s: float) -> Added:
    """Add up what the workers of a load have counted; raises WorkerLost."""
    sums = ask_all("sums", warm_up_s=warm_up_s)
    errors, answers = _answers(sums)
    counted: Counter[str] = Counter()
    for each in sums:
        counted.update(each["counted_errors"])
    planned, outcomes, whole = (
        np.sum([each[name] for each in sums], axis=0) for name in ("planned", "outcomes", "outcomes_of_whole")
    )
    lateness = None if sums[0]["lateness"] is None else _joined([each["lateness"] for each in sums])
    own = None if sums[0]["own_lateness"] is None else _joined([each["own_lateness"] for each in sums])
    measured = Measured(
        by_kind=by_kind(planned, outcomes, whole),
        errors=dict(counted.most_common()),
        times=Times(
            _of_kinds([each["service"] for each in sums]),
            {} if lateness is None else _of_kinds([each["response"] for each in sums]),
            _padded_sum([each["per_second"] for each in sums]).tolist(),
        ),
        lateness_p99_ms=lateness.at_ms(0.99) if lateness is not None and lateness.total else None,
        own_p99_ms=None if own is None else lambda: own.at_ms(0.99) if own.total else 0.0,
        seconds=_seconds(ask_all, max(each["seconds"] for each in sums), is_due=lateness is not None),
        sent=sum(each["sent"] for each in sums),
        warm_up_operations=sum(each["left_out"] for each in sums),
    )
    last_ns = max(each["last_ns"] for each in sums)
    slowest = sorted((each for found in sums for each in found["slowest"]), key=lambda each: -each[0])[:SLOWEST]
    timelines = [
        Timeline(title, lines, [Bar(*bar) for bar in bars], seconds) for _, title, lines, bars, seconds in slowest
    ]
    drawn = Drawn(None if last_ns < 0 else _over_time(ask_all, last_ns, is_due=lateness is not None), timelines)
    parts = [(planned, sent) for planned, sent in np.sum([each["parts"] for each in sums], axis=0).tolist()]
    return Added(measured, drawn, errors, answers, parts)


def _answers(sums: Sequence[Mapping[str, Any]]) -> tuple[list[str], Ints]:
    """The texts of errors, and the answers of each kind with each."""
    errors = list(dict.fromkeys(["", *(error for each in sums for error in each["errors"])]))
    answers = np.zeros((len(sums[0]["planned"]), len(errors)), np.int64)
    for each in sums:
        answers[:, [errors.index(error) for error in each["errors"]]] += np.array(each["answers"], np.int64)
    return errors, answers


def _joined(parts: Sequence[Any]) -> Histogram:
    return Histogram.joined(map(Histogram.of_plain, parts))


def _of_kinds(parts: Sequence[Mapping[str, Any]]) -> dict[str, Histogram]:
    """The histogram of each kind of operation, in the order in which one share has them or another."""
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: _joined([part[kind] for part in parts if kind in part]) for kind in kinds}


def _padded_sum(rows: Sequence[Sequence[int]]) -> Ints:
    """The sum of rows, of which some are shorter than others."""
    found = np.zeros(max(map(len, rows), default=0), np.int64)
    for row in rows:
        found[: len(row)] += np.array(row, np.int64)
    return found


def _seconds(ask_all: AskAll, count: int, *, is_due: bool) -> list[dict[str, float | None]]:
    """A row of each second, as `by_second` has it; times are those of histograms."""
    names = ("service", "response", "lateness") if is_due else ("service",)
    rows: list[dict[str, float | None]] = []
    for first in range(0, count, AT_ONCE):
        parts = ask_all("by_second", first=first, stop=min(first + AT_ONCE, count))
        grid = _grid(parts)
        operations, not_accepted = (
            _padded_sum([part[name] for part in parts]) for name in ("operations", "not_accepted")
        )
        for place in range(min(AT_ONCE, count - first)):
            row: dict[str, float | None] = {
                "second": first + place,
                "operations": int(operations[place]),
                "not_accepted": int(not_accepted[place]),
            }
            for column, name in enumerate(names):
                times = grid.group(3 * place + column)
                for figure, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                    row[f"{name}_{figure}_ms"] = times.at_ms(share) if times.total else None
            rows.append(row)
    return rows


def _over_time(ask_all: AskAll, last_ns: int, *, is_due: bool) -> OverTime:
    """What a load was over time, whose last answer came then."""
    intervals = Intervals.of(last_ns)
    parts = ask_all("over_time", last_ns=last_ns)
    columns = zip(*(part["counts"] for part in parts), strict=True)
    sums: list[Any] = [None if column[0] is None else np.sum(column, axis=0) for column in columns]
    first_ns = np.min([part["first_ns"] for part in parts], axis=0)
    latest_ns = np.max([part["latest_ns"] for part in parts], axis=0)
    begins, ends = pauses_ns(first_ns, latest_ns, last_ns)
    earliest = np.min(ask_all("earliest", begins=begins.tolist(), last_ns=last_ns), axis=0)
    service_ms: dict[str, list[float | None]] = {name: [] for name in QUANTILES}
    response_ms: dict[str, list[float | None]] = {name: [] for name in QUANTILES}
    for first in range(0, intervals.number, AT_ONCE):
        stop = min(first + AT_ONCE, intervals.number)
        grid = _grid(ask_all("by_interval", first=first, stop=stop))
        for place in range(stop - first):
            for column, found_ms in enumerate((service_ms, response_ms)):
                times = grid.group(2 * place + column)
                for name, share in QUANTILES.items():
                    found_ms[name].append(times.at_ms(share) if times.total else None)
    return OverTime.counted(
        intervals,
        Counts(*sums),
        service_ms=service_ms,
        response_ms=response_ms if is_due else None,
        outages=outages_s(begins, ends, earliest),
    )


def _grid(parts: Sequence[Mapping[str, Any]]) -> Grid:
    return Grid.joined(Grid.of_plain(part["grid"]) for part in parts if part["grid"] is not None)
