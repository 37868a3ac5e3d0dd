"""The apply delays of a daemon: how long commands wait in it until the server has them."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpsim.metrics.duration_buckets import DurationBuckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Delays:
    """A number of apply delays: their sum and the longest, in seconds."""

    count: int = 0
    sum_s: float = 0.0
    longest_s: float = 0.0

    def __add__(self, other: Delays) -> Delays:
        return Delays(self.count + other.count, self.sum_s + other.sum_s, max(self.longest_s, other.longest_s))

    @property
    def mean_s(self) -> float | None:
        """Their mean; None if there are none."""
        return self.sum_s / self.count if self.count else None


class ApplyDelays:
    """Measures apply delays from a daemon's progress; thread-safe.

    The cost is that of a note each time that commands come or are delivered together, and not of each command.

    Args:
        progress: returns the number of commands that have come, and of those that have left, counted from one number.
        now_s: monotonic time, in seconds.

    Attributes:
        buckets: a histogram of the delays.
    """

    def __init__(self, progress: Callable[[], tuple[int, int]], now_s: Callable[[], float]) -> None:
        self.buckets = DurationBuckets()
        self._progress = progress
        self._now_s = now_s
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, float]] = deque()
        self._recent = Delays()
        self.restart()

    def restart(self) -> None:
        """Begin to measure: commands that wait already have no delay."""
        with self._lock:
            self._waiting.clear()
            self._come, _ = self._progress()
            self._left = self._come
            self._is_paused = False

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Forget, after the context, the commands that wait; what leaves in it has no delay."""
        self._is_paused = True
        try:
            yield
        finally:
            self.restart()

    def note(self) -> None:
        """Note the progress until now."""
        with self._lock:
            come, left = self._progress()
            if self._is_paused or (come <= self._come and left <= self._left):
                return
            now_s = self._now_s()
            if come > self._come:
                self._come = come
                self._waiting.append((come, now_s))
            before, sum_s, longest_s = self._left, 0.0, 0.0
            while self._waiting and left > self._left:
                last, since_s = self._waiting[0]
                upto = min(last, left)
                count, delay_s = upto - self._left, now_s - since_s
                self.buckets.observe(delay_s, count)
                sum_s, longest_s = sum_s + delay_s * count, max(longest_s, delay_s)
                self._left = upto
                if upto == last:
                    self._waiting.popleft()
            if self._left > before:
                self._recent += Delays(self._left - before, sum_s, longest_s)

    def take(self) -> Delays:
        """Return the delays that were measured since this was called last."""
        with self._lock:
            taken, self._recent = self._recent, Delays()
        return taken

    def oldest_s(self) -> float:
        """Return how long the first command that waits has waited, in seconds; 0 if none waits."""
        with self._lock:
            return self._now_s() - self._waiting[0][1] if self._waiting else 0.0
