"""Texts as numbers in the order in which they first appear, however many texts there are."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cpsim.system.external_sort import in_order
from cpsim.system.growing import Growing, made
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from cpsim.scenario.workload import Int32, Int64

_PLACE = np.dtype([("hash", np.int64), ("at", np.int64), ("first", np.int64)])


class Appearances:
    """Numbers texts; two with the same hash of 64 bits count as one, so that none has to be kept."""

    def __init__(self) -> None:
        self._hashes = Growing()

    def add(self, text: str) -> None:
        """Add a text."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little", signed=True))

    def numbers(self) -> tuple[Int32, Int64]:
        """The number of each text that was added, and of each number at which place its text was added first."""
        hashes = self._hashes.array()
        first, firsts = Growing(), Growing()
        for piece in in_order(_with_first(in_order(_places(hashes), "hash")), "at"):
            first.add(piece["first"])
            firsts.add(piece["at"][piece["at"] == piece["first"]])
        of_each, distinct = first.array(), firsts.array()
        return made(len(hashes), np.int32, lambda where: np.searchsorted(distinct, of_each[where])), distinct


def _places(hashes: Int64) -> Iterator[npt.NDArray[Any]]:
    for where in stretches(len(hashes)):
        piece = np.zeros(where.stop - where.start, _PLACE)
        piece["hash"], piece["at"] = hashes[where], np.arange(where.start, where.stop)
        yield piece


def _with_first(pieces: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Places in the order of their hashes, with the first place of each hash."""
    last = np.zeros(0, _PLACE)
    for piece in pieces:
        begins = np.flatnonzero(np.append(True, piece["hash"][1:] != piece["hash"][:-1]))
        lengths = np.diff(np.append(begins, len(piece)))
        piece["first"] = np.repeat(piece["at"][begins], lengths)
        if len(last) and last["hash"][0] == piece["hash"][0]:
            piece["first"][: lengths[0]] = last["first"][0]
        last = piece[-1:].copy()
        yield piece
