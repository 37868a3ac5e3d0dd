"""Objects in a file, whose arrays are mapped when they are taken from it, by this process or another."""

from __future__ import annotations

import io
import mmap
import pickle
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from cpsim.system.mapped import let_go, mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

LONG_TUPLE: Final = 64
"""Tuples of more items are shared, where they can be."""
PADDING: Final = 64
AT_ONCE: Final = 1 << 24
"""Bytes that are written at a time."""


class Extent(NamedTuple):
    """Where an object is in its file.

    Attributes:
        start, size: its bytes.
        parts: where, from there on, each of its arrays begins and ends, and last all the rest.
    """

    start: int
    size: int
    parts: list[tuple[int, int]]


def put(file: IO[bytes], thing: object, shared: dict[int, Any] | None = None) -> Extent:
    """Write an object at the end of a file.

    Args:
        file: where it is written.
        thing: which can be pickled.
        shared: takes the long tuples in it, which are not written; None writes them.

    Raises:
        OSError: it cannot be written.
    """
    buffers: list[pickle.PickleBuffer] = []
    rest = io.BytesIO()
    _Pickler(rest, buffers.append, shared).dump(thing)
    file.seek(0, io.SEEK_END)
    file.write(bytes(-file.tell() % mmap.ALLOCATIONGRANULARITY))
    start, parts = file.tell(), []
    for data in (*(buffer.raw() for buffer in buffers), rest.getbuffer()):
        begin = file.tell() - start
        for first in range(0, len(data), AT_ONCE):
            file.write(data[first : first + AT_ONCE])
            let_go()
        parts.append((begin, begin + len(data)))
        file.write(bytes(-file.tell() % PADDING))
    file.flush()
    return Extent(start, file.tell() - start, parts)


def take(file: IO[bytes], extent: Extent, shared: dict[int, Any] | None = None) -> Any:  # noqa: ANN401 - what was put
    """The object that was put there; its arrays cannot be written."""
    whole = memoryview(mapped(file, start=extent.start, size=extent.size))
    *buffers, rest = (whole[begin:end] for begin, end in extent.parts)
    return _Unpickler(io.BytesIO(rest), buffers=buffers, shared=shared).load()


class _Pickler(pickle.Pickler):
    """Writes arrays elsewhere, an array of one value all over as that value, and long tuples not at all."""

    def __init__(self, file: IO[bytes], on_buffer: Callable[[pickle.PickleBuffer], object], shared: Any) -> None:  # noqa: ANN401
        super().__init__(file, protocol=5, buffer_callback=on_buffer)
        self._shared = shared

    def persistent_id(self, thing: Any) -> int | None:  # noqa: ANN401 - as pickle has it
        """The identity of a long tuple."""
        if self._shared is None or type(thing) is not tuple or len(thing) <= LONG_TUPLE:
            return None
        self._shared[id(thing)] = thing
        return id(thing)

    def reducer_override(self, thing: Any) -> Any:  # noqa: ANN401 - as pickle has it
        """An array of one value all over, as a function that makes it."""
        if isinstance(thing, np.ndarray) and thing.size and 0 in thing.strides:
            return np.broadcast_to, (thing[(slice(1),) * thing.ndim].copy(), thing.shape)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], *, buffers: list[memoryview], shared: Any) -> None:  # noqa: ANN401
        super().__init__(file, buffers=buffers)
        self._shared = shared

    def persistent_load(self, number: int) -> Any:  # noqa: ANN401 - as pickle has it
        """The long tuple of an identity."""
        return self._shared[number]


class Shelf:
    """Objects by a key in a temporary file, which are mapped each time that they are taken from it.

    What long tuples they have is in memory, once for all objects that have the same ones. If there is no room, there is
    nothing on the shelf.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._extents: dict[Hashable, Extent] = {}
        self._shared: dict[int, Any] = {}
        self._has_room = True

    def put(self, key: Hashable, thing: object) -> None:
        """Put an object there, if there is room."""
        if not self._has_room:
            return
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the shelf
            self._extents[key] = put(self._file, thing, self._shared)
        except OSError:
            self._has_room = False

    def get(self, key: Hashable) -> Any:  # noqa: ANN401 - what was put there
        """The object; None if there is none."""
        if key not in self._extents or self._file is None:
            return None
        return take(self._file, self._extents[key], self._shared)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()
