"""Rates, refusals, the queue and apply delays of the last fifteen minutes, read once a second.

A command costs nothing for this: what is read is counted anyway, by the accounts and by the daemons.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from cpdaemon.commands import KINDS
from cpsim.clock import SYSTEM_CLOCK
from cpsim.metrics.apply_delays import Delays
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.clock import Clock
    from cpsim.metrics.apply_delays import ApplyDelays
    from cpsim.server.service import AccountServer

SAMPLE_S: Final = 1.0
SAMPLES_KEPT: Final = 900
STEP_S: Final = 5
"""Seconds of an interval of the charts."""
RECENT: Final = 5
"""Samples over which a rate is averaged."""
DELAYS_KEPT: Final = 60
"""Samples of a daemon's apply delays."""
OUTCOMES: Final = ("accepted", "refused")


class WatchedDaemon(Protocol):
    """A daemon to watch."""

    project_id: str
    addresses: dict[str, str]
    delays: ApplyDelays

    @property
    def pending(self) -> int:
        """The number of commands acknowledged and not delivered."""


class DeliveryState(NamedTuple):
    """A daemon's pending commands and its apply delay.

    `delay_s` is the mean of the last minute and `longest_s` the longest; None without a delay. `oldest_s` is how long
    the first pending command has waited; 0 without one.
    """

    project: str
    addresses: Sequence[str]
    pending: int
    delay_s: float | None
    longest_s: float | None
    oldest_s: float


class Sample(NamedTuple):
    """What happened since the sample before.

    Attributes:
        middle_s: the middle of this time, in seconds since 1970.
        duration_s: its length.
        commands: applied commands by kind, refused ones included.
        refused: refused ones.
        pending: commands that waited in daemons at its end.
        delays: of the commands that daemons delivered.
    """

    middle_s: float
    duration_s: float
    commands: tuple[int, ...]
    refused: int
    pending: int
    delays: Delays


class Interval(NamedTuple):
    """Some seconds of the past.

    Attributes:
        begin_s: when it began, in seconds since 1970.
        rates: applied commands of each kind a second, refused ones included.
        refused: refused commands a second.
        pending: the most commands that waited in daemons.
        delays: of the commands that daemons delivered.
    """

    begin_s: int
    rates: tuple[float, ...]
    refused: float
    pending: int
    delays: Delays


class Watch:
    """Reads, once a second, what accounts and daemons count; keeps fifteen minutes of it.

    Args:
        accounts: where commands are applied.
        daemons: the current daemons.
        clock: its monotonic time is that of rates, and it is waited by.
    """

    def __init__(
        self,
        accounts: AccountServer,
        daemons: Callable[[], Sequence[WatchedDaemon]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._accounts = accounts
        self._daemons = daemons
        self._clock = clock
        self._now_s = clock.monotonic
        self._offset_s = clock.now_us() / 1e6 - clock.monotonic()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self._delays: WeakKeyDictionary[Any, deque[Delays]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._ending = threading.Condition()
        self._has_ended = False
        self._thread: Thread | None = None
        self._last_s = self._now_s()
        self._last = self._counts()

    def start(self) -> None:
        """Begin to read."""
        self._last_s, self._last = self._now_s(), self._counts()
        self._thread = Thread(self._run, "cpsim-watch")
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        with self._ending:
            self._has_ended = True
            self._ending.notify_all()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise ThreadFailed if the watch has ended by an unexpected error."""
        if self._thread is not None:
            self._thread.check()

    def sample(self) -> None:
        """Read what has happened since the last sample."""
        with self._lock:
            now_s = self._now_s()
            duration_s = now_s - self._last_s
            if duration_s <= 0:
                return
            counts = self._counts()
            commands, refused = counts
            before, refused_before = self._last
            pending, of_all = 0, Delays()
            for daemon in self._daemons():
                daemon.delays.note()  # or what has just left would be missing
                delays = daemon.delays.take()
                self._delays.setdefault(daemon, deque(maxlen=DELAYS_KEPT)).append(delays)
                pending += daemon.pending
                of_all += delays
            middle_s = self._offset_s + now_s - duration_s / 2
            since = tuple(now - then for now, then in zip(commands, before, strict=True))
            self._samples.append(Sample(middle_s, duration_s, since, refused - refused_before, pending, of_all))
            self._last_s, self._last = now_s, counts

    @property
    def rates(self) -> dict[str, float] | None:
        """Recent commands/s of each kind; None until a second has been counted."""
        with self._lock:
            recent = list(islice(reversed(self._samples), RECENT))
        return dict(zip(KINDS, _rates(recent), strict=True)) if recent else None

    def intervals(self) -> list[Interval | None]:
        """The whole intervals of the last fifteen minutes, the first one first; None for one without a sample."""
        with self._lock:
            samples = list(self._samples)
        if not samples:
            return []
        steps = {step: list(group) for step, group in groupby(samples, lambda each: int(each.middle_s // STEP_S))}
        end = int((samples[-1].middle_s + samples[-1].duration_s / 2) // STEP_S)
        return [_interval(step, steps[step]) if step in steps else None for step in range(min(steps), end)]

    def deliveries(self, most: int) -> list[DeliveryState]:
        """The delivery states of the first `most` daemons."""
        found = []
        for daemon in islice(self._daemons(), most):
            with self._lock:
                delays = sum(self._delays.get(daemon, ()), Delays())
            found.append(
                DeliveryState(
                    daemon.project_id,
                    [f"{kind} {address}" for kind, address in daemon.addresses.items()],
                    daemon.pending,
                    delays.mean_s,
                    delays.longest_s if delays.count else None,
                    daemon.delays.oldest_s(),
                )
            )
        return found

    def _counts(self) -> tuple[tuple[int, ...], int]:
        """The commands by kind, and the refused ones, since the server began."""
        by_kind, by_outcome = dict.fromkeys(KINDS, 0), dict.fromkeys(OUTCOMES, 0)
        for (_, kind, outcome), count in list(self._accounts.counts.items()):
            by_kind[kind] = by_kind.get(kind, 0) + count
            by_outcome[outcome] += count
        return tuple(by_kind[kind] for kind in KINDS), by_outcome["refused"]

    def _run(self) -> None:
        while True:
            with self._ending:
                if not self._has_ended:
                    self._clock.wait(self._ending, SAMPLE_S)
                if self._has_ended:
                    return
            self.sample()


def _rates(samples: Sequence[Sample]) -> tuple[float, ...]:
    duration_s = sum(each.duration_s for each in samples)
    return tuple(sum(counts) / duration_s for counts in zip(*(each.commands for each in samples), strict=True))


def _interval(step: int, samples: Sequence[Sample]) -> Interval:
    return Interval(
        step * STEP_S,
        _rates(samples),
        sum(each.refused for each in samples) / sum(each.duration_s for each in samples),
        max(each.pending for each in samples),
        sum((each.delays for each in samples), Delays()),
    )
