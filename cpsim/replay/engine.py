"""The replay engine: operations x schedule x endpoint -> journal.

One thread, one poll loop. Operations are sent in order as they fall due, `in_flight` at a time. Two operations of one
slot are never in flight together: the later one waits for the answer of the earlier one, and only then is sent.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.errors import NotSent
from cpsim.evidence.journal import Journal, Outcome
from cpsim.metrics.progress import Progress
from cpsim.replay.failures import OURS, kind_of
from cpsim.replay.wires.wire import BacklogFull, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    from numpy import int32, int64

TICK_NS: Final = 50_000_000
"""How often deadlines, progress and the wish to stop are looked at."""
RETRY_NS: Final = 1_000_000
SPIN_NS: Final = 100_000
"""A poll wakes up about so late: what is due sooner than this is waited for in a busy loop."""
LEAST_SHARE: Final = 0.001
"""Attempts in vain, for each operation, up to which a sender was not held up by them."""
BUSY: Final = 0.9
"""Share of its time from which on a sender had none to spare."""


Operation = tuple[int, int, int, bytes]
"""One operation ready to go: its number, its slot, when it is due in nanoseconds from the start, and its bytes."""


class Effort(NamedTuple):
    """What a replay cost the one who sends.

    `busy` is the share of its time in which it did not wait for the target or for something to be due; near 1, the
    sender is what limits the rate. `retried` counts attempts that had to be repeated, by why.
    """

    busy: float
    retried: dict[str, int]

    def limit(self, operations: int) -> str:
        """What kept a replay of so many operations from being faster: ports, files, generator, backlog or target."""
        retried: Counter[str] = Counter()
        for error, times in self.retried.items():
            retried[kind_of(error)] += times
        ours = {kind: retried[kind] for kind in OURS & retried.keys() if retried[kind] > LEAST_SHARE * operations}
        if ours:
            return max(ours, key=ours.__getitem__)
        if retried["backlog"] > operations:
            return "backlog"
        return "generator" if self.busy > BUSY else "target"


def joint_effort(efforts: Iterable[Effort]) -> Effort:
    """What a replay by several senders cost: the busiest one's share of its time, and the attempts of all."""
    busy, retried = 0.0, Counter[str]()
    for effort in efforts:
        busy = max(busy, effort.busy)
        retried.update(effort.retried)
    return Effort(busy, dict(retried))


def operations(
    slots: npt.NDArray[int32], schedule_us: npt.NDArray[int64] | None, payloads: Iterable[list[bytes]]
) -> Iterator[Operation]:
    """The operations of a workload in order, from its slot column, its schedule and its rendered chunks."""

    def chunks() -> Iterator[Iterator[Operation]]:
        start = 0
        for chunk in payloads:
            stop = start + len(chunk)
            due_ns = repeat(0) if schedule_us is None else (schedule_us[start:stop] * 1000).tolist()
            yield zip(range(start, stop), slots[start:stop].tolist(), due_ns, chunk, strict=False)
            start = stop

    return chain.from_iterable(chunks())


class Engine:
    """Replays operations over a wire.

    Args:
        wire: how an operation is sent and its answer read.
        journal: takes one record per operation sent.
        in_flight: how many operations may be under way at once.
        timeout_s: after which an operation without an answer is given up as unknown.
        think_s: how long nothing is sent in the place of an operation that was answered.
        on_progress: called about twenty times a second.
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
        self._think_ns = int(think_s * 1e9)
        self._thinking: deque[int] = deque()
        self._next: Operation | None = None
        self._waited_ns = 0
        self._retried: dict[str, int] = {}
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
        self.begin(upcoming)
        while self.turn():
            pass
        return self.end()

    def begin(self, upcoming: Iterator[Operation], start_ns: int | None = None) -> None:
        """Be ready for the first turn; a start in the future, on the performance counter, is waited for."""
        self._upcoming = upcoming
        self._next = next(upcoming, None)
        self.start_ns = time.perf_counter_ns() if start_ns is None else start_ns

    def turn(self) -> bool:
        """Send and receive for TICK_NS, or until nothing is left to do; returns whether there is more to do."""
        clock, start_ns = time.perf_counter_ns, self.start_ns
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
            if (
                not (patience_s or fds) and len(flying) == under_way
            ):  # a turn of the busy loop in which nothing was done
                self._waited_ns += now_ns - began_ns
            if now_ns >= tick_ns:
                self._give_up(now_ns - self._timeout_ns, "no answer in time")
                self._on_progress(Progress(now_ns / 1e9, *self._journal.counts))
                return True
        return False

    def effort(self, elapsed_s: float) -> Effort:
        """What the replay cost, of which it is known how long it took."""
        busy = 1 - self._waited_ns / 1e9 / elapsed_s if elapsed_s else 0.0
        return Effort(min(max(busy, 0.0), 1.0), self._retried)

    def end(self) -> float:
        """Give up what is in flight; returns the seconds since the start."""
        elapsed_ns = max(0, time.perf_counter_ns() - self.start_ns)
        self._give_up(elapsed_ns, "interrupted")
        self._on_progress(Progress(elapsed_ns / 1e9, *self._journal.counts))
        return elapsed_ns / 1e9

    def _launch(self, now_ns: int) -> None:
        """Send what is due, as far as `in_flight` allows."""
        busy, flying, ready, retries = self._busy, self._flying, self._ready, self._retries
        send, clock, start_ns = self._wire.send, time.perf_counter_ns, self.start_ns
        while retries and retries[0][0] <= now_ns:
            _, since_ns, operation = retries.popleft()
            self._try_again(operation, since_ns)
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

    def _try_again(self, operation: Operation, since_ns: int) -> None:
        try:
            self._flying[self._wire.send(operation[3])] = operation, since_ns
        except NotSent as error:
            self._not_sent(operation, since_ns, error)

    def _not_sent(self, operation: Operation, since_ns: int, error: NotSent) -> None:
        now_ns = time.perf_counter_ns() - self.start_ns
        if isinstance(error, BacklogFull) and now_ns - since_ns <= self._timeout_ns:
            self._retries.append((now_ns + RETRY_NS, since_ns, operation))
            self._retried[str(error)] = self._retried.get(str(error), 0) + 1
        else:
            self._record(operation, Outcome.REFUSED, str(error), since_ns)

    def _land(self, fds: Iterable[int]) -> None:
        """Read what has come, and record what was answered."""
        flying, busy, ready, think_ns = self._flying, self._busy, self._ready, self._think_ns
        receive, record = self._wire.receive, self._journal.record
        clock, start_ns = time.perf_counter_ns, self.start_ns
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

    def _record(self, operation: Operation, outcome: Outcome, error: str, sent_ns: int) -> None:
        self._journal.record(operation[0], outcome, error, sent_ns, time.perf_counter_ns() - self.start_ns)
        waiting = self._busy[operation[1]]
        if waiting:
            self._ready.append(waiting.popleft())
        else:
            del self._busy[operation[1]]

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
        if self._thinking:
            wait_ns = min(wait_ns, max(0, self._thinking[0] - now_ns))
        if len(self._flying) + len(self._retries) + len(self._thinking) < self._in_flight:
            if self._ready:
                return 0.0
            if self._next is not None:
                until_due_ns = self._next[2] - now_ns
                wait_ns = min(wait_ns, until_due_ns - SPIN_NS if until_due_ns > SPIN_NS else 0)
        return wait_ns / 1e9
