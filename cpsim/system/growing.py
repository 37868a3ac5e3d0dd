"""Arrays that are made piece by piece; in temporary files that are mapped, if they are long."""

from __future__ import annotations

import tempfile
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from cpsim.system.mapped import LEAST_BYTES, ROWS, A, mapped, stretches, writing, zeros

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


def made(count: int, dtype: npt.DTypeLike, at: Callable[[slice], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """An array of values that are made stretch by stretch, as `stored` has them."""
    values = Growing(dtype)
    for where in stretches(count):
        values.add(at(where))
    return values.array()


class Growing:
    """Values that come one by one or in pieces, and become an array; in a temporary file if they are many.

    Args:
        dtype: of the array.
    """

    def __init__(self, dtype: npt.DTypeLike = np.int64) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.SpooledTemporaryFile(LEAST_BYTES)  # noqa: SIM115 - see __del__
        self._size_bytes = 0
        self._single = array("q")

    def __del__(self) -> None:
        self._file.close()

    def append(self, value: int) -> None:
        """Add a value; raises NoRoom."""
        self._single.append(value)
        if len(self._single) == ROWS:
            self.add(())

    def add(self, values: npt.ArrayLike) -> None:
        """Add values; raises NoRoom."""
        single, self._single = self._single, array("q")
        for piece in (np.frombuffer(single, np.int64), values):
            same = np.ascontiguousarray(piece, self._dtype)
            if len(same):
                with writing():
                    self._file.write(same.data)
                self._size_bytes += same.nbytes

    def array(self) -> npt.NDArray[Any]:
        """All of them; it takes no more. Raises NoRoom."""
        self.add(())
        with writing(), self._file as file:
            if self._size_bytes > LEAST_BYTES:
                return np.frombuffer(mapped(file), self._dtype)
            file.seek(0)
            return np.frombuffer(file.read(), self._dtype)


def changeable(values: A) -> A:
    """A copy that can be changed, as `zeros` has it."""
    copy: Any = zeros(values.size, values.dtype).reshape(values.shape)
    for where in stretches(len(values)):
        copy[where] = values[where]
    same: A = copy
    return same
