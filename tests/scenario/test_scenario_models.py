import math

import numpy as np
import pytest

from cpsim.scenario.models import distributions as models
from cpsim.scenario.streams import uniforms

N = 200_000
SECOND = models.SECOND_US
HOUR = 3600 * SECOND
FOREVER = 10**15
PINNED = [0.7906715517643746, 0.484796877624572]


def draw(purpose="test"):
    return uniforms(1, purpose, N)


def test_streams_are_pinned_uniform_and_independent():
    assert uniforms(1, "arrivals", 2).tolist() == PINNED
    a, b = draw("a"), draw("b")
    assert 0 < a.min() < a.max() < 1
    assert a.mean() == pytest.approx(0.5, abs=0.003)
    assert a.var() == pytest.approx(1 / 12, rel=0.01)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
    assert abs(np.corrcoef(a, uniforms(2, "a", N))[0, 1]) < 0.01
    assert np.array_equal(a[:10], uniforms(1, "a", 10))


def test_constant_arrivals_are_even():
    assert models.constant_arrivals(4, 10 * SECOND).tolist() == [0, 2_500_000, 5_000_000, 7_500_000]


def test_poisson_arrivals_have_exponential_gaps():
    arrivals = models.poisson_arrivals(draw(), 24 * HOUR)
    gaps = np.diff(arrivals)
    assert gaps.min() >= 0
    assert arrivals.max() < 24 * HOUR
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.02)


def test_diurnal_arrivals_follow_the_cosine():
    arrivals = models.diurnal_arrivals(draw(), 48 * HOUR, peak_hour=20, amplitude=0.6)
    assert np.all(np.diff(arrivals) >= 0)
    counts, _ = np.histogram(arrivals, bins=48, range=(0, 48 * HOUR))
    middle = np.arange(48) + 0.5
    expected = N / 48 * (1 + 0.6 * np.cos(2 * np.pi * (middle - 20) / 24))
    np.testing.assert_allclose(counts, expected, rtol=0.08)


@pytest.mark.parametrize("duration_us", [1, SECOND, 61 * SECOND, 36 * HOUR])
def test_diurnal_arrivals_stay_inside_any_duration(duration_us):
    arrivals = models.diurnal_arrivals(draw(), duration_us, peak_hour=0, amplitude=1)
    assert 0 <= arrivals.min() <= arrivals.max() < duration_us


def test_lognormal_moments_and_limit():
    pairs = uniforms(1, "pairs", 2 * N).reshape(-1, 2).T
    times = models.lognormal_times(pairs, HOUR, 0.5, FOREVER)
    assert np.median(times) == pytest.approx(HOUR, rel=0.01)
    assert times.mean() == pytest.approx(HOUR * math.exp(0.125), rel=0.01)
    assert np.log(times).std() == pytest.approx(0.5, rel=0.01)
    assert models.lognormal_times(pairs, HOUR, 10, 2 * HOUR).max() == 2 * HOUR
    assert set(models.lognormal_times(pairs, HOUR, 0, FOREVER)) == {HOUR}


@pytest.mark.parametrize("shape", [0.5, 1, 3])
def test_weibull_moments(shape):
    times = models.weibull_times(draw(), HOUR, shape, FOREVER)
    assert times.mean() == pytest.approx(HOUR * math.gamma(1 + 1 / shape), rel=0.02)
    assert np.median(times) == pytest.approx(HOUR * math.log(2) ** (1 / shape), rel=0.02)


def test_weibull_of_extreme_shape_is_finite():
    assert models.weibull_times(draw(), HOUR, 0.1, FOREVER).max() <= FOREVER


@pytest.mark.parametrize("mean", [0.01, 0.5, 3, 40.5, 1000, 1e9])
def test_poisson_moments(mean):
    numbers = models.poisson_integers(draw(), mean)
    assert numbers.min() >= 0
    assert numbers.mean() == pytest.approx(mean, rel=0.03)
    assert numbers.var() == pytest.approx(mean, rel=0.03)


def test_poisson_probabilities():
    counts = np.bincount(models.poisson_integers(draw(), 2.0)) / N
    expected = [math.exp(-2) * 2**k / math.factorial(k) for k in range(6)]
    np.testing.assert_allclose(counts[:6], expected, atol=0.004)


def test_uniform_integers_reach_both_ends():
    values, counts = np.unique(models.uniform_integers(draw(), -2, 3), return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2, 3]
    np.testing.assert_allclose(counts / N, 1 / 6, rtol=0.03)


def test_choices_follow_their_shares():
    counts = np.bincount(models.choose(draw(), [0.7, 0.0, 0.2, 0.1])) / N
    np.testing.assert_allclose(counts, [0.7, 0, 0.2, 0.1], atol=0.005)
