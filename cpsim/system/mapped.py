"""Columns in temporary files that are mapped: what was read of one takes memory only until it is let go."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import tempfile
from contextlib import contextmanager, suppress
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

import numpy as np

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

A = TypeVar("A", bound=np.ndarray[Any, Any])
LEAST_BYTES: Final = 1 << 20
"""Arrays that take fewer stay in memory."""
ROWS: Final = 1 << 18
"""Rows written or read at a time."""
TAKEN_BYTES: Final = 1 << 24
"""Of a mapped array, about so much is in memory while values are taken from all over it."""
_maps: Final[WeakSet[mmap.mmap]] = WeakSet()
_maps_lock: Final = Lock()
"""A replay in a thread may let go while another thread maps."""


class NoRoom(CpsimError):
    """A temporary file cannot be written."""


def stored(values: A, least_bytes: int | None = None) -> A:
    """The same array, mapped from a temporary file and read-only; as it is if it is small, or there is no room."""
    if (
        values.nbytes < (LEAST_BYTES if least_bytes is None else least_bytes) or 0 in values.strides
    ):  # which is one value all over, and takes no memory
        return values
    same: A = _written(values, lambda where: values[where])
    return same


def _written(like: npt.NDArray[Any], at: Callable[[slice], npt.NDArray[Any]]) -> Any:  # noqa: ANN401 - of its type
    """An array of the shape of another, of values that are made stretch by stretch."""
    with suppress(OSError), tempfile.TemporaryFile() as file:
        for where in stretches(len(like)):
            file.write(np.ascontiguousarray(at(where)).data)
        return np.frombuffer(mapped(file), like.dtype).reshape(like.shape)
    return at(slice(None))


class Gathering:
    """Values that come piece by piece: in a temporary file as soon as they are many, if there is room, else in memory.

    Args:
        dtype: of the values.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._kept: list[npt.NDArray[Any]] = []
        self._kept_bytes = 0
        self._file: IO[bytes] | None = None
        self._has_room = True

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add values, which are copied."""
        self._kept.append(np.array(values, self._dtype))
        self._kept_bytes += self._kept[-1].nbytes
        if self._has_room and self._kept_bytes >= LEAST_BYTES:
            self._write()

    def array(self) -> npt.NDArray[Any]:
        """All of them, of which no more come."""
        if self._file is None or not self._write() or self._file is None:
            return np.concatenate([np.empty(0, self._dtype), *self._kept])
        with self._file:
            return np.frombuffer(mapped(self._file), self._dtype)

    def _write(self) -> bool:
        """Write what is in memory; where there is no room, all of it is in memory from then on. Returns whether not."""
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - open until it is mapped
            written = self._file.tell()
            for values in self._kept:
                self._file.write(values.data)
            self._file.flush()
        except OSError:
            self._has_room = False
            if self._file is not None:
                self._file.seek(0)
                self._kept.insert(0, np.fromfile(self._file, self._dtype, written // self._dtype.itemsize))
                self._file.close()
                self._file = None
            return False
        self._kept, self._kept_bytes = [], 0
        return True


def gathered(pieces: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of arrays one after the other, see `Gathering`."""
    found = Gathering(dtype)
    for piece in pieces:
        found.add(piece)
    return found.array()


def grouped(
    pieces: Callable[[], Iterable[tuple[npt.NDArray[np.integer], npt.NDArray[Any]]]], groups: int, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Values put together by their groups, in which they keep their order.

    Args:
        pieces: makes the numbers of groups, and the values, piece by piece; called twice.
        groups: how many there are.
        dtype: of the values.

    Returns:
        All values, in a file if there are many, and where each group begins, and the last one ends.
    """
    bounds, dtype = np.zeros(groups + 1, np.int64), np.dtype(dtype)
    for group, _ in pieces():
        bounds[1:] += np.bincount(group, minlength=groups)
    np.cumsum(bounds, out=bounds)

    def runs() -> Iterator[tuple[int, npt.NDArray[Any]]]:
        upto = bounds[:-1].copy()
        for group, values in pieces():
            sizes = np.bincount(group, minlength=groups)
            in_order, ends = values[np.argsort(group, kind="stable")], np.cumsum(sizes)
            for number in np.flatnonzero(sizes).tolist():
                yield int(upto[number]), in_order[ends[number] - sizes[number] : ends[number]]
            upto += sizes
            let_go()

    if bounds[-1] * dtype.itemsize >= LEAST_BYTES:
        with suppress(OSError), tempfile.TemporaryFile() as file:
            for start, run in runs():  # written, for what is put all over a map takes memory all over it
                file.seek(start * dtype.itemsize)
                file.write(run.data)
            return np.frombuffer(mapped(file), dtype), bounds
    found = np.empty(bounds[-1], dtype)
    for start, run in runs():
        found[start : start + len(run)] = run
    return found, bounds


def places_by_group(
    count: int, group_at: Callable[[slice], npt.NDArray[np.integer]], groups: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places, from 0, that are in each of some groups, in ascending order within it; see `grouped`.

    Args:
        count: of places.
        group_at: the groups of some.
        groups: how many there are.
    """
    return grouped(
        lambda: ((group_at(where), np.arange(where.start, where.stop)) for where in stretches(count)), groups, np.int64
    )


def zeros(count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array of zeros; in a temporary file if it is large and there is room."""
    if count * dtype.itemsize >= LEAST_BYTES:
        with suppress(OSError), tempfile.TemporaryFile() as file:
            for start in range(0, count, ROWS):  # room that a hole lacked later would end the process
                file.write(bytes(min(ROWS, count - start) * dtype.itemsize))
            return np.frombuffer(mapped(file, mmap.ACCESS_WRITE), dtype)
    return np.zeros(count, dtype)


def stretches(count: int) -> Iterator[slice]:
    """The places of so many rows, `ROWS` at a time; what was read of files meanwhile is let go."""
    for start in range(0, count, ROWS):
        yield slice(start, min(start + ROWS, count))
        let_go()


def taken(values: A, places: npt.NDArray[np.integer]) -> A:
    """The values at some places, in ascending order: of a mapped array, few other values take memory meanwhile."""
    shape = (len(places), *values.shape[1:])
    is_large = len(places) * values.nbytes > TAKEN_BYTES * max(1, len(values))
    found: Any = zeros(math.prod(shape), values.dtype).reshape(shape) if is_large else np.empty(shape, values.dtype)
    at_once = max(1, len(places) * TAKEN_BYTES // max(1, values.nbytes))
    for start in range(0, len(places), at_once):
        found[start : start + at_once] = values[places[start : start + at_once]]
        let_go()
    same: A = found
    return same


@contextmanager
def writing() -> Iterator[None]:
    """Tell of what a temporary file is written to why it cannot be; raises NoRoom."""
    try:
        yield
    except OSError as error:
        raise NoRoom(
            f"columns cannot be written below {tempfile.gettempdir()}: {error.strerror or error}; make room there, or "
            "name a folder on another disk with TMPDIR"
        ) from error


def mapped(
    file: IO[bytes] | tempfile.SpooledTemporaryFile[bytes],
    access: int = mmap.ACCESS_READ,
    *,
    start: int = 0,
    size: int = 0,
) -> mmap.mmap:
    """All that was written to a file, or so many bytes from a page on; the file may be closed then."""
    file.flush()
    found = mmap.mmap(file.fileno(), size, access=access, offset=start)
    with _maps_lock:
        _maps.add(found)
    return found


def let_go() -> None:
    """Give back the memory of what was read of mapped files; whoever needs it again reads it again."""
    with _maps_lock:
        for each in _maps:
            each.madvise(mmap.MADV_DONTNEED)


def give_back() -> None:
    """Give back also what pyarrow, if it is loaded, and the C library keep of the memory that was freed."""
    let_go()
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
