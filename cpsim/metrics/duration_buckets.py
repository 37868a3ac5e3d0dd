"""A histogram of durations, as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BOUNDS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
"""Upper bounds of the buckets, in seconds: an answer takes a part of a millisecond, an outage hours."""


class DurationCounts(NamedTuple):
    """What buckets held at a moment.

    Attributes:
        up_to: for each of `BOUNDS_S` and for infinity, the number of durations up to there.
        sum_s: the sum of all durations, in seconds.
    """

    up_to: list[int]
    sum_s: float


class DurationBuckets:
    """Counts durations by bucket; one thread at a time observes, any thread reads."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float, count: int = 1) -> None:
        """Count a duration, `count` times."""
        self._counts[bisect_left(BOUNDS_S, duration_s)] += count
        self._sum_s += duration_s * count

    def observe_all(self, durations_s: Sequence[float]) -> None:
        """Count durations, at a fraction of what it costs to count each."""
        in_order = sorted(durations_s)
        up_to = [0, *(bisect_right(in_order, bound_s) for bound_s in BOUNDS_S), len(in_order)]
        self.add([more - less for less, more in pairwise(up_to)], sum(in_order))

    def add(self, counts: Sequence[int], sum_s: float) -> None:
        """Count many durations: how many are in each bucket, up to infinity, and their sum in seconds."""
        self._counts = [before + more for before, more in zip(self._counts, counts, strict=True)]
        self._sum_s += sum_s

    def read(self) -> DurationCounts:
        """Return what the buckets hold now."""
        sum_s = self._sum_s
        return DurationCounts(list(accumulate(self._counts)), sum_s)
