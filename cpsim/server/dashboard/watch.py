"""Command rates and apply delays, measured while a page is open.

Without an open page, the cost is one check for each batch of commands.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from cpdaemon.commands import KINDS
from cpsim.clock import SYSTEM_CLOCK
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cpsim.clock import Clock
    from cpsim.server.service import AccountServer, Call

LOOK_S: Final = 10.0
"""How long one request keeps the watch on."""
SAMPLE_S: Final = 0.01
"""The interval of reading the daemons' progress: shorter delays are not measured."""
MINUTE_S: Final = 60
RECENT_S: Final = 5
"""Seconds over which a rate is averaged."""
MARKS_KEPT: Final = 6_000


class WatchedDaemon(Protocol):
    """A daemon to watch."""

    project_id: str
    addresses: dict[str, str]

    @property
    def progress(self) -> tuple[int, int]:
        """The number of commands acknowledged, and of commands delivered."""


class DeliveryState(NamedTuple):
    """A daemon's pending commands and its apply delay.

    `delay_s` is the median of the last minute and `longest_s` the longest; None without a measurement. `oldest_s` is
    how long the first pending command has waited.
    """

    project: str
    addresses: Sequence[str]
    pending: int
    delay_s: float | None
    longest_s: float | None
    oldest_s: float | None


class _Marks:
    """Times at which a daemon had acknowledged a number of commands, and their apply delays."""

    def __init__(self, taken: int) -> None:
        self.last = taken
        self.open: deque[tuple[int, float]] = deque()
        self.delays: deque[tuple[float, float]] = deque(maxlen=MARKS_KEPT)

    def note(self, taken: int, delivered: int, now_s: float) -> None:
        """Record a daemon's progress."""
        if taken > self.last and len(self.open) < MARKS_KEPT:
            self.last = taken
            self.open.append((taken, now_s))
        while self.open and self.open[0][0] <= delivered:
            self.delays.append((now_s, now_s - self.open.popleft()[1]))
        while self.delays and self.delays[0][0] < now_s - MINUTE_S:
            self.delays.popleft()


class Watch:
    """Counts applied commands and watches the daemons, while a page is open.

    Args:
        accounts: where commands are applied.
        daemons: the current daemons.
        clock: its monotonic time is that of rates and delays.
    """

    def __init__(
        self,
        accounts: AccountServer,
        daemons: Callable[[], Sequence[WatchedDaemon]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._accounts = accounts
        self._daemons = daemons
        self._now_s = clock.monotonic
        self._until_s = 0.0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: Thread | None = None
        self._begin()

    def look(self) -> None:
        """Start the watch, or extend it by `LOOK_S`."""
        with self._lock:
            self._until_s = self._now_s() + LOOK_S
            if self._thread is None and not self._ending.is_set():
                self._begin()
                self._accounts.on_applied = self._applied
                self._thread = Thread(self._run, "cpsim-watch")
                self._thread.start()

    def forget(self, daemon: WatchedDaemon) -> None:
        """Forget a daemon's apply delays, and what it has acknowledged."""
        with self._lock:
            self._marks.pop(daemon, None)

    def close(self) -> None:
        """Stop the watch."""
        self._ending.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def check(self) -> None:
        """Raise ThreadFailed if the watch has ended by an unexpected error."""
        thread = self._thread
        if thread is not None:
            thread.check()

    @property
    def seconds(self) -> list[Mapping[str, int]]:
        """Commands of each kind in each of the last seconds, up to a minute."""
        with self._lock:
            return list(self._seconds)

    @property
    def rates(self) -> dict[str, float] | None:
        """Recent commands/s of each kind; None until a second has been counted."""
        seconds = self.seconds[-RECENT_S:]
        return {kind: sum(each[kind] for each in seconds) / len(seconds) for kind in KINDS} if seconds else None

    def deliveries(self, most: int) -> list[DeliveryState]:
        """The delivery states of the first `most` daemons."""
        now_s = self._now_s()
        found = []
        for daemon in islice(self._daemons(), most):
            taken, delivered = daemon.progress
            with self._lock:
                marks = self._marks.get(daemon) or _Marks(taken)
                delays = sorted(delay_s for _, delay_s in marks.delays)
                oldest_s = now_s - marks.open[0][1] if marks.open else None
            found.append(
                DeliveryState(
                    daemon.project_id,
                    [f"{kind} {address}" for kind, address in daemon.addresses.items()],
                    max(0, taken - delivered),
                    delays[len(delays) // 2] if delays else None,
                    delays[-1] if delays else None,
                    oldest_s,
                )
            )
        return found

    def _begin(self) -> None:
        self._counts = dict.fromkeys(KINDS, 0)
        self._before = dict(self._counts)
        self._second_s = self._now_s()
        self._seconds: deque[Mapping[str, int]] = deque(maxlen=MINUTE_S)
        self._marks: WeakKeyDictionary[Any, _Marks] = WeakKeyDictionary()

    def _applied(self, calls: Sequence[Call]) -> None:
        """Count commands; one caller at a time."""
        counts = self._counts
        for call in calls:
            counts[call[0]] += 1

    def _run(self) -> None:
        while True:
            now_s = self._now_s()
            with self._lock:
                if now_s > self._until_s or self._ending.is_set():
                    self._accounts.on_applied = None
                    self._thread = None
                    return
                self._sample(now_s)
            self._ending.wait(SAMPLE_S)

    def _sample(self, now_s: float) -> None:
        for daemon in self._daemons():
            taken, delivered = daemon.progress
            self._marks.setdefault(daemon, _Marks(taken)).note(taken, delivered, now_s)
        if now_s - self._second_s >= 1:
            counts = dict(self._counts)
            share = now_s - self._second_s
            self._seconds.append({kind: round((counts[kind] - self._before[kind]) / share) for kind in KINDS})
            self._before = counts
            self._second_s = now_s
