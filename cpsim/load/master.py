"""What the master does: it hands out the slots, has all begin together, and judges what came of the whole."""

from __future__ import annotations

import secrets
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import gevent
import numpy as np
from locust.runners import MasterRunner

from cpsim.errors import Problem
from cpsim.load.outcome import conclude
from cpsim.printable import printable
from cpsim.replay.engine import Effort
from cpsim.replay.journal import RECORD_TYPE
from cpsim.run import Run, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from locust.env import Environment
    from locust.rpc.protocol import Message
    from locust.runners import Runner

    from cpsim.load.plan import Plan

FAILED: Final = 2
LOOK_S: Final = 0.05
LOCAL: Final = "local"
STOPPING_S: Final = 5.0
"""How long after a stop the workers' last words are waited for, beside the time-out of an operation."""


@dataclass(slots=True)
class Share:
    """A worker's slots and what is known of them."""

    worker: str
    index: int
    ready: bool = False
    ended: bool = False
    lost: bool = False
    interrupted: bool = False
    elapsed_s: float = 0.0
    effort: Effort = field(default_factory=lambda: Effort(0.0, {}))
    records: list[bytes] = field(default_factory=list)
    errors: list[str] = field(default_factory=lambda: [""])

    def table(self) -> npt.NDArray[np.void]:
        """The records that have arrived, numbered as the worker numbers them."""
        return np.frombuffer(b"".join(self.records), RECORD_TYPE).copy()


class Master:
    """Conducts one replay each time that Locust starts a test.

    Args:
        environment: Locust's.
        runner: through which messages go.
        plan: what is replayed.
    """

    def __init__(self, environment: Environment, runner: Runner, plan: Plan) -> None:
        self._environment = environment
        self._runner = runner
        self._plan = plan
        options = environment.parsed_options
        self._headless = options is not None and bool(options.headless)
        self._shares: list[Share] = []
        self._conducting: gevent.Greenlet | None = None
        self._due = False
        self._stopping = False
        self._interrupted = False
        self._failure: str | None = None
        for name, listener in {
            "cpsim-ready": self._ready,
            "cpsim-records": self._records,
            "cpsim-done": self._done,
            "cpsim-failed": self._failed,
        }.items():
            runner.register_message(name, listener)
        if self._headless and isinstance(runner, MasterRunner):
            main = gevent.getcurrent()
            signal.signal(signal.SIGINT, lambda *_: gevent.spawn(self._leave, main))
        environment.events.test_start.add_listener(lambda **_: self._expect())
        environment.events.spawning_complete.add_listener(lambda **_: self._begin())
        environment.events.test_stopping.add_listener(lambda **_: self._stop())
        environment.events.quitting.add_listener(lambda **_: self._stop())

    def _expect(self) -> None:
        """Let the next spawning begin a replay: Locust spawns again whenever a worker leaves or returns."""
        self._due = True

    def _begin(self) -> None:
        if self._due and self._conducting is None:
            self._due = self._stopping = self._interrupted = False
            self._failure = None
            self._conducting = gevent.spawn(self._conduct)

    def _leave(self, main: object) -> None:
        """End a test that has not begun: Locust waits for its workers where Ctrl-C would show a traceback."""
        print("cpsim: interrupted before the replay began", file=sys.stderr)
        self._runner.quit()
        gevent.kill(main, SystemExit(FAILED))

    def _stop(self) -> None:
        """Have the workers stop, and wait for the verdict."""
        conducting = self._conducting
        if conducting is None or conducting is gevent.getcurrent():
            return
        self._stopping = True
        self._tell("cpsim-stop", {})
        conducting.join()

    def _conduct(self) -> None:
        """Have Ctrl-C end the replay and not the greenlet that happens to run; a second one is Locust's."""

        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, previous)
            self._interrupted = True
            gevent.spawn(self._tell, "cpsim-stop", {})

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            self._replay()
        finally:
            signal.signal(signal.SIGINT, previous)
            self._conducting = None
        if not self._stopping:  # else somebody else is ending the test
            gevent.spawn(self._runner.quit if self._headless else self._runner.stop)

    def _replay(self) -> None:
        workers = self._workers()
        if not workers:
            self._failure = "all workers left before the replay could begin"
        started = datetime.now(UTC)
        suffix = f"-{started:%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        prefix = self._plan.slot_prefix or f"{self._plan.workload.name[:40]}{suffix}"
        self._shares = [Share(worker, index) for index, worker in enumerate(workers)]
        for share in self._shares:
            data = {"index": share.index, "count": len(workers), "slot_prefix": prefix}
            self._runner.send_message("cpsim-share", data, share.worker)
        self._wait(lambda share: share.ready)
        result = Run(
            workload=self._plan.workload,
            target=Target(self._plan.endpoint, self._plan.accounts, self._plan.credentials),
            embedded=False,
            pace=self._plan.pace,
            slot_prefix=prefix,
            fresh=self._plan.slot_prefix is None,
            started=started,
        )
        start_ns = time.perf_counter_ns()
        if self._failure is None:
            self._tell("cpsim-go", {})
        self._wait(lambda share: share.ended)
        result.interrupted = self._stopping or self._interrupted or any(share.interrupted for share in self._shares)
        if self._failure is not None:
            print(f"cpsim: {printable(self._failure)}", file=sys.stderr)
            self._environment.process_exit_code = FAILED
        else:
            try:
                self._environment.process_exit_code = conclude(result, self._plan, self._shares, start_ns)
            except (Problem, OSError) as problem:
                print(f"cpsim: {printable(str(problem))}", file=sys.stderr)
                self._environment.process_exit_code = FAILED

    def _workers(self) -> list[str]:
        clients = getattr(self._runner, "clients", None)
        return [LOCAL] if clients is None else [client.id for client in clients.all if client.state != "missing"]

    def _wait(self, is_so: Callable[[Share], bool]) -> None:
        """Until something is so of each share, unless its worker is lost."""
        deadline_s = float("inf")
        while self._failure is None:
            here = set(self._workers())
            for share in self._shares:
                share.lost = share.lost or (not share.ended and share.worker not in here)
            if all(share.lost or is_so(share) for share in self._shares):
                return
            if (self._stopping or self._interrupted) and deadline_s == float("inf"):
                deadline_s = time.monotonic() + STOPPING_S + self._plan.timeout_s
            if time.monotonic() > deadline_s:
                for share in self._shares:
                    share.lost = share.lost or not share.ended
                return
            gevent.sleep(LOOK_S)

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        for share in self._shares:
            if not share.lost:
                self._runner.send_message(name, data, share.worker)

    def _ready(self, environment: Environment, msg: Message) -> None:
        del environment
        self._shares[msg.data["index"]].ready = True
        if msg.data["digest"] != self._plan.workload.digest():
            self._failure = f"{msg.node_id} has another workload: all need the same scenario, seed and version of cpsim"

    def _records(self, environment: Environment, msg: Message) -> None:
        del environment
        share = self._shares[msg.data["index"]]
        share.records.append(msg.data["records"])
        share.errors = msg.data["errors"]

    def _done(self, environment: Environment, msg: Message) -> None:
        del environment
        share = self._shares[msg.data["index"]]
        share.ended, share.elapsed_s, share.effort = True, msg.data["elapsed_s"], Effort(*msg.data["effort"])
        share.interrupted = msg.data["interrupted"]

    def _failed(self, environment: Environment, msg: Message) -> None:
        del environment
        self._failure = f"{msg.node_id}: {msg.data['problem']}"
