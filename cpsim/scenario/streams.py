"""Random numbers: one stream per purpose, all from one seed.

A stream depends on the seed and the purpose's name alone, so a new purpose never shifts another. A stream can be
entered anywhere, so that a part of a workload can be generated alone, and equals the same part of the whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

    Floats = npt.NDArray[np.float64]

BLOCK: Final = 1 << 20
"""Numbers processed at a time, to limit memory."""
BINS: Final = 1 << 16


def uniforms(seed: int, purpose: str, count: int, skip: int = 0) -> Floats:
    """`count` numbers after the first `skip` of a stream, uniform in the open interval (0, 1), 52 bits each.

    Made from PCG64's raw words, whose sequence numpy guarantees never to change; it guarantees nothing of the
    kind for the distributions of `numpy.random.Generator`.
    """
    words = np.frombuffer(hashlib.sha256(purpose.encode()).digest(), dtype="<u4")
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=tuple(words.tolist())))
    stream.advance(skip)
    words_52 = (stream.random_raw(count) >> np.uint64(12)).astype(np.float64)
    return (words_52 + 0.5) * 2.0**-52


@dataclass(frozen=True, slots=True)
class Draw:
    """The uniform numbers of a workload's jobs, one stream per purpose.

    Attributes:
        seed: of all streams.
        jobs: number of jobs in this part.
        first: number of jobs before this part.
        total: number of jobs in the whole workload; None if this is the whole.
    """

    seed: int
    jobs: int
    first: int = 0
    total: int | None = None

    @property
    def whole(self) -> Draw:
        """The numbers of all jobs of the workload."""
        return Draw(self.seed, self.jobs if self.total is None else self.total)

    def __call__(self, purpose: str, count: int | None = None) -> Floats:
        """One number per job for a purpose; or so many, which are those of the whole."""
        return uniforms(self.seed, purpose, *((self.jobs, self.first) if count is None else (count, 0)))

    def rows(self, purpose: str, rows: int) -> Floats:
        """So many numbers per job, shape (rows, jobs); those of one job follow one another in the stream."""
        return uniforms(self.seed, purpose, rows * self.jobs, rows * self.first).reshape(-1, rows).T

    def in_order(self, purpose: str) -> Floats:
        """One number per job, in ascending order in the whole: of all its numbers, those of these ranks."""
        if self.total is None:
            return np.sort(self(purpose))
        before = _below(self.seed, purpose, self.total)
        last = self.first + self.jobs
        low = int(np.searchsorted(before, self.first, side="right")) - 1
        high = int(np.searchsorted(before, last, side="left"))
        near = [
            block[(block >= low / BINS) & (block < high / BINS)] for block in _blocks(self.seed, purpose, self.total)
        ]
        return np.sort(np.concatenate(near))[self.first - before[low] : last - before[low]]

    def chosen(self, purpose: str, share: float) -> tuple[int, int]:
        """How many jobs before these have a number below a share, and how many in the whole."""
        if self.total is None or not share:
            return 0, int(np.count_nonzero(self(purpose) < share)) if share else 0
        counts = [
            sum(int(np.count_nonzero(block < share)) for block in _blocks(self.seed, purpose, stop))
            for stop in (self.first, self.total)
        ]
        return counts[0], counts[1]


def _blocks(seed: int, purpose: str, count: int) -> Iterator[Floats]:
    for start in range(0, count, BLOCK):
        yield uniforms(seed, purpose, min(BLOCK, count - start), start)


@lru_cache(4)
def _below(seed: int, purpose: str, total: int) -> npt.NDArray[np.int64]:
    """How many of a stream's first numbers are below 0 / BINS, 1 / BINS, ... 1."""
    counts = np.zeros(BINS, dtype=np.int64)
    for block in _blocks(seed, purpose, total):
        counts += np.bincount((block * BINS).astype(np.int64), minlength=BINS)
    return np.append(0, np.cumsum(counts))
