"""Arrays whose values come piece by piece; in temporary files that are mapped, if they are long."""

from __future__ import annotations

import tempfile
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from cpsim.system.mapped import LEAST_BYTES, ROWS, A, mapped, stretches, zeros

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable

    import numpy.typing as npt


class Growing:
    """Values that come one by one or in pieces: in a temporary file as soon as they are many, else in memory.

    They stay in memory where there is no room for a file, too.

    Args:
        dtype: of the array that they become.
    """

    def __init__(self, dtype: npt.DTypeLike = np.int64) -> None:
        self._dtype = np.dtype(dtype)
        self._single = array("q")
        self._kept = bytearray()
        self._file: io.FileIO | None = None
        self._has_room = True

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, value: int) -> None:
        """Add a value."""
        self._single.append(value)
        if len(self._single) == ROWS:
            self._keep_single()

    def add(self, values: npt.ArrayLike) -> None:
        """Add values, which are copied."""
        self._keep_single()
        self._keep(values)

    def array(self) -> npt.NDArray[Any]:
        """All of them; it takes no more."""
        self._keep_single()
        if self._file is not None:
            with suppress(OSError):
                self._write()
                found = mapped(self._file)
                self._file.close()
                return np.frombuffer(found, self._dtype)
            self._give_up_file()
        return np.frombuffer(self._kept, self._dtype)

    def _keep_single(self) -> None:
        if self._single:
            single, self._single = self._single, array("q")
            self._keep(np.frombuffer(single, np.int64))

    def _keep(self, values: npt.ArrayLike) -> None:
        self._kept += np.ascontiguousarray(values, self._dtype).data
        if self._has_room and len(self._kept) >= LEAST_BYTES:
            try:
                self._write()
            except OSError:
                self._give_up_file()

    def _write(self) -> None:
        """Move what is in memory to the end of the file; where that fails, the rest stays in memory."""
        self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see __del__
        while self._kept:
            del self._kept[: self._file.write(self._kept)]

    def _give_up_file(self) -> None:
        """Have all in memory from now on."""
        self._has_room = False
        if self._file is not None:
            with self._file as file:
                file.seek(0)
                self._kept = bytearray(file.readall()) + self._kept
            self._file = None


def gathered(pieces: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of arrays one after the other, see `Growing`."""
    values = Growing(dtype)
    for piece in pieces:
        values.add(piece)
    return values.array()


def made(count: int, dtype: npt.DTypeLike, at: Callable[[slice], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """An array of values that are made stretch by stretch, see `Growing`."""
    return gathered((at(where) for where in stretches(count)), dtype)


def changeable(values: A) -> A:
    """A copy that can be changed, as `zeros` has it."""
    copy: Any = zeros(values.size, values.dtype).reshape(values.shape)
    for where in stretches(len(values)):
        copy[where] = values[where]
    same: A = copy
    return same
