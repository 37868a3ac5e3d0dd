"""The replay engine: operations x schedule x endpoint -> journal.

One thread, one poll loop. Operations are sent in order as they fall due, `in_flight` at a time. Two operations of one
slot are never in flight together: the later one waits for the answer of the earlier one, and only then is sent.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.errors import NotSent
from cpsim.replay.journal import Journal, Outcome
from cpsim.replay.wire import BacklogFull, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    from numpy import int32, int64

TICK_NS: Final = 50_000_000
"""How often deadlines, progress and the wish to stop are looked at."""
RETRY_NS: Final = 1_000_000
SPIN_NS: Final = 2_000_000
"""The poll's time-out counts whole milliseconds: what is due sooner than this is waited for in a busy loop."""


class Operation(NamedTuple):
    """One operation ready to go. `due_ns` counts from the start of the replay."""

    op: int
    slot: int
    due_ns: int
    payload: bytes


class Progress(NamedTuple):
    """How far a replay is."""

    elapsed_s: float
    accepted: int
    refused: int
    unknown: int


def operations(
    slots: npt.NDArray[int32], schedule_us: npt.NDArray[int64] | None, payloads: Iterable[list[bytes]]
) -> Iterator[Operation]:
    """The operations of a workload in order, from its slot column, its schedule and its rendered chunks."""

    def chunks() -> Iterator[Iterator[Operation]]:
        start = 0
        for chunk in payloads:
            stop = start + len(chunk)
            due_ns = [0] * len(chunk) if schedule_us is None else (schedule_us[start:stop] * 1000).tolist()
            yield map(Operation, range(start, stop), slots[start:stop].tolist(), due_ns, chunk)
            start = stop

    return chain.from_iterable(chunks())


class Engine:
    """Replays operations over a wire.

    Args:
        wire: how an operation is sent and its answer read.
        journal: takes one record per operation sent.
        in_flight: how many operations may be under way at once.
        timeout_s: after which an operation without an answer is given up as unknown.
        on_progress: called about twenty times a second.
    """

    def __init__(
        self,
        wire: Wire,
        journal: Journal,
        *,
        in_flight: int,
        timeout_s: float,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._wire = wire
        self._journal = journal
        self._in_flight = in_flight
        self._timeout_ns = int(timeout_s * 1e9)
        self._on_progress = on_progress
        self._flying: dict[int, tuple[Operation, int]] = {}
        self._busy: dict[int, deque[Operation] | None] = {}
        self._ready: deque[Operation] = deque()
        self._retries: deque[tuple[int, int, Operation]] = deque()
        self._next: Operation | None = None
        self._stopping = False
        self.start_ns = 0
        """When the replay began, on the performance counter: the zero of the journal's times."""

    def stop(self) -> None:
        """Send nothing more; what is in flight is recorded as unknown. Safe to call from a signal handler."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def run(self, upcoming: Iterator[Operation]) -> float:
        """Replay the operations to the end, or until `stop`; returns the seconds it took."""
        self._upcoming = upcoming
        self._next = next(upcoming, None)
        self.start_ns = time.perf_counter_ns()
        tick_ns = TICK_NS
        now_ns = 0
        while not self._stopping:
            self._launch(now_ns)
            if not self._flying and not self._retries and self._next is None:
                break
            for fd in self._wire.poll(self._patience_s(now_ns)):
                self._land(fd)
            now_ns = time.perf_counter_ns() - self.start_ns
            if now_ns >= tick_ns:
                tick_ns = now_ns + TICK_NS
                self._give_up(now_ns - self._timeout_ns, "no answer in time")
                self._on_progress(Progress(now_ns / 1e9, *self._journal.counts))
        elapsed_ns = time.perf_counter_ns() - self.start_ns
        self._give_up(elapsed_ns, "interrupted")
        self._on_progress(Progress(elapsed_ns / 1e9, *self._journal.counts))
        return elapsed_ns / 1e9

    def _launch(self, now_ns: int) -> None:
        """Send what is due, as far as `in_flight` allows."""
        busy, ready, retries = self._busy, self._ready, self._retries
        while retries and retries[0][0] <= now_ns:
            _, since_ns, operation = retries.popleft()
            self._send(operation, since_ns)
        for _ in range(self._in_flight - len(self._flying) - len(retries)):
            if ready:
                self._send(ready.popleft())
                continue
            upcoming = self._next
            if upcoming is None or upcoming.due_ns > now_ns:
                return
            self._next = next(self._upcoming, None)
            if upcoming.slot in busy:
                waiting = busy[upcoming.slot]
                if waiting is None:
                    waiting = busy[upcoming.slot] = deque()
                waiting.append(upcoming)
            else:
                busy[upcoming.slot] = None
                self._send(upcoming)

    def _send(self, operation: Operation, since_ns: int | None = None) -> None:
        sent_ns = time.perf_counter_ns() - self.start_ns if since_ns is None else since_ns
        try:
            fd = self._wire.send(operation.payload)
        except BacklogFull as full:
            now_ns = time.perf_counter_ns() - self.start_ns
            if now_ns - sent_ns > self._timeout_ns:
                self._record(operation, Outcome.REFUSED, str(full), sent_ns)
            else:
                self._retries.append((now_ns + RETRY_NS, sent_ns, operation))
        except NotSent as error:
            self._record(operation, Outcome.REFUSED, str(error), sent_ns)
        else:
            self._flying[fd] = (operation, sent_ns)

    def _land(self, fd: int) -> None:
        if fd not in self._flying:
            self._wire.abandon(fd)
            return
        answer = self._wire.receive(fd)
        if answer is not None:
            operation, sent_ns = self._flying.pop(fd)
            self._record(operation, *answer, sent_ns)

    def _record(self, operation: Operation, outcome: Outcome, error: str, sent_ns: int) -> None:
        self._journal.record(operation.op, outcome, error, sent_ns, time.perf_counter_ns() - self.start_ns)
        waiting = self._busy[operation.slot]
        if waiting:
            self._ready.append(waiting.popleft())
        else:
            del self._busy[operation.slot]

    def _give_up(self, sent_before_ns: int, error: str) -> None:
        late = [(fd, flight) for fd, flight in self._flying.items() if flight[1] <= sent_before_ns]
        for fd, (operation, sent_ns) in late:
            del self._flying[fd]
            self._wire.abandon(fd)
            self._record(operation, Outcome.UNKNOWN, error, sent_ns)

    def _patience_s(self, now_ns: int) -> float:
        """How long the poll may sleep: until the next operation is due, or the next tick."""
        wait_ns = TICK_NS
        if self._retries:
            wait_ns = RETRY_NS
        if len(self._flying) + len(self._retries) < self._in_flight:
            if self._ready:
                return 0.0
            if self._next is not None:
                until_due_ns = self._next.due_ns - now_ns
                wait_ns = min(wait_ns, until_due_ns - SPIN_NS if until_due_ns > SPIN_NS else 0)
        return wait_ns / 1e9
