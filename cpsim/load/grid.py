"""Histograms of many groups at once, such as the seconds of a replay, that are added bucket by bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cpsim.run.latency import Histogram, as_recorded_us

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

BITS: Final = 40
"""Of a time in microseconds; a longer one than twelve days counts as that."""


class Grid(NamedTuple):
    """How many times of each group are in each bucket of an HdrHistogram of three significant digits.

    Attributes:
        cells: int64, ascending: the group, and behind it the greatest time of the bucket, in microseconds.
        counts: int64, of each cell.
    """

    cells: Ints
    counts: Ints

    @classmethod
    def of(cls, groups: Ints, times_ns: Ints) -> Grid:
        """Of times in nanoseconds; those below a microsecond count as one."""
        buckets = np.minimum(as_recorded_us(times_ns), (1 << BITS) - 1)
        return cls(*np.unique(groups.astype(np.int64) << BITS | buckets, return_counts=True))

    @classmethod
    def joined(cls, parts: Iterable[Grid]) -> Grid:
        """Of the times of all."""
        found = list(parts)
        nothing = np.empty(0, np.int64)
        cells, places = np.unique(np.concatenate([nothing, *(part.cells for part in found)]), return_inverse=True)
        counts = np.zeros(len(cells), np.int64)
        np.add.at(counts, places, np.concatenate([nothing, *(part.counts for part in found)]))
        return cls(cells, counts)

    def group(self, number: int) -> Histogram:
        """The histogram of a group."""
        start, stop = np.searchsorted(self.cells, [number << BITS, (number + 1) << BITS])
        return Histogram(self.cells[start:stop] & ((1 << BITS) - 1), self.counts[start:stop])

    def plain(self) -> list[bytes]:
        """The same as values that Locust can send."""
        return [self.cells.astype("<i8").tobytes(), self.counts.astype("<i8").tobytes()]

    @classmethod
    def of_plain(cls, values: list[bytes]) -> Grid:
        """What `plain` has made values of."""
        cells, counts = (np.frombuffer(data, "<i8") for data in values)
        return cls(cells, counts)
