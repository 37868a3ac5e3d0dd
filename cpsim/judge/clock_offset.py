"""How a server's clock and ours go together, by readings of it before, during and after a run.

A reading bounds the offset between the two: the server looked at its clock after the request was sent, and before the
answer was there. What agrees with all bounds is what is known: a constant offset, or a steady drift. Where neither
does, the times of that clock cannot be told on ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

LARGEST_DRIFT: Final = 0.1
"""Above what a clock is slewed by (chrony: 8.3%, adjtime: 0.05%): a clock that gains more is not keeping real time."""
HALVINGS: Final = 60


class NotComparable(CpsimError):
    """Times of the server's clock cannot be told on ours; the message says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The server's clock, as it was shown over the network.

    Attributes:
        sent_ns: when it was asked for, on our monotonic clock.
        received_ns: when the answer was there.
        shown_us: what it showed, in microseconds since 1970.
        rate: how many times real time it says to run.
    """

    sent_ns: int
    received_ns: int
    shown_us: int
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Offset:
    """Where our clock is when the server's shows a time: a line.

    Attributes:
        shown_us: a time of the server's clock.
        local_ns: that time on our monotonic clock.
        drift: what the server's clock gains on ours: 0.01 in 100 s is a second.
        uncertainty_ns: how wrong a time that is told on our clock may be.
    """

    shown_us: int
    local_ns: float
    drift: float
    uncertainty_ns: float

    def on_ours_ns(self, shown_us: npt.NDArray[np.int64]) -> Floats:
        """Times of the server's clock, in microseconds since 1970, as nanoseconds on our monotonic clock."""
        times_ns: Floats = self.local_ns + (shown_us - self.shown_us) * 1e3 / (1 + self.drift)
        return times_ns


def offset(readings: Sequence[Reading]) -> Offset:
    """Compare the clocks.

    Args:
        readings: in the order of time, the first before and the last after what is to be told.

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
    # the server shows `first.shown_us` when ours is at `t`: t + middle_us + drift * t = 0
    return Offset(first.shown_us, first.sent_ns - middle_us * 1e3 / (1 + drift), drift, float(wrong_us) * 1e3)


def _check_not_set(lowest_us: Floats, highest_us: Floats) -> None:
    """Raise NotComparable if the clock may have been set, once, between two readings."""
    before = np.maximum.accumulate(lowest_us)[:-1], np.minimum.accumulate(highest_us)[:-1]
    after = np.maximum.accumulate(lowest_us[::-1])[-2::-1], np.minimum.accumulate(highest_us[::-1])[-2::-1]
    places = np.flatnonzero((before[0] <= before[1]) & (after[0] <= after[1]))
    if len(places):
        place = places[len(places) // 2]
        step_s = (sum(bound[place] for bound in after) - sum(bound[place] for bound in before)) / 2e6
        raise NotComparable(
            f"the server's clock was set by about {step_s:+.3g} s during the run, as far as it was seen"
        )


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
            "the server's clock did not run steadily during the run: against ours, it was between "
            f"{ahead_s.min():+.3g} s and {ahead_s.max():+.3g} s from where it began"
        )
    return drift
