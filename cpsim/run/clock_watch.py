"""Readings of a server's clock before, during and after a run. The local clock is monotonic time, which nobody sets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cpsim.accounts.observer import CannotObserve
from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.evidence import Reading

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock

READINGS: Final = 9
"""Readings of the server's clock before and after a run: the quickest one is the most exact."""
READINGS_DURING_RUN: Final = 3
"""Readings at a time during a run, where each costs the sender some time."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""Pauses between readings during a run grow from the first to the longest."""


class ClockWatch:
    """Reads a server's clock before, during and after a run; a context manager around the run.

    Args:
        observer: of the server; None if there is none.
        clock: the local clock; its monotonic time is compared with the server's.
    """

    def __init__(self, observer: Observer | None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._observer = observer
        self._now_ns = clock.monotonic_ns
        self.seen: list[Reading] = []
        """The readings so far."""
        self._why_unknown = "there is no server with a clock and a ledger to read (--server)"
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(1, "cpsim-clock")
        self._watching: Future[None] | None = None

    def read(self, count: int = READINGS) -> None:
        """Read the clock `count` times, and keep the quickest reading.

        Raises:
            CannotObserve: the server does not show its clock.
        """
        assert self._observer is not None
        readings = []
        for _ in range(count):
            sent_ns = self._now_ns()
            shown_us, rate = self._observer.control.clock()
            readings.append(Reading(sent_ns, self._now_ns(), shown_us, rate))
        odd = [reading for reading in readings if reading.rate != 1.0]
        self.seen.append(min(odd or readings, key=lambda reading: reading.received_ns - reading.sent_ns))

    def found(self) -> dict[str, Any]:
        """All readings, with a last one made now, or why there are none: `readings` and `clock_unknown` of evidence."""
        if self.seen:
            try:
                self._end()
                self.read()
            except CannotObserve as error:
                self._why_unknown = str(error)
            else:
                return {"readings": tuple(self.seen)}
        return {"clock_unknown": self._why_unknown}

    def __enter__(self) -> Self:
        if self._observer is not None:
            try:
                self.read()
            except CannotObserve as error:
                self._why_unknown = str(error)
            else:
                self._watching = self._pool.submit(self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._pool.shutdown()

    def _end(self) -> None:
        """Stop the readings during the run, and raise their error."""
        self._ending.set()
        if self._watching is not None:
            self._watching.result()

    def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._ending.wait(pause_s):
            with suppress(CannotObserve):  # an outage may be on
                self.read(READINGS_DURING_RUN)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
