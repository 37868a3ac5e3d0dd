"""Arrivals, run times and whole numbers, as functions of uniform random numbers.

Each takes uniforms in (0, 1) and returns values by inverse transform (Devroye, *Non-Uniform Random Variate
Generation*, 1986, chapter II), so that a value depends on its own uniform and nothing else. Times are integer
microseconds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from cpsim.scenario.arithmetic import Floats, cos_turns, exp, log

Integers = npt.NDArray[np.int64]

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
DAY_US: Final = 86_400 * SECOND_US


def constant_arrivals(jobs: int, duration_us: int) -> Integers:
    """Evenly spaced, the first at 0."""
    return _floor(np.arange(jobs, dtype=np.float64) * (duration_us / jobs))


def poisson_arrivals(uniforms: Floats, duration_us: int) -> Integers:
    """A Poisson process on condition that it has this many arrivals: they are uniform order statistics.

    Source: Devroye 1986, chapter VI.
    """
    return np.sort(_floor(uniforms * duration_us))


def diurnal_arrivals(uniforms: Floats, duration_us: int, peak_hour: float, amplitude: float) -> Integers:
    """A Poisson process whose rate follows the time of day, on condition that it has this many arrivals.

    The rate is proportional to 1 + amplitude * cos(2 pi (t - peak) / day), and constant within each minute.

    Args:
        uniforms: one per arrival.
        duration_us: length, from midnight.
        peak_hour: hour of the day at which the rate is highest.
        amplitude: 0 (even) to 1 (nothing at all twelve hours from the peak).
    """
    edges = np.append(np.arange(0, duration_us, MINUTE_US), duration_us).astype(np.float64)
    widths = np.diff(edges)
    peak_us = peak_hour * 3600 * SECOND_US
    rates = np.maximum(1 + amplitude * cos_turns((edges[:-1] + widths / 2 - peak_us) / DAY_US), 1e-9)
    reached = np.append(0.0, np.cumsum(rates * widths))
    targets = np.sort(uniforms) * reached[-1]
    minute = np.minimum(np.searchsorted(reached, targets, side="right") - 1, len(widths) - 1)
    arrivals = edges[minute] + (targets - reached[minute]) / rates[minute]
    return _floor(np.minimum(arrivals, duration_us - 1))


def lognormal_times(uniforms: Floats, median_us: int, sigma: float, max_us: int) -> Integers:
    """Run times whose natural logarithm is normal with standard deviation `sigma`.

    Args:
        uniforms: shape (2, jobs): the normal numbers come from Box and Muller (Ann. Math. Stat. 29, 1958).
        median_us: half of the jobs run longer.
        sigma: 0 makes all run times equal; the mean is median * exp(sigma**2 / 2).
        max_us: longer run times are cut to it, as a job manager's time limit does.
    """
    normal = np.sqrt(-2 * log(uniforms[0])) * cos_turns(uniforms[1])
    return _microseconds(median_us * exp(sigma * normal), max_us)


def weibull_times(uniforms: Floats, scale_us: int, shape: float, max_us: int) -> Integers:
    """Run times distributed as Weibull; `shape` 1 is exponential with mean `scale_us`.

    The median is scale * ln(2) ** (1 / shape). Longer run times than `max_us` are cut to it.
    """
    return _microseconds(scale_us * exp(log(-log(uniforms)) / shape), max_us)


def _microseconds(times: Floats, max_us: int) -> Integers:
    return np.rint(np.minimum(times, max_us)).astype(np.int64)


def choose(uniforms: Floats, shares: list[float]) -> npt.NDArray[np.int64]:
    """Indices into `shares`, which sum to 1, each as likely as its share."""
    return np.searchsorted(np.cumsum(shares[:-1]), uniforms, side="right")


def pick(uniforms: Floats, count: int) -> npt.NDArray[np.int32]:
    """Indices below `count`, all equally likely."""
    return np.floor(uniforms * count).astype(np.int32)


def uniform_integers(uniforms: Floats, low: int, high: int) -> Integers:
    """Whole numbers from `low` to `high`, both included, all equally likely."""
    return low + _floor(uniforms * (high - low + 1))


def poisson_integers(uniforms: Floats, mean: float) -> Integers:
    """Whole numbers distributed as Poisson, from a table that spans 12 standard deviations to each side."""
    reach = int(12 * mean**0.5) + 40
    mode = int(mean)
    low = max(0, mode - reach)
    # Relative to the mode, whose own probability need not be known: p(k + 1) / p(k) = mean / (k + 1).
    up = np.cumprod(mean / np.arange(mode + 1, mode + reach + 1))
    down = np.cumprod(np.arange(mode, low, -1) / mean)[::-1]
    cumulative = np.cumsum(np.concatenate([down, [1.0], up]))
    drawn: Integers = low + np.searchsorted(cumulative, uniforms * cumulative[-1])
    return drawn


def _floor(x: Floats) -> Integers:
    return np.floor(x).astype(np.int64)
