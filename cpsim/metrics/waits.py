"""Callers' waits for their answers, at both tiers."""

from __future__ import annotations

import threading
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Final, NamedTuple

from cpsim.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Hashable

    from cpsim.clock import Clock

LONGEST_KEPT: Final = 100


class Wait(NamedTuple):
    """A caller's wait: its seconds, the request, and whether it is over."""

    wait_s: float
    what: str
    is_over: bool


class Waits:
    """Records the longest waits, and those that are not over; thread-safe.

    Args:
        clock: its monotonic time measures the waits.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.now_s = clock.monotonic
        """Returns the time, in seconds."""
        self._waiting: dict[Hashable, tuple[float, str]] = {}
        self._longest: list[Wait] = []
        self._lock = threading.Lock()

    def begin(self, caller: Hashable, what: str, since_s: float) -> None:
        """Begin a caller's wait; if it waits already, update its request."""
        with self._lock:
            self._waiting[caller] = (self._waiting[caller][0] if caller in self._waiting else since_s), what

    def end(self, caller: Hashable) -> bool:
        """End a caller's wait; return whether there was one."""
        with self._lock:
            since_s, what = self._waiting.pop(caller, (None, ""))
        if since_s is None:
            return False
        self.add(what, since_s)
        return True

    def add(self, what: str, since_s: float) -> None:
        """Record a wait that ends now."""
        with self._lock:
            wait = Wait(self.now_s() - since_s, what, is_over=True)
            if len(self._longest) < LONGEST_KEPT:
                heappush(self._longest, wait)
            else:
                heappushpop(self._longest, wait)

    def clear(self) -> None:
        """Forget all waits, also those that are not over."""
        with self._lock:
            self._waiting.clear()
            self._longest.clear()

    def longest(self) -> list[Wait]:
        """Return up to `LONGEST_KEPT` finished waits and all unfinished ones, the longest first."""
        with self._lock:
            now_s = self.now_s()
            waiting = [Wait(now_s - since_s, what, is_over=False) for since_s, what in self._waiting.values()]
            return sorted([*self._longest, *waiting], reverse=True)
