"""The gamma distribution, by inverse transform from a table.

Its density in t = log x is proportional to exp(shape t - exp t). The table holds the trapezoidal integral of that, at
16,384 points around the mode; between them it is taken as linear. The error of a probability is below 1e-6.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np

from cpsim.scenario.models.arithmetic import Floats, exp, log

POINTS: Final = 16_384
NEGLIGIBLE: Final = 45.0
"""What is e to the -45 of the highest density, and further out, is left away."""


class Gamma(NamedTuple):
    """A gamma distribution of scale 1: the probability `below` each of the points `log_x`, which are evenly spaced."""

    log_x: Floats
    below: Floats

    def quantile(self, probability: Floats) -> Floats:
        """The number below which a gamma variate stays with this probability, from above 0 to below 1."""
        place = np.clip(np.searchsorted(self.below, probability, side="right"), 1, POINTS - 1)
        low = self.below[place - 1]
        part = (probability - low) / (self.below[place] - low)
        return exp(self.log_x[0] + (place - 1 + part) * (self.log_x[1] - self.log_x[0]))

    def probability(self, x: Floats) -> Floats:
        """The probability to stay below x > 0."""
        place = (log(x) - self.log_x[0]) / (self.log_x[1] - self.log_x[0])
        place = np.clip(place, 0.0, POINTS - 1.000001)
        low = np.floor(place).astype(np.int64)
        probability: Floats = self.below[low] + (place - low) * (self.below[low + 1] - self.below[low])
        return probability


@cache
def gamma(shape: float) -> Gamma:
    """The distribution of this shape, above 0."""
    middle = float(log(np.array([shape]))[0])
    reach = np.array([shape + NEGLIGIBLE + 10 * shape**0.5])
    low, high = middle - NEGLIGIBLE / shape - 1, float(log(reach)[0])
    log_x = low + np.arange(POINTS, dtype=np.float64) * ((high - low) / (POINTS - 1))
    exponent = shape * (log_x - middle) - exp(np.maximum(log_x, -600.0)) + shape
    density = exp(np.maximum(exponent, -600.0))
    below = np.append(0.0, np.cumsum(density[1:] + density[:-1]))
    return Gamma(log_x, below / below[-1])
