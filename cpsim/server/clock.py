"""The server's clock: it follows real time, or is frozen, jumps ahead, or runs at a multiple of real time."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cpsim.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

LATEST_US: Final = 2**53 - 1
"""The latest time, in the year 2255: every JSON reader holds it exactly. The clock stops there."""


class ServerClock:
    """A clock in microseconds since 1970 that never goes back but by `reset`; safe to use from several threads.

    Args:
        real_us: real time, which the clock follows until it is changed.
    """

    def __init__(self, real_us: Callable[[], int] = SYSTEM_CLOCK.now_us) -> None:
        self._real_us = real_us
        self._lock = threading.Lock()
        self.before_jump: Callable[[int], object] | None = None
        """Called with the new time before a jump; an exception prevents the jump."""
        self.reset()

    def reset(self) -> None:
        """Follow real time again, even if that is earlier: for when nothing remembers this clock's time."""
        with self._lock:
            self._rate = 1.0
            self._since_us = self._start_us = 0  # a moment of real time, and this clock's time then
            self._latest_us = 0

    @property
    def latest_us(self) -> int:
        """The latest time read; 0 before the first reading."""
        return self._latest_us

    @property
    def told_us(self) -> int:
        """The earlier name of `latest_us`."""
        return self._latest_us

    @property
    def rate(self) -> float:
        """The rate as a multiple of real time; 0 while the clock is frozen."""
        return self._rate

    def now_us(self) -> int:
        """The current time."""
        with self._lock:
            self._latest_us = latest_us = self._at(self._real_us())
            return latest_us

    def freeze(self) -> None:
        """Stop the clock until `run`; it can still be advanced and set."""
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
            ValueError: the step is negative, or goes beyond `LATEST_US`.
        """
        step_us = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds) // timedelta(microseconds=1)
        self.set(self.now_us() + step_us)

    def set(self, now_us: int) -> None:
        """Jump to a time.

        Raises:
            ValueError: the time is before the latest reading, or after `LATEST_US`.
        """
        with self._lock:
            self._check(now_us)
        if self.before_jump is not None:
            self.before_jump(now_us)
        with self._lock:
            self._since_us, self._start_us = self._real_us(), max(now_us, self._latest_us)
            self._latest_us = self._start_us

    def resume(self, latest_us: int) -> None:
        """Continue from the latest time of an earlier run, unless it is later by now."""
        with self._lock:
            real_us = self._real_us()
            if latest_us > self._at(real_us):
                self._since_us, self._start_us = real_us, latest_us
            self._latest_us = max(self._latest_us, latest_us)

    def _check(self, now_us: int) -> None:
        if now_us < self._latest_us:
            raise ValueError(f"the clock cannot go back from {self._latest_us} to {now_us} microseconds since 1970")
        if now_us > LATEST_US:
            raise ValueError(f"the clock ends at {LATEST_US} microseconds since 1970, before {now_us}")

    def _at(self, real_us: int) -> int:
        passed_us = real_us - self._since_us
        now_us = self._start_us + (passed_us if self._rate == 1 else int(passed_us * self._rate))
        return self._latest_us if now_us < self._latest_us else min(now_us, LATEST_US)
