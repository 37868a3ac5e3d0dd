"""The Lublin-Feitelson model of batch jobs: nodes, run times, and the times between arrivals.

Source: U. Lublin and D. G. Feitelson, The workload on parallel supercomputers: modeling the characteristics of rigid
jobs, J. Parallel Distrib. Comput. 63(11), 2003, and the authors' m_lublin99.c, whose constants these are.

Where their program draws again what is too long, a uniform number is squeezed into what is allowed: the distribution
is the same, and a value depends on its own uniforms alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cpsim.scenario.models.arithmetic import Floats, exp, log
from cpsim.scenario.models.gamma import gamma

LONGEST_LOG_S: Final = 12.0
LONGEST_GAP_LOG_S: Final = 13.0
HALF_HOURS: Final = 48
LN_2: Final = 0.6931471805599453
FIRST_HALF_HOUR: Final = 11
"""The daily cycle begins at 5:00, when least happens."""


class HyperGamma(NamedTuple):
    """Two gamma distributions of the natural logarithm of seconds, each a shape and a scale."""

    shape_1: float
    scale_1: float
    shape_2: float
    scale_2: float

    def log_times(self, first: Floats, choice: Floats, value: Floats, longest: float = LONGEST_LOG_S) -> Floats:
        """Logarithms of run times, none above `longest`.

        Args:
            first: the probability of the first distribution, for each.
            choice: a uniform number for each, which chooses the distribution.
            value: a uniform number for each, which is turned into the value.
            longest: the longest logarithm.
        """
        below_1, below_2 = (
            float(gamma(shape).probability(np.array([longest / scale]))[0])
            for shape, scale in ((self.shape_1, self.scale_1), (self.shape_2, self.scale_2))
        )
        weight = first * below_1
        is_first = choice < weight / (weight + (1 - first) * below_2)
        times = np.empty_like(value)
        times[is_first] = gamma(self.shape_1).quantile(value[is_first] * below_1) * self.scale_1
        times[~is_first] = gamma(self.shape_2).quantile(value[~is_first] * below_2) * self.scale_2
        return times


class Kind(NamedTuple):
    """The constants for jobs of a kind, under the names that the authors give them."""

    serial: float
    power_of_2: float
    ulow: float
    uprob: float
    times: HyperGamma
    pa: float
    pb: float
    aarr: float
    barr: float
    anum: float
    bnum: float
    arar: float


JOB_KINDS: Final = {
    "batch": Kind(
        0.2927, 0.6686, 1.2, 0.875, HyperGamma(6.57, 0.823, 639.1, 0.0156), -0.003, 0.6986, 6.0415, 0.8531, 6.1271,
        5.274, 1.0519,
    ),
    "interactive": Kind(
        0.1541, 0.625, 1.0, 0.705, HyperGamma(3.8351, 0.6605, 7.073, 0.6856), -0.0118, 0.9156, 6.551, 0.6621, 8.9186,
        3.668, 0.9797,
    ),
    "untyped": Kind(
        0.244, 0.576, 0.8, 0.86, HyperGamma(4.2, 0.94, 312.0, 0.03), -0.0054, 0.78, 10.2303, 0.4871, 8.1737, 3.9631,
        1.0225,
    ),
}  # fmt: skip
UMED_BELOW_UHI: Final = {"batch": 2.0, "interactive": 2.5, "untyped": 2.5}


def nodes(uniforms: Floats, kind: str, largest: int) -> npt.NDArray[np.int64]:
    """How many nodes each job takes, up to `largest`, the size of the cluster.

    Args:
        uniforms: shape (3, jobs).
        kind: one of `JOB_KINDS`.
        largest: 8 or more.
    """
    of = JOB_KINDS[kind]
    sort, stage, value = uniforms
    uhi = _log2(largest)
    umed = max(of.ulow, uhi - UMED_BELOW_UHI[kind])
    size = np.where(stage <= of.uprob, of.ulow + value * (umed - of.ulow), umed + value * (uhi - umed))
    size = np.where(sort <= of.serial + of.power_of_2, np.floor(size + 0.5), size)
    count = np.floor(exp(size * LN_2) + 0.5).astype(np.int64)
    return np.where(sort <= of.serial, 1, np.minimum(count, largest))


def run_times_s(uniforms: Floats, node_counts: npt.NDArray[np.int64], kind: str) -> Floats:
    """How many seconds each job runs: the more nodes, the longer.

    Args:
        uniforms: shape (2, jobs).
        node_counts: of each job.
        kind: one of `JOB_KINDS`.
    """
    of = JOB_KINDS[kind]
    first = np.clip(of.pa * node_counts + of.pb, 0.0, 1.0)
    return exp(of.times.log_times(first, uniforms[0], uniforms[1]))


def gaps_s(uniforms: Floats, kind: str) -> Floats:
    """Seconds from each arrival to the next, before the daily cycle stretches the nights."""
    of = JOB_KINDS[kind]
    shape = gamma(of.aarr * of.arar)
    most = shape.probability(np.array([LONGEST_GAP_LOG_S / of.barr]))
    return exp(shape.quantile(uniforms * most) * of.barr)


def half_hour_weights(kind: str) -> Floats:
    """How much happens in each half-hour from midnight, 1 on average."""
    of = JOB_KINDS[kind]
    half_hours = np.arange(FIRST_HALF_HOUR, FIRST_HALF_HOUR + HALF_HOURS)
    shape = gamma(of.anum)
    edges = np.append(half_hours - 0.5, half_hours[-1] + 0.5) / of.bnum
    weights = np.empty(HALF_HOURS)
    weights[(half_hours - 1) % HALF_HOURS] = np.diff(shape.probability(edges))
    normalised: Floats = weights * (HALF_HOURS / np.cumsum(weights)[-1])
    return normalised


def _log2(number: int) -> float:
    """The binary logarithm, the same bits everywhere."""
    return float(log(np.array([float(number)]))[0]) / LN_2
