"""Random numbers: one stream per purpose, all from one seed.

A purpose's stream depends on the seed and the purpose's name alone, so a new purpose never shifts another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def uniforms(seed: int, purpose: str, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers, uniform in the open interval (0, 1), 52 bits each.

    Made from PCG64's raw words, whose sequence numpy guarantees never to change; it guarantees nothing of the
    kind for the distributions of `numpy.random.Generator`.
    """
    words = np.frombuffer(hashlib.sha256(purpose.encode()).digest(), dtype="<u4")
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=tuple(words.tolist())))
    words_52 = (stream.random_raw(count) >> np.uint64(12)).astype(np.float64)
    return (words_52 + 0.5) * 2.0**-52


@dataclass(frozen=True, slots=True)
class Draw:
    """The uniform numbers of a workload's jobs, one stream per purpose."""

    seed: int
    jobs: int

    def __call__(self, purpose: str, count: int | None = None) -> npt.NDArray[np.float64]:
        """One number per job for a purpose, or so many."""
        return uniforms(self.seed, purpose, self.jobs if count is None else count)

    def rows(self, purpose: str, rows: int) -> npt.NDArray[np.float64]:
        """So many numbers per job, shape (rows, jobs); those of one job follow one another in the stream."""
        return self(purpose, rows * self.jobs).reshape(-1, rows).T
