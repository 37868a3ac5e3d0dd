import numpy as np
import pytest

from cpsim.scenario.models import arithmetic


def test_exp_and_log_agree_with_numpy():
    x = np.linspace(-690, 690, 10_001)
    np.testing.assert_allclose(arithmetic.exp(x), np.exp(x), rtol=1e-13)
    y = np.concatenate([np.geomspace(1e-300, 1e300, 10_001), 1 - np.geomspace(1e-16, 0.5, 101)])
    np.testing.assert_allclose(arithmetic.log(y), np.log(y), rtol=1e-13)


def test_cosine_of_turns():
    turns = np.linspace(-3, 3, 10_001)
    np.testing.assert_allclose(arithmetic.cos_turns(turns), np.cos(2 * np.pi * turns), atol=1e-13)


@pytest.mark.parametrize("u", [2.0**-53, 1 - 2.0**-53])
def test_the_ends_of_the_open_interval_are_finite(u):
    ends = np.array([u])
    assert arithmetic.log(ends)[0] < 0
    assert np.isfinite(arithmetic.log(-arithmetic.log(ends)))
