"""Volunteers' hosts: speed, availability, lifetime, late and duplicate returns, black holes.

A host is on and off by turns. A job runs on it only while it is on, so it comes back later than after its run time;
if the host leaves for good before, it never comes back.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
from msgspec import Meta, field

from cpsim.scenario.models import distributions as models
from cpsim.scenario.models.arithmetic import exp, log
from cpsim.scenario.models.run_times import ConstantTime, GammaTime, LognormalTime, RunTimes, WeibullTime, run_times
from cpsim.scenario.streams import Draw
from cpsim.scenario.values import Duration, Mean, Model, Section, Share, Sigma, Text, Time

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.scenario.models.arithmetic import Floats
    from cpsim.scenario.models.distributions import Integers

TURNS: Final = 16
"""Each host has so many turns of its own of being on and off, which follow one another for ever."""
FAST_US: Final = 300 * models.SECOND_US
FIRST_DELAY_US: Final = 10 * models.SECOND_US
LONGEST_DELAY_US: Final = 3_600 * models.SECOND_US
LONGEST_TURN: Final = Duration("3650d")


class LhcSpeed(Model, frozen=True, tag="lhc"):
    """As the hosts of LHC@home in 2016, 19.1 GFLOPS on average."""


class LognormalSpeed(Model, frozen=True, tag="lognormal"):
    """`median` in GFLOPS; `sigma` is the standard deviation of the natural logarithm."""

    median: Mean
    sigma: Sigma


class ConstantSpeed(Model, frozen=True, tag="constant"):
    """All hosts have so many GFLOPS."""

    value: Mean


class SetiAvailability(Model, frozen=True, tag="seti"):
    """As the hosts of SETI@home: on for 10.3 hours on average, off for 31.8; or as those of a `cluster` of them."""

    cluster: Annotated[int, Meta(ge=1, le=6, description="a cluster of hosts, from 1 to 6")] | None = None


class OwnAvailability(Model, frozen=True, tag="turns"):
    """On for a time, off for a time."""

    up: RunTimes
    down: RunTimes


class Late(Section, frozen=True):
    """A `share` of the jobs come back later, by a time."""

    share: Share
    by: RunTimes


class Duplicates(Section, frozen=True):
    """A `share` of the claims come a second time, after a time; the second is refused."""

    share: Share
    after: RunTimes


class BlackHoles(Section, frozen=True):
    """A share of the `machines` that draw a share of the `jobs`, and fail each after `run_time`.

    With `back_off`, a host takes one at a time, and waits the longer the more of them it has failed fast.
    """

    machines: Share
    jobs: Share
    run_time: RunTimes = field(default_factory=lambda: ConstantTime(Duration("1min")))
    reason: Text = "failed"
    back_off: bool = False

    def __post_init__(self) -> None:
        if self.jobs and not self.machines:
            raise ValueError("jobs need machines: give black holes a share of the machines above 0")


class Volunteers(Section, frozen=True):
    """The hosts.

    Attributes:
        speed: of each; a run time then is that of a host of average speed, and others take less or more.
        availability: when they are on; always, without it.
        lifetime: mean of an exponential distribution, after which a host is gone.
        late: jobs that come back later still.
        duplicates: claims that come twice.
        black_holes: hosts that fail fast, and so get the next job soon.
    """

    speed: LhcSpeed | LognormalSpeed | ConstantSpeed | None = None
    availability: SetiAvailability | OwnAvailability | None = None
    lifetime: Time | None = None
    late: Late | None = None
    duplicates: Duplicates | None = None
    black_holes: BlackHoles | None = None


SETI: Final = OwnAvailability(
    up=WeibullTime(Duration("2.964h"), 0.393), down=LognormalTime(Duration("0.5565h"), 2.844, LONGEST_TURN)
)
"""B. Javadi et al., Discovering statistical models of availability in large distributed systems, IEEE TPDS 22(11),
2011, all hosts: Weibull of shape 0.393 and scale 2.964 h; lognormal of mu -0.586 (log hours) and sigma 2.844."""


SETI_CLUSTERS: Final = (
    (GammaTime(Duration("311.7h"), 0.289), Duration("18h")),
    (GammaTime(Duration("152.2h"), 0.340), Duration("11h")),
    (WeibullTime(Duration("1.682h"), 0.431), Duration("13h")),
    (GammaTime(Duration("371.6h"), 0.357), Duration("12h")),
    (GammaTime(Duration("89.2h"), 0.342), Duration("12h")),
    (GammaTime(Duration("43.7h"), 0.357), Duration("12h")),
)
"""Javadi et al. 2011, likewise: how long the hosts of each of six clusters are on, and for how long they are off on
average; of the latter only the mean is known here, and the times are exponential with it."""


@cache
def lhc_gflops() -> npt.NDArray[np.float64]:
    """The speed of each host of LHC@home in 2016 in GFLOPS, in order: 8,882 hosts, from its public pages."""
    text = files("cpsim.scenario.models").joinpath("lhc_host_gflops.txt").read_text(encoding="ascii")
    rows = np.array([line.split() for line in text.splitlines()[1:] if line], dtype=np.float64)
    return np.sort(np.repeat(rows[:, 1], rows[:, 0].astype(np.int64)))


def speeds(speed: LhcSpeed | LognormalSpeed | ConstantSpeed, draw: Draw) -> tuple[Floats, float]:
    """The GFLOPS of each host, and how many they have on average by the model.

    Args:
        speed: the model.
        draw: a host's random numbers.
    """
    match speed:
        case LhcSpeed():
            known = lhc_gflops()
            return known[models.pick(draw("volunteers.speed"), len(known))], float(np.cumsum(known)[-1] / len(known))
        case LognormalSpeed(median, sigma):
            drawn = median * exp(np.minimum(sigma * models.normal(draw.rows("volunteers.speed", 2)), 600.0))
            return drawn, float(median * exp(np.array([sigma * sigma / 2]))[0])
        case ConstantSpeed(value):
            return np.full(draw.jobs, float(value)), float(value)


class Turns:
    """When each host is on and off.

    Args:
        up_us: shape (hosts, turns): how long each turn of being on is.
        down_us: the same, off, after it.
        phase: for each host, which share of its turns has passed at time 0.
    """

    def __init__(self, up_us: Integers, down_us: Integers, phase: Floats) -> None:
        self._turns = up_us.shape[1]
        self._up_us = np.cumsum(up_us, axis=1)
        self._wall_us = np.cumsum(up_us + down_us, axis=1)
        self._passed_us = np.floor(phase * self._wall_us[:, -1]).astype(np.int64)
        self._up_turn_us, self._wall_turn_us = up_us, up_us + down_us

    def ends_us(self, host: npt.NDArray[np.int32], start_us: Integers, run_us: Integers) -> Integers:
        """When jobs have run on their hosts, of which each runs all of its jobs at once.

        Args:
            host: of each job.
            start_us: when each could begin.
            run_us: how long the host must be on for it.
        """
        rounds, since_us = np.divmod(start_us + self._passed_us[host], self._wall_us[host, -1])
        turn = _turn(self._wall_us, host, since_us)
        before_us = self._wall_us[host, turn] - self._wall_turn_us[host, turn]
        up_us = self._up_us[host, turn] - self._up_turn_us[host, turn]
        up_us += np.minimum(since_us - before_us, self._up_turn_us[host, turn])
        # A job that ends with a turn ends in it, and not when the host is on again.
        more, needed_us = np.divmod(up_us + run_us - 1, self._up_us[host, -1])
        turn = _turn(self._up_us, host, needed_us)
        into_us = needed_us + 1 - (self._up_us[host, turn] - self._up_turn_us[host, turn])
        end_us = self._wall_us[host, turn] - self._wall_turn_us[host, turn] + into_us
        ends: Integers = (rounds + more) * self._wall_us[host, -1] + end_us - self._passed_us[host]
        return ends


def _turn(ends_us: Integers, host: npt.NDArray[np.int32], time_us: Integers) -> npt.NDArray[np.int64]:
    """The first of a host's turns that ends after a time, for each job."""
    low = np.zeros(len(host), dtype=np.int64)
    step = 1 << (ends_us.shape[1] - 1).bit_length() >> 1
    while step:
        ahead = np.minimum(low + step, ends_us.shape[1]) - 1
        low = np.where(ends_us[host, ahead] <= time_us, low + step, low)
        step >>= 1
    turn: Integers = np.minimum(low, ends_us.shape[1] - 1)
    return turn


def turns(availability: SetiAvailability | OwnAvailability, draw: Draw) -> Turns:
    """When the hosts are on and off.

    Args:
        availability: the model.
        draw: a host's random numbers.
    """
    model = _seti(availability.cluster) if isinstance(availability, SetiAvailability) else availability
    each = Draw(draw.seed, draw.jobs * TURNS)
    up_us, down_us = (
        np.maximum(run_times(times, each, f"volunteers.{name}").reshape(-1, TURNS), 1)
        for name, times in (("up", model.up), ("down", model.down))
    )
    return Turns(up_us, down_us, draw("volunteers.phase"))


class BackOff:
    """Hosts that back off: they take one job at a time, and none for a while after one that ended fast.

    As the worker agent of CERN's volunteers does it: a job under 300 s doubles a delay of 10 s, up to 3,600 s.
    """

    def __init__(self) -> None:
        self._ready_us: dict[int, int] = {}
        self._delay_us: dict[int, int] = {}

    def taken(self, arrival_us: Integers, host: npt.NDArray[np.int32], run_us: Integers) -> npt.NDArray[np.bool_]:
        """Which of the next jobs are taken.

        Args:
            arrival_us: of each job, in order.
            host: that it comes to.
            run_us: how long it would run there.
        """
        ready_us, delay_us = self._ready_us, self._delay_us
        is_taken = np.zeros(len(host), dtype=np.bool_)
        jobs = zip(arrival_us.tolist(), host.tolist(), run_us.tolist(), strict=True)
        for job, (now_us, at, lasts_us) in enumerate(jobs):
            if now_us < ready_us.get(at, 0):
                continue
            is_taken[job] = True
            pause_us = delay_us.get(at, FIRST_DELAY_US) if lasts_us < FAST_US else 0
            ready_us[at] = now_us + lasts_us + pause_us
            delay_us[at] = min(2 * pause_us, LONGEST_DELAY_US) if pause_us else FIRST_DELAY_US
        return is_taken


def _seti(cluster: int | None) -> OwnAvailability:
    if cluster is None:
        return SETI
    up, mean_down = SETI_CLUSTERS[cluster - 1]
    return OwnAvailability(up, WeibullTime(mean_down, 1.0))


def gone(lifetime_us: int, draw: Draw, turnaround_us: Integers) -> npt.NDArray[np.bool_]:
    """For each job, whether its host left for good before the job came back.

    Host lifetimes are exponential (D. P. Anderson, BOINC: a platform for volunteer computing, J. Grid Computing 18,
    2020, found a mean of 100 days), so what is left of one does not depend on when the job came.
    """
    return -log(draw("volunteers.lifetime")) * lifetime_us < turnaround_us
