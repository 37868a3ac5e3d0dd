"""Time as a parameter: what waits or looks at the time is given a clock.

`SystemClock` keeps the machine's functions in a class, not in a module, so that a test that freezes time for its own
code with freezegun does not freeze it here.
"""

from __future__ import annotations

import datetime as dt
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
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


class SteadyClock(SystemClock):
    """The machine's clock, whose wall time is read once and then advances with monotonic time.

    Neither an administrator who sets the machine's clock changes it nor a test that travels in time with time-machine,
    which replaces the machine's functions of wall time themselves.
    """

    def __init__(self) -> None:
        self._offset_ns = self._time_ns() - self.monotonic_ns()

    def now_us(self) -> int:
        """Wall time: microseconds since 1970, UTC; it never goes back."""
        return (self.monotonic_ns() + self._offset_ns) // 1000


SYSTEM_CLOCK: Final[Clock] = SystemClock()
STEADY_CLOCK: Final[Clock] = SteadyClock()
"""The clock of a fake in the process of somebody's test, which may freeze the other; read when this is imported."""


_DATES: Final = (dt.date, dt.datetime)


@contextmanager
def real_dates() -> Iterator[None]:
    """While it lasts, the module `datetime` has its own classes, whatever a test that freezes time has put there.

    Libraries that are imported meanwhile would keep the test's: pyarrow takes the size of `date` from its class.
    """
    frozen = dt.date, dt.datetime
    dt.date, dt.datetime = _DATES  # type: ignore[misc]
    try:
        yield
    finally:
        dt.date, dt.datetime = frozen  # type: ignore[misc]
