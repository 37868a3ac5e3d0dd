"""A clock that stands still until it is advanced, for tests and simulations."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING

from cpsim.system.checks import check

if TYPE_CHECKING:
    from threading import Condition


class ManualClock:
    """A clock that only `advance` and `sleep` move; safe to use from several threads.

    Args:
        now_us: its wall time at the start, microseconds since 1970.
    """

    def __init__(self, now_us: int = 1_000_000_000_000_000) -> None:
        check("now_us", now_us, int, "microseconds since 1970")
        self._start_us = now_us
        self._passed_ns = 0
        self._lock = RLock()
        self._waiting: list[Condition] = []

    def now_us(self) -> int:
        """Wall time: microseconds since 1970, UTC."""
        return self._start_us + self._passed_ns // 1000

    def monotonic(self) -> float:
        """Seconds that have passed on this clock."""
        return self._passed_ns / 1e9

    def monotonic_ns(self) -> int:
        """Nanoseconds that have passed on this clock."""
        return self._passed_ns

    def advance(self, duration_s: float) -> None:
        """Move the clock, and wake whoever waits on it.

        Raises:
            ValueError: the duration is negative.
        """
        if duration_s < 0:
            raise ValueError(f"a clock cannot go back: {duration_s:g} seconds")
        with self._lock:
            self._passed_ns += round(duration_s * 1e9)
            waiting = self._waiting[:]
        for condition in waiting:
            with condition:
                condition.notify_all()

    def set_wall(self, now_us: int) -> None:
        """Set the wall time, as an administrator does: monotonic time does not change."""
        with self._lock:
            self._start_us = now_us - self._passed_ns // 1000

    def sleep(self, duration_s: float) -> None:
        """Move the clock by a duration: whoever sleeps lets time pass."""
        self.advance(duration_s)

    def wait(self, condition: Condition, timeout_s: float | None) -> bool:
        """Wait for a condition, whose lock is held, to be notified; return False if the clock passed the timeout."""
        deadline_ns = None if timeout_s is None else self._passed_ns + round(timeout_s * 1e9)
        with self._lock:
            self._waiting.append(condition)
        try:
            if deadline_ns is not None and self._passed_ns >= deadline_ns:
                return False
            condition.wait()
            return deadline_ns is None or self._passed_ns < deadline_ns
        finally:
            with self._lock:
                self._waiting.remove(condition)
