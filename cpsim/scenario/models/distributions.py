"""Arrivals, run times and whole numbers, as functions of uniform random numbers.

Each takes uniforms in (0, 1) and returns values by inverse transform (Devroye, *Non-Uniform Random Variate
Generation*, 1986, chapter II), so that a value depends on its own uniform and nothing else. Times are integer
microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cpsim.scenario.models.arithmetic import Floats, cos_turns, exp, log
from cpsim.scenario.models.gamma import gamma
from cpsim.system.growing import gathered, made
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Integers = npt.NDArray[np.int64]

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
DAY_US: Final = 86_400 * SECOND_US
LEAST_RATE: Final = 1e-9
"""Stands for no rate, so that there is a time for every arrival."""


def constant_arrivals(jobs: int, duration_us: int, first: int = 0, last: int | None = None) -> Integers:
    """Evenly spaced, the first at 0; of them those from one number up to another."""
    return _floor(np.arange(first, jobs if last is None else last, dtype=np.float64) * (duration_us / jobs))


def poisson_arrivals(uniforms: Floats, duration_us: int) -> Integers:
    """A Poisson process on condition that it has this many arrivals: they are uniform order statistics.

    Source: Devroye 1986, chapter VI.
    """
    return np.sort(_floor(uniforms * duration_us), kind="stable")  # which is quick if they are in order


def diurnal_arrivals(
    uniforms: Floats, duration_us: int, peak_hour: float, amplitude: float, days: tuple[float, ...] = (1.0,)
) -> Integers:
    """A Poisson process whose rate follows the time of day, on condition that it has this many arrivals.

    The rate is proportional to 1 + amplitude * cos(2 pi (t - peak) / day), and constant within each minute.

    Args:
        uniforms: one per arrival.
        duration_us: length, from midnight.
        peak_hour: hour of the day at which the rate is highest.
        amplitude: 0 (even) to 1 (nothing at all twelve hours from the peak).
        days: what the rate of each day is multiplied by, again and again.
    """
    edges = np.append(np.arange(0, duration_us, MINUTE_US), duration_us).astype(np.float64)
    middles = edges[:-1] + np.diff(edges) / 2
    peak_us = peak_hour * 3600 * SECOND_US
    rates = np.maximum(1 + amplitude * cos_turns((middles - peak_us) / DAY_US), LEAST_RATE)
    if days != (1.0,):
        rates *= np.maximum(np.array(days)[np.floor(middles / DAY_US).astype(np.int64) % len(days)], LEAST_RATE)
    return arrivals_at(np.sort(uniforms, kind="stable"), edges, rates)


def burst_arrivals(
    choice: Floats, uniforms: Floats, begin_us: Floats, *, share: float, length_us: int, duration_us: int
) -> Integers:
    """Bursts, each of equally likely arrivals within a length, over a Poisson background; in no order.

    Args:
        choice: one per arrival: below `share`, it is in a burst, all equally likely.
        uniforms: one per arrival: where in its burst, or in the whole.
        begin_us: when each burst begins.
        share: of the arrivals that are in bursts.
        length_us: of a burst.
        duration_us: of the whole.
    """
    inside = choice < share
    burst = np.floor(choice[inside] * (len(begin_us) / share)).astype(np.int64) if share else 0
    times = uniforms * duration_us
    times[inside] = begin_us[np.minimum(burst, len(begin_us) - 1)] + uniforms[inside] * length_us
    return _floor(np.minimum(times, duration_us - 1))


def ramp_arrivals(uniforms: Floats, ramps: list[tuple[int, float, float]], duration_us: int) -> Integers:
    """A Poisson process whose rate is told in ramps, on condition that it has this many arrivals.

    Args:
        uniforms: one per arrival.
        ramps: the length of each in microseconds, and the relative rates at its begin and at its end. In a
            thousand steps, each of a constant rate.
        duration_us: length of the whole; ramps are cut there.
    """
    steps = 1_000
    parts, rates = [np.zeros(1)], []
    for length_us, first, last in ramps:
        parts.append(parts[-1][-1] + np.arange(1, steps + 1) * (length_us / steps))
        rates.append(first + (np.arange(steps) + 0.5) * ((last - first) / steps))
    edges = np.concatenate(parts)
    used = edges[:-1] < duration_us
    edges = np.minimum(edges, duration_us)[: np.count_nonzero(used) + 1]
    return arrivals_at(np.sort(uniforms, kind="stable"), edges, np.maximum(np.concatenate(rates)[used], LEAST_RATE))


def renewal_arrivals(
    jobs: int, gaps_at: Callable[[slice], Floats], weights: Floats, step_us: int, duration_us: int
) -> Integers:
    """A renewal process in a time that passes at a varying rate, stretched to fill the duration.

    Args:
        jobs: how many arrive.
        gaps_at: some of the gaps before each arrival and after the last; only how they compare matters.
        weights: the rate in each step of `step_us`, again and again.
        step_us: length of a step.
        duration_us: of the whole.
    """
    edges = np.append(np.arange(0, duration_us, step_us), duration_us).astype(np.float64)
    rates = np.resize(weights, len(edges) - 1)

    def sums() -> Iterator[Floats]:
        before = 0.0
        for where in stretches(jobs + 1):
            upto = np.cumsum(np.append(before, gaps_at(where)))
            before = upto[-1]
            yield upto[1:]

    reached = gathered(sums(), np.float64)
    return made(jobs, np.int64, lambda where: arrivals_at(reached[where] / reached[-1], edges, rates))


def arrivals_at(targets: Floats, edges: Floats, rates: Floats) -> Integers:
    """When each share of all arrivals is reached, at a rate that is constant between the edges.

    Args:
        targets: from 0 to 1, in order.
        edges: microseconds, one more than there are rates.
        rates: above 0; only how they compare matters.
    """
    reached = np.append(0.0, np.cumsum(rates * np.diff(edges)))
    targets = targets * reached[-1]
    step = np.minimum(np.searchsorted(reached, targets, side="right") - 1, len(rates) - 1)
    arrivals = edges[step] + (targets - reached[step]) / rates[step]
    return _floor(np.minimum(arrivals, edges[-1] - 1))


def normal(uniforms: Floats) -> Floats:
    """Standard normal numbers, from uniforms of shape (2, count): Box and Muller, Ann. Math. Stat. 29, 1958."""
    return np.sqrt(-2 * log(uniforms[0])) * cos_turns(uniforms[1])


def lognormal_times(uniforms: Floats, median_us: int, sigma: float, max_us: int) -> Integers:
    """Run times whose natural logarithm is normal with standard deviation `sigma`.

    Args:
        uniforms: shape (2, jobs).
        median_us: half of the jobs run longer.
        sigma: 0 makes all run times equal; the mean is median * exp(sigma**2 / 2).
        max_us: longer run times are cut to it, as a job manager's time limit does.
    """
    return microseconds(median_us * exp(np.minimum(sigma * normal(uniforms), 600.0)), max_us)


def weibull_times(uniforms: Floats, scale_us: int, shape: float, max_us: int) -> Integers:
    """Run times distributed as Weibull; `shape` 1 is exponential with mean `scale_us`.

    The median is scale * ln(2) ** (1 / shape). Longer run times than `max_us` are cut to it.
    """
    return microseconds(scale_us * exp(log(-log(uniforms)) / shape), max_us)


def gamma_times(uniforms: Floats, scale_us: int, shape: float, max_us: int) -> Integers:
    """Run times distributed as gamma, with mean shape * scale; longer ones than `max_us` are cut to it."""
    return microseconds(gamma(shape).quantile(uniforms) * scale_us, max_us)


def microseconds(times: Floats, max_us: int) -> Integers:
    """Times in whole microseconds, none above a limit."""
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


def lognormal_integers(uniforms: Floats, median: float, sigma: float) -> Integers:
    """Whole numbers whose natural logarithm is normal before they are rounded, at most 10**12; shape (2, count)."""
    return np.rint(np.minimum(median * exp(np.minimum(sigma * normal(uniforms), 600.0)), 1e12)).astype(np.int64)


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
