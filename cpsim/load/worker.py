"""A worker: it replays a share of the slots between Locust's turns, and sends its journal to the master."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
import numpy as np
from gevent.event import Event
from locust.exception import RPCError, RPCSendError
from locust.runners import WorkerRunner
from locust.stats import StatsEntry, StatsError

from cpdaemon.endpoint import UrlEndpoint
from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.evidence.reader import JournalReader
from cpsim.load.aside import aside
from cpsim.load.asking import ANSWERED, ASKED
from cpsim.load.followers import told_of
from cpsim.load.guard import FAILED, guarded
from cpsim.load.observing import observer_of
from cpsim.load.share import WorkersShare, partitions_of, with_missing
from cpsim.replay.failures import kind_of
from cpsim.replay.sender import Sender
from cpsim.run.ahead import Ahead
from cpsim.run.breach import Breaches
from cpsim.run.drivers import Replayed
from cpsim.run.live_figures import Counted
from cpsim.scenario.workload import KIND_NAMES
from cpsim.system.mapped import give_back, let_go
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from locust.env import Environment
    from locust.rpc.protocol import Message
    from locust.runners import Runner
    from locust.stats import RequestStats

    Floats = npt.NDArray[np.float64]

    from cpsim.load.settings import Settings
    from cpsim.replay.assignment import Assignment
    from cpsim.replay.engine import Engine
    from cpsim.run.plan import Plan
    from cpsim.scenario.share import WorkloadShare

PAUSE_S: Final = 0.001
"""Pause between turns; with 0, gevent's timers starve, and Locust's reports lose a third of the requests."""
SEND_INTERVAL_S: Final = 0.5
HEADSTART_S: Final = 0.05
ROUNDING: Final = ((100, 1), (1_000, 10), (10_000, 100))
"""Locust's rounding of milliseconds: below the first number, to the second; above all, to whole seconds."""


class Worker:
    """Answers the master's messages.

    Args:
        environment: Locust's environment.
        runner: Locust's runner, which carries messages.
        settings: of the load.
    """

    def __init__(self, environment: Environment, runner: Runner, settings: Settings) -> None:
        self._environment = environment
        self._runner = runner
        self._settings = settings
        self._engine: Engine | None = None
        self._interrupted = self._stopping = False
        self._share: WorkersShare | None = None
        self._go, self._over = Event(), Event()
        self._idle = Event()
        self._idle.set()
        listeners: dict[str, Callable[..., None]] = {
            "cpsim-share": self._take,
            "cpsim-go": lambda **_: self._go.set(),
            "cpsim-stop": lambda **_: self.stop(),
            "cpsim-end": self._end,
            "cpsim-over": lambda **_: self._over.set(),
            ASKED: self._asked,
        }
        for name, listener in listeners.items():
            runner.register_message(name, guarded(listener, self.fail))
        environment.events.quitting.add_listener(lambda **_: self._leave())

    def stop(self) -> None:
        """Send nothing more, and record operations in flight as unknown."""
        self._stopping = True
        if self._engine is not None:
            self._engine.stop()
        self._go.set()

    def _leave(self) -> None:
        self.stop()
        self._over.set()
        self._idle.wait(HEADSTART_S + self._settings.timeout_s)

    def fail(self, reason: str, *, keeps: bool = False) -> None:
        """Stop, and ask the master to end the run; the master may ask about the share if this worker keeps it."""
        self.stop()
        with suppress(RPCError, RPCSendError):  # an unreachable master notices the loss of this worker
            self.send("cpsim-failed", problem=reason, keeps=keeps)

    def _end(self, environment: Environment, msg: Message) -> None:
        """Stop because the run has failed; a worker started by hand prints the reason."""
        if "--worker" in sys.argv:
            print(f"cpsim: {printable(msg.data['why'])}", file=sys.stderr)
            environment.process_exit_code = FAILED
        self.stop()

    def _asked(self, environment: Environment, msg: Message) -> None:
        """Answer a question about the share, beside the messages that come meanwhile."""
        del environment
        gevent.spawn(guarded(self._answer, self.fail), **msg.data)

    def _answer(self, number: int, what: str, given: dict[str, Any]) -> None:
        share = self._share
        if share is not None:
            self.send(ANSWERED, number=number, answer=aside(lambda: share.answer(what, given)))
            aside(give_back)

    def _take(self, environment: Environment, msg: Message) -> None:
        if not self._idle.is_set():
            raise CpsimError("the replay before this one has not ended here")
        replay = gevent.Greenlet(guarded(self._replay, self.fail), **msg.data)
        environment.process_exit_code = None
        self._idle.clear()
        self._go.clear()
        self._over.clear()
        self._stopping = False
        replay.start()

    def _replay(
        self, index: int, count: int, slot_prefix: str, notes: list[str], *, is_judged: bool, has_page: bool
    ) -> None:
        try:
            share = aside(lambda: self._made(index, count))
            workload = replace(share.workload, notes=tuple(notes))
            plan = self._settings.plan(workload, slot_prefix, datetime.now(UTC))
            in_flight = max(1, (plan.in_flight + index) // count)
            assignment = replace(aside(lambda: plan.assignment(share.ops)), in_flight=in_flight)
            with (
                Sender(assignment, lambda _: None) as sender,
                Ahead(fail_fast=self._settings.fail_fast) if is_judged else nullcontext() as ahead,
            ):
                self._engine = sender.engine
                if self._stopping:
                    sender.engine.stop()
                if ahead is not None:
                    ahead.begin(plan, observer_of(plan))
                    ahead.follow([sender.journal])
                outbox = _Outbox(self, sender, assignment, plan, ahead, has_page=has_page)
                replayed = self._send_share(sender, assignment, outbox, share.mark)
            self._engine = None
            self._keep(plan, assignment, replayed, partitions_of(share.operations, count))
            self._over.wait()
        finally:
            self._engine = self._share = None
            self._idle.set()
            if self._interrupted and isinstance(self._runner, WorkerRunner):
                gevent.spawn(self._runner.quit)

    def _made(self, index: int, count: int) -> WorkloadShare:
        """A share; a process that is the master, too, has made the whole."""
        return self._settings.share(index, count) if isinstance(self._runner, WorkerRunner) else self._settings.whole

    def _send_share(self, sender: Sender, assignment: Assignment, outbox: _Outbox, mark: str) -> Replayed:
        """Replay at the master's signal; of what an exception leaves, not all is known."""
        engine, journal = sender.engine, sender.journal
        upcoming = aside(assignment.operations)
        self.send("cpsim-ready", mark=mark)
        self._go.wait()
        ended: list[float] = []

        def replay() -> None:
            engine.begin(upcoming, SYSTEM_CLOCK.monotonic_ns() + int(HEADSTART_S * 1e9))
            with self._interruptible():
                while engine.turn():
                    outbox.show()
                    gevent.sleep(PAUSE_S)
            ended.append(engine.end())
            outbox.show()
            outbox.send()

        guarded(replay, partial(self.fail, keeps=True))()
        records, errors = aside(journal.records), journal.errors
        if not ended:
            records, errors = aside(lambda: with_missing(records, errors, assignment))
        elapsed_s = ended[0] if ended else float(records["answered_ns"].max(initial=0) / 1e9)
        return Replayed(records, errors, elapsed_s, engine.effort(elapsed_s), engine.start_ns)

    def _keep(self, plan: Plan, assignment: Assignment, replayed: Replayed, partitions: int) -> None:
        """Keep the share for the master's questions, and tell that it is replayed."""
        evidence = aside(lambda: replayed.evidence(plan, assignment.schedule_us))
        self._share = WorkersShare(replace(evidence, in_parts=partitions, numbers=assignment.ops))
        if isinstance(self._runner, WorkerRunner):
            _report(self._runner)
        effort, elapsed_s = list(replayed.effort), replayed.elapsed_s
        self.send("cpsim-done", elapsed_s=elapsed_s, effort=effort, interrupted=self._interrupted)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Make Ctrl-C end the replay, not the current greenlet."""

        def interrupt(*_: object) -> None:
            self._interrupted = True
            self.stop()

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def send(self, name: str, **data: object) -> None:
        """Send a message to the master."""
        self._runner.send_message(name, data)

    def log(self, method: str, name: str, times_ms: Floats, failures: dict[str, int]) -> None:
        """Add a batch of operations of one kind to Locust's statistics."""
        stats = self._runner.stats
        batch = _entry(stats, method, name, times_ms, sum(failures.values()))
        for entry in (stats.total, stats.get(name, method)):
            entry.extend(batch)
        for failure, times in failures.items():
            key = StatsError.create_key(method, name, failure)
            stats.errors.setdefault(key, StatsError(method, name, failure)).occurrences += times


class _Outbox:
    """The part of a journal not yet shown to Locust or counted for the master.

    Args:
        worker: sends.
        sender: whose journal it is.
        assignment: the share.
        plan: of the share.
        ahead: judges slots meanwhile; None if nobody does.
        has_page: whether the master shows a page of the run, which needs the records.
    """

    def __init__(
        self, worker: Worker, sender: Sender, assignment: Assignment, plan: Plan, ahead: Ahead | None, *, has_page: bool
    ) -> None:
        self._worker = worker
        self._journal, self._engine = sender.journal, sender.engine
        self._assignment = assignment
        self._ahead = ahead
        self._breaches = Breaches(plan.stop_on, plan.workload, assignment.schedule_us, plan.warm_up_s)
        self._has_page = has_page
        self._method = "POST" if isinstance(assignment.endpoint, UrlEndpoint) else "SEND"
        self._reader = JournalReader(self._journal)
        self._waiting: list[npt.NDArray[np.void]] = []
        self._sent_s = SYSTEM_CLOCK.monotonic()

    def show(self) -> None:
        """Add new records to Locust's statistics, and tell the master of them now and then."""
        records = self._reader.read()
        self._waiting.append(records)
        since_ns = records["sent_ns"]
        if self._assignment.schedule_us is not None:
            since_ns = self._assignment.schedule_us[records["op"]] * 1000
        times_ms = (records["answered_ns"] - since_ns) / 1e6
        kinds = self._assignment.workload.kind[records["op"]]
        for code in np.unique(kinds).tolist():
            mine = kinds == code
            failed = records["error"][mine & (records["outcome"] != OperationOutcome.ACCEPTED)]
            failures: dict[str, int] = {}
            for error, times in zip(*np.unique(failed, return_counts=True), strict=True):
                kind = kind_of(self._journal.errors[error])
                failures[kind] = failures.get(kind, 0) + int(times)
            self._worker.log(self._method, KIND_NAMES[code], times_ms[mine], failures)
        if SYSTEM_CLOCK.monotonic() - self._sent_s > SEND_INTERVAL_S:
            self.send()

    def send(self) -> None:
        """Send the master the counts of all records that it has not heard of."""
        records, self._waiting = np.concatenate([np.empty(0, RECORD_TYPE), *self._waiting]), []
        self._sent_s = SYSTEM_CLOCK.monotonic()
        self._breaches.take(records)
        ahead = self._ahead
        if ahead is not None:
            ahead.look([self._journal], self._engine.start_ns)
        self._worker.send(
            "cpsim-progress",
            counted=list(Counted.of(self._assignment.workload.kind, records)),
            breaches=self._breaches.counts,
            judged=None if ahead is None else told_of(ahead),
            records=records.tobytes() if self._has_page else b"",
            errors=self._journal.errors if self._has_page else [""],
        )
        let_go()


def _report(runner: WorkerRunner) -> None:
    """Send Locust's master the statistics now: when it quits, it waits half a second for the last ones."""
    data: dict[str, object] = {}
    runner.environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
    runner.send_message("stats", data)


def _entry(stats: RequestStats, method: str, name: str, times_ms: Floats, failures: int) -> StatsEntry:
    """Statistics of a batch, equal to those of `StatsEntry.log` for each operation."""
    entry = StatsEntry(stats, name, method)
    now_s = SYSTEM_CLOCK.now_us() / 1e6
    entry.start_time, entry.last_request_timestamp = now_s, now_s
    entry.num_requests, entry.num_failures = len(times_ms), failures
    entry.num_reqs_per_sec[int(now_s)] = len(times_ms)
    if failures:
        entry.num_fail_per_sec[int(now_s)] = failures
    entry.total_response_time = float(times_ms.sum())
    entry.min_response_time, entry.max_response_time = float(times_ms.min()), float(times_ms.max())
    rounded = np.round(times_ms / 1_000) * 1_000
    for below, to in reversed(ROUNDING):
        rounded = np.where(times_ms < below, np.round(times_ms / to) * to, rounded)
    for time_ms, count in zip(*np.unique(rounded.astype(np.int64), return_counts=True), strict=True):
        entry.response_times[int(time_ms)] = int(count)
    return entry
