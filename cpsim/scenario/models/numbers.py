"""Models of whole numbers, for counters and credits of jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.scenario.models import distributions as models
from cpsim.scenario.values import Mean, Model, Sigma, Whole

if TYPE_CHECKING:
    from cpsim.scenario.models.arithmetic import Floats
    from cpsim.scenario.models.distributions import Integers
    from cpsim.scenario.streams import Draw

COBBLESTONES_A_DAY: Final = 200
"""Credits for a day at 1 GFLOPS, as BOINC defines them."""
DAY_S: Final = 86_400


class Uniform(Model, frozen=True, tag="uniform"):
    """Whole numbers from `low` to `high`, all equally likely."""

    low: Whole
    high: Whole

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}: swap them")


class Poisson(Model, frozen=True, tag="poisson"):
    """Counts of rare events."""

    mean: Mean


class RunTime(Model, frozen=True, tag="run_time"):
    """The job's run time in whole seconds."""


class Lognormal(Model, frozen=True, tag="lognormal"):
    """Sizes: `sigma` is the standard deviation of the natural logarithm."""

    median: Mean
    sigma: Sigma


class Cobblestones(Model, frozen=True, tag="cobblestones"):
    """Run time times the host's speed: 200 for a day at 1 GFLOPS."""


Number = Whole | Uniform | Poisson | RunTime | Lognormal | Cobblestones


@dataclass(frozen=True, slots=True)
class Work:
    """What jobs did: run times in microseconds, and the speed of their hosts in GFLOPS where it is known."""

    run_us: Integers
    gflops: Floats | None = None


def numbers(number: Number, draw: Draw, purpose: str, work: Work) -> Integers:
    """A whole number for each job.

    Args:
        number: the model.
        draw: for the random numbers.
        purpose: names their stream.
        work: what the jobs did.
    """
    match number:
        case Uniform(low, high):
            return models.uniform_integers(draw(purpose), low, high)
        case Poisson(mean):
            return models.poisson_integers(draw(purpose), mean)
        case RunTime():
            return work.run_us // models.SECOND_US
        case Lognormal(median, sigma):
            return models.lognormal_integers(draw.rows(purpose, 2), median, sigma)
        case Cobblestones():
            assert work.gflops is not None
            per_us = COBBLESTONES_A_DAY / (DAY_S * models.SECOND_US)
            return np.rint(work.run_us * work.gflops * per_us).astype(np.int64)
        case _:
            return np.broadcast_to(np.int64(number), draw.jobs)
