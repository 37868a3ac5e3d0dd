"""Latencies: HdrHistograms made from a journal's columns, in batches.

*Service time* runs from the send of an operation to its answer. *Response time* runs from when the operation was due,
so that a stall of the target counts against everything that had to wait for it; it exists only where there were
times to keep.
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
    """A histogram of microseconds, from 1 to the greatest, to three significant digits, of nanoseconds."""
    values, counts = np.unique(np.maximum(latencies_ns // 1000, 1), return_counts=True)
    recorded = HdrHistogram(1, max(2, int(values.max(initial=0))), SIGNIFICANT_DIGITS)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        recorded.record_value(value, count)
    return recorded


def percentiles_ms(recorded: HdrHistogram) -> dict[str, float]:
    """Milliseconds at each of PERCENTILES, and the greatest: `{"p50": 0.31, ..., "max": 8.2}`; empty if no values."""
    if recorded.get_total_count() == 0:
        return {}
    figures = {f"p{q:g}": recorded.get_value_at_percentile(q) / 1000 for q in PERCENTILES}
    return figures | {"max": recorded.get_max_value() / 1000}


def senders_lateness_ns(
    records: npt.NDArray[np.void], due_ns: npt.NDArray[np.int64], slots: npt.NDArray[np.int32], in_flight: int = 0
) -> npt.NDArray[np.int64]:
    """By how much operations were sent late for which the sender had nothing to wait for.

    An operation waits for its time, for the answer to the one before it in its slot, and for a place among those in
    flight. What is sent later than that is late by the sender's doing alone.

    Args:
        records: of a journal, in the order of the operations.
        due_ns: when each of them was due.
        slots: the slot of each.
        in_flight: how many could be under way at once; 0 takes nine tenths of the most that were.

    Returns:
        Nanoseconds, for the operations that found a place free when they were sent.
    """
    sent_ns, answered_ns = records["sent_ns"], records["answered_ns"]
    by_slot = np.argsort(slots, kind="stable")
    follows = slots[by_slot][1:] == slots[by_slot][:-1]
    ready_ns = due_ns.copy()
    later, earlier = by_slot[1:][follows], by_slot[:-1][follows]
    ready_ns[later] = np.maximum(ready_ns[later], answered_ns[earlier])
    order = np.sort(sent_ns)
    flying = np.searchsorted(order, sent_ns) - np.searchsorted(np.sort(answered_ns), sent_ns)
    places = in_flight - 1 if in_flight else 0.9 * flying.max(initial=0)
    late_ns: npt.NDArray[np.int64] = np.maximum(sent_ns - ready_ns, 0)[flying < places]
    return late_ns


def by_second(records: npt.NDArray[np.void], due_ns: npt.NDArray[np.int64] | None) -> list[dict[str, float | None]]:
    """What each second of a replay was like, for the operations that were due in it, or else sent.

    Args:
        records: of a journal.
        due_ns: when each of them was due; None if they had no times to keep.

    Returns:
        A row per second: how many operations, how many not accepted, and milliseconds of service, response, lateness.
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
    """Write the percentile distribution that HdrHistogram's own tools read and plot, in milliseconds."""
    distribution = io.BytesIO()
    recorded.output_percentile_distribution(distribution, 1000.0)
    path.write_bytes(re.sub(rb"(?<=StdDeviation   = ) *[\d.]+", _in_ms, distribution.getvalue()))


def _in_ms(microseconds: re.Match[bytes]) -> bytes:
    """The standard deviation, which is the one figure that is not scaled with the others."""
    return b"%12.3f" % (float(microseconds[0]) / 1000)
