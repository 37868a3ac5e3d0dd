"""Columns in temporary files that are mapped: what was read of one takes memory only until it is let go."""

from __future__ import annotations

import ctypes
import itertools
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
    from collections.abc import Iterator

    import numpy.typing as npt

A = TypeVar("A", bound=np.ndarray[Any, Any])
LEAST_BYTES: Final = 1 << 20
"""Arrays that take fewer stay in memory."""
ROWS: Final = 1 << 18
"""Rows written or read at a time."""
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""Of glibc's `malloc.h`."""
TAKEN_BYTES: Final = 1 << 24
"""Of a mapped array, about so much is in memory while values are taken from all over it."""
_maps: Final[WeakSet[mmap.mmap]] = WeakSet()
_maps_lock: Final = Lock()
"""A replay in a thread may let go while another thread maps."""


class NoRoom(CpsimError):
    """A temporary file cannot be written."""


def stored(values: A, least_bytes: int | None = None) -> A:
    """The same array, mapped from a temporary file and read-only; as it is if it is small, or there is no room."""
    is_small = values.nbytes < (LEAST_BYTES if least_bytes is None else least_bytes)
    is_one_value = 0 in values.strides  # all over, which takes no memory
    if not is_small and not is_one_value:
        with suppress(OSError), tempfile.TemporaryFile() as file:
            for where in stretches(len(values)):
                file.write(np.ascontiguousarray(values[where]).data)
            found: Any = np.frombuffer(mapped(file), values.dtype).reshape(values.shape)
            same: A = found
            return same
    return values


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
    for where in _near(values, places):
        found[where] = values[places[where]]
        let_go()
    same: A = found
    return same


def taken_anywhere(values: A, places: npt.NDArray[np.integer]) -> A:
    """The values at places in any order: of a mapped array, few other values take memory meanwhile."""
    found: Any
    if values.nbytes <= TAKEN_BYTES:
        found = values[places]
    else:
        order = np.argsort(places, kind="stable")
        found = np.empty((len(places), *values.shape[1:]), values.dtype)
        found[order] = taken(values, places[order])
    same: A = found
    return same


def put_anywhere(values: A, places: npt.NDArray[np.integer], new: npt.NDArray[Any]) -> None:
    """Set the values at places in any order, of which the last counts where there are several, likewise."""
    if values.nbytes <= TAKEN_BYTES:
        values[places] = new
        return
    order = np.argsort(places, kind="stable")
    places = places[order]
    for where in _near(values, places):
        values[places[where]] = new[order[where]]
        let_go()


def _near(values: npt.NDArray[Any], places: npt.NDArray[np.integer]) -> Iterator[slice]:
    """Stretches of places, in ascending order, between which are few values."""
    at_once = max(1, len(values) * TAKEN_BYTES // max(1, values.nbytes))
    bounds = np.searchsorted(places, np.arange(0, len(values) + at_once, at_once)).tolist()
    yield from (slice(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop)


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


def mapped(file: IO[bytes], access: int = mmap.ACCESS_READ, *, start: int = 0, size: int = 0) -> mmap.mmap:
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


def keep_freed() -> None:
    """Have the C library keep memory that was freed for what comes next, up to 64 MiB.

    It would give large pieces back at once, and zero the next ones again, page by page: a judgement takes the
    same ones for each partition. Where it is not glibc, nothing changes.
    """
    _set_option(M_TRIM_THRESHOLD, 64 << 20)
    _set_option(M_MMAP_THRESHOLD, 32 << 20)


def keep_nothing_large() -> None:
    """Have the C library give back pieces of 128 KiB or more as soon as they are freed.

    By itself it comes to keep larger and larger ones, with gaps, the longer a run is. Where it is not glibc, nothing
    changes.
    """
    _set_option(M_MMAP_THRESHOLD, 128 << 10)


def _set_option(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)


def give_back() -> None:
    """Give back also what pyarrow, if it is loaded, and the C library keep of the memory that was freed."""
    let_go()
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
