"""Models of arrivals, each with an exact number of jobs."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta

from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import lublin
from cpsim.scenario.streams import Draw, uniforms
from cpsim.scenario.values import Hour, Jobs, Model, Section, Share, Text, Time, Weight
from cpsim.system.external_sort import in_order
from cpsim.system.growing import gathered
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.scenario.models.distributions import Integers

JobKind = Annotated[Literal["batch", "interactive", "untyped"], Meta(description='"batch", "interactive" or "untyped"')]


class ConstantArrivals(Model, frozen=True, tag="constant"):
    """Evenly spaced."""

    jobs: Jobs


class PoissonArrivals(Model, frozen=True, tag="poisson"):
    """At random, at an even rate."""

    jobs: Jobs


class DiurnalArrivals(Model, frozen=True, tag="diurnal"):
    """At random, at a rate that follows the time of day."""

    jobs: Jobs
    peak_hour: Hour
    amplitude: Share


class WeeklyArrivals(Model, frozen=True, tag="weekly"):
    """At random, at a rate that follows the time of day and the day of the week, from Monday."""

    jobs: Jobs
    days: Annotated[list[Weight], Meta(min_length=7, max_length=7, description="a list of seven rates, from Monday")]
    peak_hour: Hour = 12.0
    amplitude: Share = 0.0

    def __post_init__(self) -> None:
        if not any(self.days):
            raise ValueError("days are all 0: give one of them a rate")


class BurstArrivals(Model, frozen=True, tag="bursts"):
    """Some come together: `share` of the jobs in `bursts` that last `length`, the others at random."""

    jobs: Jobs
    bursts: Jobs
    length: Time
    share: Share = 1.0


class LublinArrivals(Model, frozen=True, tag="lublin"):
    """As people submit to a parallel computer, with gaps stretched so that the jobs fill the duration."""

    jobs: Jobs
    kind: JobKind = "untyped"


class Phase(Section, frozen=True):
    """A part of the duration, in which the rate goes evenly from one to another; both are relative."""

    name: Text
    length: Time
    rate: Weight
    to: Weight | None = None


class PhasedArrivals(Model, frozen=True, tag="phases"):
    """At random, at a rate told phase by phase, such as warm-up, steady, spike, drain; then nothing arrives."""

    jobs: Jobs
    phases: Annotated[list[Phase], Meta(min_length=1, description="a list of at least one phase")]

    def __post_init__(self) -> None:
        if not any(phase.rate or phase.to for phase in self.phases):
            raise ValueError("phases all have the rate 0: give one of them a rate")


Arrivals = (
    ConstantArrivals
    | PoissonArrivals
    | DiurnalArrivals
    | WeeklyArrivals
    | BurstArrivals
    | LublinArrivals
    | PhasedArrivals
)


def arrive(arrivals: Arrivals, draw: Draw, duration_us: int) -> Integers:
    """When each job arrives, in order: microseconds from midnight of a Monday, below the duration."""
    if isinstance(arrivals, BurstArrivals | LublinArrivals):
        return arrive_together(arrivals, draw.seed, draw.whole.jobs, duration_us)[draw.first : draw.first + draw.jobs]
    match arrivals:
        case ConstantArrivals():
            return models.constant_arrivals(draw.whole.jobs, duration_us, draw.first, draw.first + draw.jobs)
        case PoissonArrivals():
            return models.poisson_arrivals(draw.in_order("arrivals"), duration_us)
        case DiurnalArrivals(_, peak_hour, amplitude):
            return models.diurnal_arrivals(draw.in_order("arrivals"), duration_us, peak_hour, amplitude)
        case WeeklyArrivals(_, days, peak_hour, amplitude):
            return models.diurnal_arrivals(draw.in_order("arrivals"), duration_us, peak_hour, amplitude, tuple(days))
        case PhasedArrivals(_, phases):
            ramps = [(int(p.length), p.rate, p.rate if p.to is None else p.to) for p in phases]
            return models.ramp_arrivals(draw.in_order("arrivals"), ramps, duration_us)


@lru_cache(1)
def arrive_together(arrivals: BurstArrivals | LublinArrivals, seed: int, jobs: int, duration_us: int) -> Integers:
    """The arrivals of all jobs, of which each depends on the others; made once for all parts."""
    if isinstance(arrivals, LublinArrivals):
        weights = lublin.half_hour_weights(arrivals.kind)
        return models.renewal_arrivals(
            jobs,
            lambda where: lublin.gaps_s(
                uniforms(seed, "arrivals", where.stop - where.start, where.start), arrivals.kind
            ),
            weights,
            models.DAY_US // len(weights),
            duration_us,
        )
    begin_us = uniforms(seed, "arrivals.bursts", arrivals.bursts) * max(1, duration_us - arrivals.length)

    def pieces() -> Iterator[Integers]:
        for where in stretches(jobs):
            draw = Draw(seed, where.stop - where.start, where.start, jobs)
            yield models.burst_arrivals(
                draw("arrivals.burst"),
                draw("arrivals"),
                begin_us,
                share=arrivals.share,
                length_us=arrivals.length,
                duration_us=duration_us,
            ).view([("us", np.int64)])

    return gathered((piece["us"] for piece in in_order(pieces(), "us")), np.int64)
