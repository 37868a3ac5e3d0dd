"""Sorting of more rows than memory is to hold."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.system.mapped import LEAST_BYTES, ROWS, let_go, mapped, stored, stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    Rows = npt.NDArray[Any]

APART: Final = 1 << 10
"""Every so many rows of a sorted piece, one is a sample."""
PARTS: Final = 32
"""Mapped parts that are looked at together; the system brings some 64 KiB of each into memory, however small it is."""


def in_order(pieces: Iterable[Rows], key: str) -> Iterator[Rows]:
    """Rows in ascending order of a key, and those of equal keys in the order in which they came.

    Args:
        pieces: structured arrays of one type; small ones are put together.
        key: the field to sort by.

    Yields:
        Pieces of about `ROWS` rows. Only rows with equal keys go on in the next one.
    """
    runs, samples = [], []
    for piece in _put_together(pieces):
        runs.append(stored(_sorted(piece, key)))
        samples.append(runs[-1][key][::APART].copy())
        let_go()
    if not runs:
        return
    cuts, times = np.unique(np.sort(np.concatenate(samples))[ROWS // APART :: ROWS // APART], return_counts=True)
    many = cuts[times > 1]  # a key of more rows than memory is to hold: they are in order as they are
    ends = np.sort(np.concatenate([cuts, many]))
    is_one_key = np.append(False, np.append(ends[1:] == ends[:-1], False))
    bounds = [_bounds(run[key], cuts, many) for run in runs]
    for place, is_equal in enumerate(is_one_key[: len(ends) + 1].tolist()):
        parts = [run[at[place] : at[place + 1]] for run, at in zip(runs, bounds, strict=True)]
        if is_equal:
            yield from (part.copy() for part in parts if len(part))
        elif any(map(len, parts)):
            yield _sorted(_copied(parts), key)
        let_go()


def places_by_group(
    count: int, group_at: Callable[[slice], npt.NDArray[np.integer]], groups: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places, from 0, that are in each of some groups, in ascending order within it.

    Groups are counted, which takes half the time of `in_order` or less: so it is known where each of them begins.

    Args:
        count: of places.
        group_at: the groups of some.
        groups: how many there are.

    Returns:
        All places, and where those of each group begin, and the last ones end.
    """
    bounds = np.zeros(groups + 1, np.int64)
    for where in stretches(count):
        bounds[1:] += np.bincount(group_at(where), minlength=groups)
    np.cumsum(bounds, out=bounds)

    def runs() -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        upto = bounds[:-1].copy()
        for where in stretches(count):
            group = group_at(where)
            sizes = np.bincount(group, minlength=groups)
            places, ends = where.start + np.argsort(group, kind="stable"), np.cumsum(sizes)
            for number in np.flatnonzero(sizes).tolist():
                yield int(upto[number]), places[ends[number] - sizes[number] : ends[number]]
            upto += sizes

    if bounds.itemsize * count >= LEAST_BYTES:
        with suppress(OSError), tempfile.TemporaryFile() as file:
            for start, run in runs():  # written, for what is put all over a map takes memory all over it
                file.seek(start * run.itemsize)
                file.write(run.data)
            return np.frombuffer(mapped(file), np.int64), bounds
    found = np.empty(count, np.int64)
    for start, run in runs():
        found[start : start + len(run)] = run
    return found, bounds


def _put_together(pieces: Iterable[Rows]) -> Iterator[Rows]:
    """The same rows, in pieces of at least `ROWS` rows but for the last."""
    small: list[Rows] = []
    for piece in pieces:
        small.append(piece)
        if sum(map(len, small)) >= ROWS:
            yield small[0] if len(small) == 1 else np.concatenate(small)
            small = []
    if small:
        yield np.concatenate(small)


def _copied(parts: list[Rows]) -> Rows:
    """The rows of parts of mapped pieces, of which few are in memory at a time."""
    copies: list[Rows] = []
    for first in range(0, len(parts), PARTS):
        copies.append(np.concatenate(parts[first : first + PARTS]))
        let_go()
    return copies[0] if len(copies) == 1 else np.concatenate(copies)


def _sorted(rows: Rows, key: str) -> Rows:
    return rows.take(np.argsort(rows[key], kind="stable"))  # structured rows by [...] take several times as long


def _bounds(keys: npt.NDArray[Any], cuts: npt.NDArray[Any], many: npt.NDArray[Any]) -> list[int]:
    """Where the parts of a sorted piece begin and end."""
    keys = np.ascontiguousarray(keys)
    at = np.concatenate([np.searchsorted(keys, cuts), np.searchsorted(keys, many, "right")])
    let_go()
    return [0, *np.sort(at).tolist(), len(keys)]
