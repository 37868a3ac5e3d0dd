"""Sorting of more rows than memory is to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.system.mapped import ROWS, let_go, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    Rows = npt.NDArray[Any]

APART: Final = 1 << 10
"""Every so many rows of a sorted piece, one is a sample."""


def in_order(pieces: Iterable[Rows], key: str) -> Iterator[Rows]:
    """Rows in ascending order of a key, and those of equal keys in the order in which they came.

    Args:
        pieces: structured arrays of one type. Each is sorted by itself, so they should have some `ROWS` rows.
        key: the field to sort by.

    Yields:
        Pieces of about `ROWS` rows. Only rows with equal keys go on in the next one.
    """
    runs, samples = [], []
    for piece in pieces:
        run = piece[np.argsort(piece[key], kind="stable")]
        samples.append(run[key][::APART].copy())
        runs.append(stored(run))
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
        elif len(rows := np.concatenate(parts)):
            yield rows[np.argsort(rows[key], kind="stable")]
        let_go()


def _bounds(keys: npt.NDArray[Any], cuts: npt.NDArray[Any], many: npt.NDArray[Any]) -> list[int]:
    """Where the parts of a sorted piece begin and end."""
    keys = np.ascontiguousarray(keys)
    at = np.concatenate([np.searchsorted(keys, cuts), np.searchsorted(keys, many, "right")])
    let_go()
    return [0, *np.sort(at).tolist(), len(keys)]
