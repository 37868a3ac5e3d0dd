"""Latencies: HdrHistograms of a journal's columns.

*Service time* runs from the send of an operation to its answer. *Response time* runs from when the operation was due,
so that a stall of the target counts for every operation that it delays; it exists only if operations had due times.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Final

import numpy as np
from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SIGNIFICANT_DIGITS: Final = 3
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)


def histogram(latencies_ns: npt.NDArray[np.int64]) -> HdrHistogram:
    """A histogram in microseconds, at least 1, to three significant digits, of latencies in nanoseconds."""
    values, counts = np.unique(np.maximum(latencies_ns // 1000, 1), return_counts=True)
    recorded = HdrHistogram(1, max(2, int(values.max(initial=0))), SIGNIFICANT_DIGITS)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        recorded.record_value(value, count)
    return recorded


def percentiles_ms(recorded: HdrHistogram) -> dict[str, float]:
    """Milliseconds at each of PERCENTILES, and the maximum: `{"p50": 0.31, ..., "max": 8.2}`; empty if no values."""
    if recorded.get_total_count() == 0:
        return {}
    figures = {f"p{q:g}": recorded.get_value_at_percentile(q) / 1000 for q in PERCENTILES}
    return figures | {"max": recorded.get_max_value() / 1000}


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


def write_hgrm(recorded: HdrHistogram, path: Path) -> None:
    """Write the percentile distribution in milliseconds, in the format of HdrHistogram's tools."""
    distribution = io.BytesIO()
    recorded.output_percentile_distribution(distribution, 1000.0)
    path.write_bytes(re.sub(rb"(?<=StdDeviation   = ) *[\d.]+", _in_ms, distribution.getvalue()))


def _in_ms(microseconds: re.Match[bytes]) -> bytes:
    """The standard deviation in milliseconds: the library does not scale it."""
    return b"%12.3f" % (float(microseconds[0]) / 1000)
