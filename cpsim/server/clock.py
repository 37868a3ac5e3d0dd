"""The server's clock: real time, or time that stands still, jumps ahead, or runs at a multiple."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LATEST_US: Final = 2**53 - 1
"""The end of this clock's time, in the year 2255: every JSON reader carries it exactly. It stands still there."""


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Clock:
    """Tells the time in microseconds since 1970, and never one before what it has told already.

    It may be read and changed from several threads.

    Args:
        real_us: real time, which this one follows until it is changed.
    """

    def __init__(self, real_us: Callable[[], int] = wall_clock_us) -> None:
        self._real_us = real_us
        self._rate = 1.0
        self._since_us = self._start_us = 0  # a moment of real time, and what this clock told then
        self._told_us = 0
        self._lock = threading.Lock()
        self.before_jump: Callable[[int], object] | None = None
        """Called with the time to which the clock is about to jump; what it raises keeps the clock from it."""

    @property
    def told_us(self) -> int:
        """The latest time that was told; 0 if none was."""
        return self._told_us

    @property
    def rate(self) -> float:
        """How fast it runs, as a multiple of real time; 0 while it is frozen."""
        return self._rate

    def now_us(self) -> int:
        """The time."""
        with self._lock:
            self._told_us = told_us = self._at(self._real_us())
            return told_us

    def freeze(self) -> None:
        """Stand still, until told to run; it can still be advanced and set."""
        self.run(0)

    def run(self, rate: float = 1.0) -> None:
        """Run at a multiple of real time.

        Raises:
            ValueError: the multiple is negative.
        """
        if not rate >= 0:
            raise ValueError(f"the clock cannot run at {rate:g} times real time: 0 or more can be")
        with self._lock:
            real_us = self._real_us()
            self._since_us, self._start_us = real_us, self._at(real_us)
            self._rate = rate

    def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """Jump ahead.

        Raises:
            ValueError: that is backwards, or beyond the end of time.
        """
        step_us = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds) // timedelta(microseconds=1)
        self.set(self.now_us() + step_us)

    def set(self, now_us: int) -> None:
        """Jump to a time.

        Raises:
            ValueError: it is before a time that was told already, or beyond the end of time.
        """
        with self._lock:
            self._check(now_us)
        if self.before_jump is not None:
            self.before_jump(now_us)
        with self._lock:
            self._since_us, self._start_us = self._real_us(), max(now_us, self._told_us)
            self._told_us = self._start_us

    def resume(self, told_us: int) -> None:
        """Go on from a time that was told in an earlier life, unless it is later by now."""
        with self._lock:
            real_us = self._real_us()
            if told_us > self._at(real_us):
                self._since_us, self._start_us = real_us, told_us
            self._told_us = max(self._told_us, told_us)

    def _check(self, now_us: int) -> None:
        if now_us < self._told_us:
            raise ValueError(f"the clock cannot go back from {self._told_us} to {now_us} microseconds since 1970")
        if now_us > LATEST_US:
            raise ValueError(f"the clock ends at {LATEST_US} microseconds since 1970, before {now_us}")

    def _at(self, real_us: int) -> int:
        passed_us = real_us - self._since_us
        now_us = self._start_us + (passed_us if self._rate == 1 else int(passed_us * self._rate))
        return self._told_us if now_us < self._told_us else min(now_us, LATEST_US)
