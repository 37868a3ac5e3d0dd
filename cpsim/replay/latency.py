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


def write_hgrm(recorded: HdrHistogram, path: Path) -> None:
    """Write the percentile distribution that HdrHistogram's own tools read and plot, in milliseconds."""
    distribution = io.BytesIO()
    recorded.output_percentile_distribution(distribution, 1000.0)
    deviation = b"StdDeviation   = %12.3f" % (recorded.get_stddev() / 1000)  # which it leaves in microseconds
    path.write_bytes(re.sub(rb"StdDeviation   = +[\d.]+", deviation, distribution.getvalue()))
