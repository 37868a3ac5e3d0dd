"""The master: it divides the slots among workers, starts them together, and judges the merged result."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

import gevent
import numpy as np
from locust import runners
from locust.exception import RPCError, RPCSendError
from locust.runners import MasterRunner

from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.journal import RECORD_TYPE
from cpsim.load.aside import aside
from cpsim.load.asking import ANSWERED, LOOK_S, Questions
from cpsim.load.followers import Meanwhile
from cpsim.load.guard import FAILED, guarded
from cpsim.load.observing import observer_of
from cpsim.load.outcome import Shares, conclude
from cpsim.load.telling import Told
from cpsim.net.listen import Listen
from cpsim.replay.engine import Effort, joint_effort
from cpsim.run.comparison import baseline_note
from cpsim.run.drivers import Replayed
from cpsim.run.folder import OutputFolder
from cpsim.run.live import live_page
from cpsim.run.observing import imbalances_before
from cpsim.run.pipeline import fresh_prefix
from cpsim.system.mapped import writing
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from locust.env import Environment
    from locust.rpc.protocol import Message
    from locust.runners import Runner

    from cpsim.evidence.evidence import Imbalance
    from cpsim.load.settings import Settings
    from cpsim.run.live_figures import LiveFigures
    from cpsim.run.plan import Plan
    from cpsim.ui.results import ResultFiles

LOCAL: Final = "local"
STOPPING_S: Final = 5.0
"""Seconds to wait for the workers' last messages after a stop, in addition to the timeout of an operation."""
MAKING_S: Final = 120
"""Seconds of silence after which a worker is lost that makes its share, on a machine that may have much to do."""
SILENT_S: Final = 15
"""Seconds of silence after which another one is lost."""


@dataclass(slots=True)
class Share:
    """A worker's share of the slots, and its state.

    Attributes:
        worker: its id.
        index: which share of all it is.
        ready, begun, ended: whether the worker has made it, was told to replay it, and has replayed it.
        lost: whether nothing is known of it, because its worker is gone.
        has_failed: whether the worker has failed, and answers no more.
        interrupted: whether Ctrl-C has ended it.
        elapsed_s, effort: of its replay.
        breaches: see `Breaches.counts`.
        judged: what the worker tells of the slots that it judges meanwhile.
        errors: the texts of errors in `file`.
    """

    worker: str
    index: int
    ready: bool = False
    begun: bool = False
    ended: bool = False
    lost: bool = False
    has_failed: bool = False
    interrupted: bool = False
    elapsed_s: float = 0.0
    effort: Effort = field(default_factory=lambda: Effort(0.0, {}))
    breaches: list[int] = field(default_factory=list)
    judged: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=lambda: [""])
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    """Has the records as they come, if there is a page of the run that goes on, which reads it."""

    def take(self, records: bytes) -> None:
        """Append records; raises NoRoom."""
        with writing():
            self.file.write(records)
            self.file.flush()


class Master:
    """Conducts one replay each time that Locust starts a test.

    Args:
        environment: Locust's environment.
        runner: Locust's runner, which carries messages.
        settings: of the load.
        figures: takes what the workers report.

    Attributes:
        told: what is told of runs.
    """

    def __init__(self, environment: Environment, runner: Runner, settings: Settings, figures: LiveFigures) -> None:
        self._environment = environment
        self._runner = runner
        self._settings = settings
        options = environment.parsed_options
        self._headless = options is not None and bool(options.headless)
        self._shares: list[Share] = []
        self._conducting: gevent.Greenlet | None = None
        self._due = self._stopping = self._interrupted = self._is_stopped = False
        self._failure: str | None = None
        self._mark = ""
        self._before: tuple[Imbalance, ...] | None = None
        self._meanwhile = Meanwhile(settings, figures)
        self._questions = Questions(runner)
        self._main = gevent.getcurrent()
        _allow_silence(self._runner, SILENT_S)
        self.told = Told(environment, headless=self._headless)
        listeners: dict[str, Callable[..., None]] = {
            "cpsim-ready": partial(self._dispatch, self._ready),
            "cpsim-progress": partial(self._dispatch, self._progress),
            "cpsim-done": partial(self._dispatch, self._done),
            "cpsim-failed": self._failed,
            ANSWERED: self._questions.hear,
        }
        for name, listener in listeners.items():
            runner.register_message(name, guarded(listener, self._fail))
        if self._headless and isinstance(runner, MasterRunner):
            signal.signal(signal.SIGINT, lambda *_: gevent.spawn(self._leave, "interrupted before the replay began"))
        for event, listener in (
            (environment.events.test_start, self._expect),
            (environment.events.spawning_complete, self._begin),
            (environment.events.test_stopping, self._stop),
            (environment.events.quitting, self._stop),
        ):
            event.add_listener(guarded(listener, self._fail))

    def _expect(self, **_: object) -> None:
        """Let the next spawning begin a replay: Locust also spawns when a worker leaves or returns."""
        self._due = True

    def _begin(self, **_: object) -> None:
        if self._due and self._conducting is None:
            self._due = self._stopping = self._interrupted = self._is_stopped = False
            self._failure = None
            self._meanwhile.begin()
            self._shares = []
            self.told.begin()
            self._conducting = gevent.spawn(self._conduct, OutputFolder(self._settings.folder()))

    def _leave(self, why: str) -> None:
        """End a test that has not begun: while Locust waits for workers, Ctrl-C would print a traceback."""
        _print_error(why)
        with self._settings.files() as files:
            files.fail(why)
        self._runner.quit()
        gevent.kill(self._main, SystemExit(FAILED))

    def _fail(self, why: str) -> None:
        """End the replay, or the test that has not begun, in all processes; the first failure is the reason."""
        if self._failure is not None:
            if self._conducting is gevent.getcurrent():  # what came of the run could not be told, or not be kept
                _print_error(why)
            return
        self._failure = why
        self.told.fail(why)
        with suppress(RPCError, RPCSendError):  # an unreachable worker notices the loss of the master
            self._runner.send_message("cpsim-end", {"why": why})
        if self._conducting is None:
            if self._headless:
                gevent.spawn(self._leave, why)
            else:
                _print_error(why)
                gevent.spawn(self._runner.stop)

    def _stop(self, **_: object) -> None:
        """Stop the workers, and wait for the verdict."""
        conducting = self._conducting
        if conducting is None or conducting is gevent.getcurrent():
            return
        self._stopping = True
        self._send("cpsim-stop", {})
        conducting.join()

    def _conduct(self, output: OutputFolder) -> None:
        """Make Ctrl-C end the replay, not the current greenlet; Locust handles a second Ctrl-C."""

        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, previous)
            self._interrupted = True
            gevent.spawn(self._send, "cpsim-stop", {})

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            with self._settings.files() as files, output:
                guarded(self._replay_and_show, self._fail)(output=output, files=files)
                if self._failure is not None:
                    files.fail(self._failure)
            if self._failure is not None:
                _print_error(self._failure)
                self._environment.process_exit_code = FAILED
        finally:
            signal.signal(signal.SIGINT, previous)
            self._conducting = None
            for share in self._shares:
                share.file.close()
            if self._headless:
                gevent.spawn(self._runner.quit)
            elif not self._stopping:  # else `_stop` runs, and ends the test
                gevent.spawn(self._runner.stop)

    def _replay_and_show(self, output: OutputFolder, files: ResultFiles) -> None:
        """Replay, and meanwhile serve the page, if that is wanted."""
        page = self._settings.page
        with nullcontext() if page is None else live_page(Listen(page), output.path) as self._meanwhile.live:
            try:
                self._replay(output, files)
            finally:
                self._send("cpsim-over", {})

    def _replay(self, output: OutputFolder, files: ResultFiles) -> None:
        plan, start_ns = self._prepare(), SYSTEM_CLOCK.monotonic_ns()
        operations = self._settings.whole.operations
        self._settings.let_go()
        if self._failure is not None:
            return
        for share in self._shares:
            share.begun = not share.lost
        self._send("cpsim-go", {})
        self._wait(lambda share: share.ended)
        if self._failure is not None:
            self._wait(lambda share: share.ended, is_over=True)
        was_ended = self._failure is not None or self._stopping or self._interrupted
        replayed = joined(self._shares, self._meanwhile, start_ns, interrupted=was_ended, failure=self._failure)
        shares = Shares(plan, operations, self._shares, self._ask, self._settings.share)
        thresholds, before, tell = self._settings.thresholds, self._before, self.told.say
        status = conclude(plan, shares, replayed, thresholds, output, before=before, files=files, tell=tell)
        self._environment.process_exit_code = status
        if note := baseline_note(self._settings.baseline, output):
            sys.stderr.write(f"cpsim: {note}\n")

    def _prepare(self) -> Plan:
        """Have each worker make its share, and wait until all are ready; the plan has none of the operations."""
        workers = _workers_of(self._runner)
        if not workers:
            self._fail("all workers left before the replay could begin")
        started, workload = datetime.now(UTC), self._settings.whole.workload
        prefix = self._settings.slot_prefix or fresh_prefix(workload, started, embedded=False)
        plan = self._settings.plan(workload, prefix, started)
        self._before = imbalances_before(observer_of(plan), plan.target.accounts, plan.timeout_s)
        self._shares = [Share(worker, index) for index, worker in enumerate(workers)]
        self._mark = self._settings.whole.mark
        _allow_silence(self._runner, MAKING_S)
        data = {"count": len(workers), "slot_prefix": prefix, "notes": list(workload.notes)}
        data["is_judged"] = not self._headless or self._settings.is_seen
        data["has_page"] = self._settings.page is not None
        for share in self._shares:
            self._runner.send_message("cpsim-share", data | {"index": share.index}, share.worker)
        digest = aside(workload.digest)
        self._meanwhile.expect(plan, aside(plan.assignment).schedule_us)
        self._wait(lambda share: share.ready)
        _allow_silence(self._runner, SILENT_S)
        lost = [share.worker for share in self._shares if share.lost]
        if lost and self._failure is None and not (self._stopping or self._interrupted):
            self._fail(f"{', '.join(lost)} left before the replay could begin")
        if self._failure is None:
            self._meanwhile.follow(plan, self._shares)
        head = replace(workload.of_operations(np.empty(0, np.int64)).on_its_own(), slot_ids=workload.slot_ids)
        return replace(plan, workload=head, digest=digest)

    def _wait(self, condition: Callable[[Share], bool], *, is_over: bool = False) -> None:
        """Wait until a condition holds for each share, or its worker is lost, or the run fails; not so if `is_over`."""
        deadline_s = float("inf")
        while is_over or self._failure is None:
            here = set(_workers_of(self._runner))
            for share in self._shares:
                if not (share.lost or share.ended or share.worker in here):
                    share.lost = True
                    _print_error(f"{share.worker} is lost: nothing is heard of it any more")
            if all(share.lost or condition(share) for share in self._shares):
                return
            self.told.so_far = self._meanwhile.judged.text
            if (is_over or self._stopping or self._interrupted) and deadline_s == float("inf"):
                deadline_s = SYSTEM_CLOCK.monotonic() + STOPPING_S + self._settings.timeout_s
            if SYSTEM_CLOCK.monotonic() > deadline_s:
                for share in self._shares:
                    share.lost = share.lost or not share.ended
                return
            gevent.sleep(LOOK_S)

    def _ask(self, share: Share, what: str, given: dict[str, Any]) -> Any:  # noqa: ANN401 - each has its answer
        """Ask a worker about its share; raises WorkerLost."""

        def is_lost() -> bool:
            return share.has_failed or share.worker not in _workers_of(self._runner)

        return self._questions.ask(share.worker, is_lost, what, given)

    def _send(self, name: str, data: dict[str, Any]) -> None:
        for share in self._shares:
            if not share.lost:
                self._runner.send_message(name, data, share.worker)

    def _dispatch(
        self, listener: Callable[[Share, dict[str, Any]], None], environment: Environment, msg: Message
    ) -> None:
        """Pass a message to the listener of its share; ignore workers without a share."""
        del environment
        for share in self._shares:
            if share.worker == msg.node_id:
                listener(share, msg.data)

    def _ready(self, share: Share, data: dict[str, Any]) -> None:
        share.ready = True
        if data["mark"] != self._mark:
            self._fail(f"{share.worker} has another workload: all need the same scenario, seed and version of cpsim")

    def _progress(self, share: Share, data: dict[str, Any]) -> None:
        # else the run has ended without this worker
        if self._conducting is not None and self._meanwhile.take(share, data, self._shares) and not self._is_stopped:
            self._is_stopped = True
            self._send("cpsim-stop", {})

    def _done(self, share: Share, data: dict[str, Any]) -> None:
        share.ended, share.elapsed_s, share.effort = True, data["elapsed_s"], Effort(*data["effort"])
        share.interrupted = data["interrupted"]

    def _failed(self, environment: Environment, msg: Message) -> None:
        del environment
        reason = msg.data["problem"] if msg.node_id == LOCAL else f"{msg.node_id}: {msg.data['problem']}"
        share = next((share for share in self._shares if share.worker == msg.node_id), None)
        if share is None and self._shares:
            _print_error(reason)  # it joined too late for the replay
            return
        if share is not None:
            share.lost = not (share.ended or msg.data["keeps"])
            share.has_failed = not msg.data["keeps"]
        self._fail(reason)


def _allow_silence(runner: Runner, seconds: int) -> None:
    """Have a worker count as lost when nothing was heard of it for so long."""
    runners.HEARTBEAT_LIVENESS = seconds
    for client in getattr(runner, "clients", {}).values():
        client.heartbeat = seconds


def _workers_of(runner: Runner) -> list[str]:
    """The workers that are there."""
    clients = getattr(runner, "clients", None)
    return [LOCAL] if clients is None else [client.id for client in clients.all if client.state != "missing"]


def joined(
    shares: Sequence[Share], meanwhile: Meanwhile, start_ns: int, *, interrupted: bool, failure: str | None
) -> Replayed:
    """What workers have told of the replay of their shares, without records.

    Args:
        shares: of all workers.
        meanwhile: what may have ended it.
        start_ns: start of the replay in monotonic time.
        interrupted: whether the load was ended before its end.
        failure: why it failed; None if it did not.
    """
    gaps = () if failure is None else (f"Operations that were not sent, because the run failed: {failure}.",)
    return Replayed(
        np.empty(0, RECORD_TYPE),
        [""],
        max(share.elapsed_s for share in shares),
        joint_effort(share.effort for share in shares),
        start_ns,
        interrupted=interrupted or any(share.interrupted for share in shares),
        gaps=gaps,
        stopped_by=meanwhile.broken,
        found=meanwhile.judged.stopped_by,
    )


def _print_error(why: str) -> None:
    print(f"cpsim: {printable(why)}", file=sys.stderr)
