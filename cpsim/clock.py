"""Time as a parameter: what waits or looks at the time is given a clock.

`SystemClock` keeps the machine's functions in a class, not in a module, so that a test that freezes time for its own
code with freezegun does not freeze it here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from threading import Condition


class Clock(Protocol):
    """Wall time, monotonic time, and waiting."""

    def now_us(self) -> int:
        """Wall time: microseconds since 1970, UTC; it may be set back."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; they never go back."""

    def monotonic_ns(self) -> int:
        """`monotonic` in whole nanoseconds."""

    def sleep(self, duration_s: float) -> None:
        """Return after a duration."""

    def wait(self, condition: Condition, timeout_s: float | None) -> bool:
        """Wait for a condition, whose lock is held, to be notified; return False after the timeout, in seconds."""


class SystemClock:
    """The machine's clock."""

    _time_ns = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)
    monotonic_ns = staticmethod(time.monotonic_ns)
    sleep = staticmethod(time.sleep)

    def now_us(self) -> int:
        """Wall time: microseconds since 1970, UTC."""
        return self._time_ns() // 1000

    def wait(self, condition: Condition, timeout_s: float | None) -> bool:
        """Wait for a condition, whose lock is held, to be notified; return False after the timeout, in seconds."""
        return condition.wait(timeout_s)


SYSTEM_CLOCK: Final[Clock] = SystemClock()
