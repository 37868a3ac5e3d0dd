"""The replay engine: operations x schedule x endpoint -> journal.

One thread, one poll loop. Operations are sent in order when they are due, at most `in_flight` at a time. Two operations
of one slot are never in flight together: the later one waits for the answer to the earlier one.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.errors import NotSent
from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.journal import Journal, OperationOutcome
from cpsim.metrics.progress import Progress
from cpsim.replay.failures import DROPPED, OURS, kind_of
from cpsim.replay.wires.wire import BacklogFull, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    from numpy import int32, int64

    from cpsim.clock import Clock

TICK_NS: Final = 50_000_000
"""Interval at which the engine checks deadlines and `stop`, and reports progress."""
RETRY_NS: Final = 1_000_000
SPIN_NS: Final = 100_000
"""Typical delay of a poll's wake-up: the engine waits for sooner operations in a busy loop."""
LEAST_SHARE: Final = 0.001
"""Retries per operation up to which they did not limit the rate."""
BUSY: Final = 0.9
"""Busy share of time above which the sender limits the rate."""


Operation = tuple[int, int, int, bytes]
"""A rendered operation: number, slot, due time in nanoseconds from the start, bytes."""


class Effort(NamedTuple):
    """The cost of a replay to the sender.

    `busy` is the share of time in which the sender waited neither for the target nor for due times; near 1, the sender
    limits the rate. `retried` counts retries by reason.
    """

    busy: float
    retried: dict[str, int]

    def limit(self, operations: int) -> str:
        """What limited the rate of a replay of `operations` operations: ports, files, generator, backlog or target."""
        retried: Counter[str] = Counter()
        for error, times in self.retried.items():
            retried[kind_of(error)] += times
        ours = {kind: retried[kind] for kind in OURS & retried.keys() if retried[kind] > LEAST_SHARE * operations}
        if ours:
            return max(ours, key=ours.__getitem__)
        if retried["backlog"] > operations or retried["dropped"] > LEAST_SHARE * operations:
            return "backlog"
        return "generator" if self.busy > BUSY else "target"


def joint_effort(efforts: Iterable[Effort]) -> Effort:
    """The cost of a replay by several senders: the highest busy share, and the retries of all."""
    busy, retried = 0.0, Counter[str]()
    for effort in efforts:
        busy = max(busy, effort.busy)
        retried.update(effort.retried)
    return Effort(busy, dict(retried))


def operations(
    slots: npt.NDArray[int32],
    schedule_us: npt.NDArray[int64] | None,
    payloads: Iterable[list[bytes]],
    on_chunk: Callable[[int], object] = lambda _: None,
) -> Iterator[Operation]:
    """The operations of a workload in order, from its slot column, schedule and rendered chunks.

    Before those of a chunk come, `on_chunk` is called with the number of the first one after it.
    """

    def chunks() -> Iterator[Iterator[Operation]]:
        start = 0
        for chunk in payloads:
            stop = start + len(chunk)
            on_chunk(stop)
            due_ns = repeat(0) if schedule_us is None else (schedule_us[start:stop] * 1000).tolist()
            yield zip(range(start, stop), slots[start:stop].tolist(), due_ns, chunk, strict=False)
            start = stop

    return chain.from_iterable(chunks())


class Engine:
    """Replays operations over a wire.

    Args:
        wire: sends operations and reads answers.
        journal: takes one record per operation sent.
        in_flight: most operations in flight at once.
        timeout_s: seconds after which an operation without an answer is recorded as unknown.
        think_s: seconds that a place in flight stays empty after an answer.
        on_progress: called about twenty times a second.
        clock: its monotonic time is that of due times, timeouts and the journal; the wire waits by the same time.
    """

    def __init__(
        self,
        wire: Wire,
        journal: Journal,
        *,
        in_flight: int,
        timeout_s: float,
        think_s: float = 0.0,
        on_progress: Callable[[Progress], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._wire = wire
        self._journal = journal
        self._in_flight = in_flight
        self._timeout_ns = int(timeout_s * 1e9)
        self._on_progress = on_progress
        self._now_ns = clock.monotonic_ns
        self._flying: dict[int, tuple[Operation, int]] = {}
        self._busy: dict[int, deque[Operation] | None] = {}
        self._ready: deque[Operation] = deque()
        self._retries: deque[tuple[int, int, Operation]] = deque()
        self._think_ns = int(think_s * 1e9)
        self._thinking: deque[int] = deque()
        self._next: Operation | None = None
        self._waited_ns = 0
        self._retried: dict[str, int] = {}
        self._stopping = False
        self.start_ns = 0
        """Start of the replay in monotonic time: the zero of the journal's times."""

    def stop(self) -> None:
        """Send nothing more, and record operations in flight as unknown. Safe to call from a signal handler."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def run(self, upcoming: Iterator[Operation], start_ns: int | None = None) -> float:
        """Replay the operations to the end, or until `stop`; returns the elapsed seconds. See `begin`."""
        self.begin(upcoming, start_ns)
        while self.turn():
            pass
        return self.end()

    def begin(self, upcoming: Iterator[Operation], start_ns: int | None = None) -> None:
        """Prepare for the first turn; `start_ns`, in monotonic time, may be in the future, or an earlier run's."""
        self._upcoming = upcoming
        self._next = next(upcoming, None)
        self.start_ns = self._now_ns() if start_ns is None else start_ns

    def turn(self) -> bool:
        """Send and receive for TICK_NS, or until all is done; returns whether operations remain."""
        clock, start_ns = self._now_ns, self.start_ns
        now_ns = clock() - start_ns
        tick_ns = now_ns + TICK_NS
        flying = self._flying
        while not self._stopping:
            began_ns, under_way = now_ns, len(flying)
            self._launch(now_ns)
            if self._next is None and not (self._flying or self._retries or self._ready):
                return False
            patience_s = self._patience_s(now_ns)
            before_ns = clock()
            fds = self._wire.poll(patience_s)
            if patience_s:
                self._waited_ns += clock() - before_ns
            self._land(fds)
            now_ns = clock() - start_ns
            if not (patience_s or fds) and len(flying) == under_way:  # an idle turn of the busy loop
                self._waited_ns += now_ns - began_ns
            if now_ns >= tick_ns:
                self._give_up(now_ns - self._timeout_ns, "no answer in time")
                self._on_progress(Progress(now_ns / 1e9, *self._journal.counts))
                return True
        return False

    def effort(self, elapsed_s: float) -> Effort:
        """The cost of a replay of `elapsed_s` seconds."""
        busy = 1 - self._waited_ns / 1e9 / elapsed_s if elapsed_s else 0.0
        dropped = {DROPPED: self._wire.dropped} if self._wire.dropped else {}
        return Effort(min(max(busy, 0.0), 1.0), {**self._retried, **dropped})

    def end(self) -> float:
        """Record operations in flight as unknown; returns the seconds since the start."""
        elapsed_ns = max(0, self._now_ns() - self.start_ns)
        self._give_up(elapsed_ns, "interrupted")
        self._on_progress(Progress(elapsed_ns / 1e9, *self._journal.counts))
        return elapsed_ns / 1e9

    def _launch(self, now_ns: int) -> None:
        """Send the operations that are due, as far as `in_flight` allows."""
        busy, flying, ready, retries = self._busy, self._flying, self._ready, self._retries
        send, clock, start_ns = self._wire.send, self._now_ns, self.start_ns
        while retries and retries[0][0] <= now_ns:
            _, since_ns, operation = retries.popleft()
            self._retry(operation, since_ns)
        thinking = self._thinking
        while thinking and thinking[0] <= now_ns:
            thinking.popleft()
        for _ in range(self._in_flight - len(flying) - len(retries) - len(thinking)):
            if ready:
                operation = ready.popleft()
            else:
                upcoming = self._next
                if upcoming is None or upcoming[2] > now_ns:
                    return
                self._next = next(self._upcoming, None)
                operation, slot = upcoming, upcoming[1]
                if slot in busy:
                    waiting = busy[slot]
                    if waiting is None:
                        busy[slot] = deque((upcoming,))
                    else:
                        waiting.append(upcoming)
                    continue
                busy[slot] = None
            sent_ns = clock() - start_ns
            try:
                flying[send(operation[3])] = operation, sent_ns
            except NotSent as error:
                self._not_sent(operation, sent_ns, error)

    def _retry(self, operation: Operation, since_ns: int) -> None:
        try:
            self._flying[self._wire.send(operation[3])] = operation, since_ns
        except NotSent as error:
            self._not_sent(operation, since_ns, error)

    def _not_sent(self, operation: Operation, since_ns: int, error: NotSent) -> None:
        now_ns = self._now_ns() - self.start_ns
        if isinstance(error, BacklogFull) and now_ns - since_ns <= self._timeout_ns:
            self._retries.append((now_ns + RETRY_NS, since_ns, operation))
            self._retried[str(error)] = self._retried.get(str(error), 0) + 1
        else:
            self._record(operation, OperationOutcome.REFUSED, str(error), since_ns)

    def _land(self, fds: Iterable[int]) -> None:
        """Read from ready descriptors, and record the answers."""
        flying, busy, ready, think_ns = self._flying, self._busy, self._ready, self._think_ns
        receive, record = self._wire.receive, self._journal.record
        clock, start_ns = self._now_ns, self.start_ns
        for fd in fds:
            if fd not in flying:
                self._wire.abandon(fd)
                continue
            answer = receive(fd)
            if answer is None:
                continue
            (op, slot, _, _), sent_ns = flying.pop(fd)
            answered_ns = clock() - start_ns
            record(op, *answer, sent_ns, answered_ns)
            if think_ns:
                self._thinking.append(answered_ns + think_ns)
            waiting = busy[slot]
            if waiting:
                ready.append(waiting.popleft())
            else:
                del busy[slot]

    def _record(self, operation: Operation, outcome: OperationOutcome, error: str, sent_ns: int) -> None:
        self._journal.record(operation[0], outcome, error, sent_ns, self._now_ns() - self.start_ns)
        waiting = self._busy[operation[1]]
        if waiting:
            self._ready.append(waiting.popleft())
        else:
            del self._busy[operation[1]]

    def _give_up(self, sent_before_ns: int, error: str) -> None:
        late = [(fd, flight) for fd, flight in self._flying.items() if flight[1] <= sent_before_ns]
        for fd, (operation, sent_ns) in late:
            del self._flying[fd]
            if self._wire.abandon(fd):
                self._record(operation, OperationOutcome.REFUSED, f"cannot connect: {error}", sent_ns)
            else:
                self._record(operation, OperationOutcome.UNKNOWN, error, sent_ns)

    def _patience_s(self, now_ns: int) -> float:
        """Seconds that the poll may sleep: until the next operation is due, or the next tick."""
        wait_ns = TICK_NS
        if self._retries:
            wait_ns = RETRY_NS
        if self._thinking:
            wait_ns = min(wait_ns, max(0, self._thinking[0] - now_ns))
        if len(self._flying) + len(self._retries) + len(self._thinking) < self._in_flight:
            if self._ready:
                return 0.0
            if self._next is not None:
                until_due_ns = self._next[2] - now_ns
                wait_ns = min(wait_ns, until_due_ns - SPIN_NS if until_due_ns > SPIN_NS else 0)
        return wait_ns / 1e9
