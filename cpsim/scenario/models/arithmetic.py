"""Elementary functions that give the same bits on every machine.

The last bits of numpy's own `exp`, `log` and `cos` depend on the processor and the release, and one bit is
enough to move an operation by a microsecond. These are made only of operations that IEEE 754 rounds exactly:
+ - * / and changes of the exponent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.float64]

_LN2: Final = 0.6931471805599453
_EXP: Final = [1 / math.factorial(k) for k in range(14, -1, -1)]
_COS: Final = [(-1) ** k / math.factorial(2 * k) for k in range(15, -1, -1)]
_ATANH: Final = [1 / (2 * k + 1) for k in range(11, -1, -1)]


def exp(x: Floats) -> Floats:
    """Return e to the x, for |x| < 700; relative error below 1e-13."""
    exponent = np.rint(x / _LN2)
    return np.ldexp(_polynomial(_EXP, x - exponent * _LN2), exponent.astype(np.int32))


def log(x: Floats) -> Floats:
    """Natural logarithm of x > 0; relative error below 1e-13."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.5**0.5  # keeps the mantissa near 1, where the series is short
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    ratio = (mantissa - 1) / (mantissa + 1)
    logarithm: Floats = exponent * _LN2 + 2 * ratio * _polynomial(_ATANH, ratio * ratio)
    return logarithm


def cos_turns(turns: Floats) -> Floats:
    """Cosine of whole turns: 0 and 1 give 1, 0.5 gives -1; absolute error below 1e-13."""
    x = 2 * math.pi * (turns - np.rint(turns))
    return _polynomial(_COS, x * x)


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    """Horner's scheme, highest power first."""
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += coefficient
    return total
