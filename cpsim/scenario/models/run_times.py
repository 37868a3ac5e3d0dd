"""Models of run times and other durations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta, field

from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import lublin
from cpsim.scenario.models.arithmetic import exp, log
from cpsim.scenario.models.arrivals import JobKind
from cpsim.scenario.values import Duration, LogTime, Model, Shape, Share, Sigma, Text, Time

if TYPE_CHECKING:
    from cpsim.scenario.models.distributions import Integers
    from cpsim.scenario.streams import Draw

LONGEST = Duration("365d")
LogGamma = Annotated[
    list[LogTime], Meta(min_length=2, max_length=2, description="a list of a shape and a scale, from 0.01 to 10,000")
]
Times = Annotated[list[Time], Meta(min_length=1, description="a list of at least one time")]


class ConstantTime(Model, frozen=True, tag="constant"):
    """All jobs run equally long."""

    value: Time


class LognormalTime(Model, frozen=True, tag="lognormal"):
    """`sigma` is the standard deviation of the natural logarithm."""

    median: Time
    sigma: Sigma
    max: Time = field(default_factory=lambda: LONGEST)


class WeibullTime(Model, frozen=True, tag="weibull"):
    """`shape` below 1 has a heavy tail, 1 is exponential with mean `scale`."""

    scale: Time
    shape: Shape
    max: Time = field(default_factory=lambda: LONGEST)


class GammaTime(Model, frozen=True, tag="gamma"):
    """The mean is `shape` times `scale`."""

    scale: Time
    shape: Shape
    max: Time = field(default_factory=lambda: LONGEST)


class HyperGammaTime(Model, frozen=True, tag="hyper_gamma"):
    """The natural logarithm of seconds has one of two gamma distributions, the first with probability `share`.

    Each is told by its shape and its scale.
    """

    first: LogGamma
    second: LogGamma
    share: Share
    max: Time = field(default_factory=lambda: Duration("45h"))


class LublinTime(Model, frozen=True, tag="lublin"):
    """As jobs of a parallel computer run; the more nodes they take, the longer."""

    kind: JobKind = "untyped"
    nodes: Annotated[int, Meta(ge=8, le=2**20, description="a whole number from 8 to 1,048,576")] = 128
    max: Time = field(default_factory=lambda: LONGEST)


class EmpiricalTime(Model, frozen=True, tag="empirical"):
    """Each of `values` is equally likely; `file` holds them instead, one on a line, in seconds or with a unit."""

    values: Times | None = None
    file: Text | None = None

    def __post_init__(self) -> None:
        if (self.values is None) == (self.file is None):
            raise ValueError("give either values or a file that holds them")


RunTimes = ConstantTime | LognormalTime | WeibullTime | GammaTime | HyperGammaTime | LublinTime | EmpiricalTime


def run_times(run_time: RunTimes, draw: Draw, purpose: str = "run_time") -> Integers:  # noqa: PLR0911 - one for each model
    """A length of time for each job, in microseconds.

    Args:
        run_time: the model.
        draw: for the random numbers.
        purpose: names their stream.
    """
    match run_time:
        case ConstantTime(value):
            return np.full(draw.jobs, int(value), dtype=np.int64)
        case LognormalTime(median, sigma, max_us):
            return models.lognormal_times(draw.rows(purpose, 2), median, sigma, max_us)
        case WeibullTime(scale, shape, max_us):
            return models.weibull_times(draw(purpose), scale, shape, max_us)
        case GammaTime(scale, shape, max_us):
            return models.gamma_times(draw(purpose), scale, shape, max_us)
        case HyperGammaTime(first, second, share, max_us):
            mixed = lublin.HyperGamma(*first, *second)
            longest = float(log(np.array([max_us / models.SECOND_US]))[0])
            choice, value = draw.rows(purpose, 2)
            seconds = exp(mixed.log_times(np.full(draw.jobs, share), choice, value, longest))
            return models.microseconds(seconds * models.SECOND_US, max_us)
        case LublinTime(kind, nodes, max_us):
            counts = lublin.nodes(draw.rows(f"{purpose}.nodes", 3), kind, nodes)
            seconds = lublin.run_times_s(draw.rows(purpose, 2), counts, kind)
            return models.microseconds(seconds * models.SECOND_US, max_us)
        case EmpiricalTime(values):
            known = np.sort(np.array(values, dtype=np.int64))
            return known[models.pick(draw(purpose), len(known))]
