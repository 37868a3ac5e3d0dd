"""The offset between the server's clock and the local clock, from readings before, during and after a run.

A reading bounds the offset: the server read its clock after the request was sent, and before the answer arrived. The
offset is a constant, or a steady drift, that agrees with all bounds. Where none agrees, times of the server's clock
cannot be converted to the local clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.evidence.evidence import Reading

    Floats = npt.NDArray[np.floating[Any]]

LARGEST_DRIFT: Final = 0.1
"""More than clocks are slewed by (chrony: 8.3%, adjtime: 0.05%): a clock that gains more does not keep real time."""
HALVINGS: Final = 60


class NotComparable(CpsimError):
    """Times of the server's clock cannot be converted to the local clock; the message says why."""


@dataclass(frozen=True, slots=True)
class Offset:
    """The local time as a linear function of the server's time.

    Attributes:
        shown_us: a time of the server's clock.
        local_ns: that time on the local monotonic clock.
        drift: the gain of the server's clock on the local clock: 0.01 is one second in 100 s.
        uncertainty_ns: the largest error of a converted time.
    """

    shown_us: int
    local_ns: float
    drift: float
    uncertainty_ns: float

    def to_local_ns(self, shown_us: npt.NDArray[np.int64]) -> Floats:
        """Convert the server's times, in microseconds since 1970, to nanoseconds on the local monotonic clock."""
        times_ns: Floats = self.local_ns + (shown_us - self.shown_us) * 1e3 / (1 + self.drift)
        return times_ns


def offset(readings: Sequence[Reading]) -> Offset:
    """Compare the clocks.

    Args:
        readings: in the order of time, the first before and the last after the times to convert.

    Raises:
        NotComparable: the server's clock does not keep real time, was set, or ran unevenly.
    """
    rates = {reading.rate for reading in readings} - {1.0}
    if rates:
        rate = min(rates)
        pace = f"runs at {rate:g} times real time" if rate else "stands still"
        raise NotComparable(f"the server's clock {pace}, by its control API, and is not real time")
    first = readings[0]
    sent_us, received_us = (
        np.array([getattr(reading, name) - first.sent_ns for reading in readings]) / 1e3
        for name in ("sent_ns", "received_ns")
    )
    at_us, half_us = (sent_us + received_us) / 2, (received_us - sent_us) / 2 * (1 + LARGEST_DRIFT)
    ahead_us = np.array([reading.shown_us - first.shown_us for reading in readings]) - at_us
    lowest_us, highest_us = ahead_us - half_us, ahead_us + 1 + half_us  # what is shown was rounded down
    drift = 0.0
    if lowest_us.max() > highest_us.min():
        _check_not_set(lowest_us, highest_us)
        drift = _drift(at_us, lowest_us, highest_us)
    floor_us, ceiling_us = (lowest_us - drift * at_us).max(), (highest_us - drift * at_us).min()
    middle_us = (floor_us + ceiling_us) / 2
    line_us = middle_us + drift * at_us[[0, -1]]
    wrong_us = np.maximum(line_us - lowest_us[[0, -1]], highest_us[[0, -1]] - line_us).max()
    # the server shows `first.shown_us` at local time `t`: t + middle_us + drift * t = 0
    return Offset(first.shown_us, first.sent_ns - middle_us * 1e3 / (1 + drift), drift, float(wrong_us) * 1e3)


def _check_not_set(lowest_us: Floats, highest_us: Floats) -> None:
    """Raise NotComparable if the clock may have been set, once, between two readings."""
    before = np.maximum.accumulate(lowest_us)[:-1], np.minimum.accumulate(highest_us)[:-1]
    after = np.maximum.accumulate(lowest_us[::-1])[-2::-1], np.minimum.accumulate(highest_us[::-1])[-2::-1]
    places = np.flatnonzero((before[0] <= before[1]) & (after[0] <= after[1]))
    if len(places):
        place = places[len(places) // 2]
        step_s = (sum(bound[place] for bound in after) - sum(bound[place] for bound in before)) / 2e6
        raise NotComparable(f"the server's clock was set by about {step_s:+.3g} s during the run, by its readings")


def _drift(at_us: Floats, lowest_us: Floats, highest_us: Floats) -> float:
    """The steady drift that agrees best with all bounds. Raises NotComparable if none does."""

    def gap_us(drift: float) -> float:
        return float((lowest_us - drift * at_us).max() - (highest_us - drift * at_us).min())

    low, high = -LARGEST_DRIFT, LARGEST_DRIFT
    for _ in range(2 * HALVINGS):  # the gap is convex in the drift
        third = (high - low) / 3
        if gap_us(low + third) <= gap_us(high - third):
            high -= third
        else:
            low += third
    drift = (low + high) / 2
    if gap_us(drift) > 0:
        ahead_s = (lowest_us + highest_us) / 2e6
        raise NotComparable(
            "the server's clock did not run steadily during the run: against the local clock, it was between "
            f"{ahead_s.min():+.3g} s and {ahead_s.max():+.3g} s from its first offset"
        )
    return drift
