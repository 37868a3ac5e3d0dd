"""The drivers of a replay: in this process, in several, or in virtual time; each gives the same of it."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.endpoint import UnixEndpoint
from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.evidence import Evidence, tally
from cpsim.evidence.journal import Journal
from cpsim.evidence.unfinished import journals_in
from cpsim.replay.pace import Virtual
from cpsim.replay.processes import Processes
from cpsim.replay.sender import Sender
from cpsim.replay.wires.connect import open_wire
from cpsim.run.breach import BreachWatch
from cpsim.run.virtual import replay as replay_in_virtual_time
from cpsim.system.mapped import stretches
from cpsim.system.process import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock
    from cpsim.metrics.progress import Progress
    from cpsim.replay.assignment import Assignment
    from cpsim.replay.engine import Effort, Engine
    from cpsim.replay.wires.wire import Wire
    from cpsim.run.ahead import Ahead
    from cpsim.run.faults import SetFaults
    from cpsim.run.follower import Follower
    from cpsim.run.live import LivePage
    from cpsim.run.plan import Plan
    from cpsim.scenario.workload import Workload


EMBEDDED: Final = UnixEndpoint("creditapi.socket")
"""Where a `cpsim serve` may stand in for the fake of a run that has ended, whose own address means nothing."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """The clock of a run, and how a replay in this process reaches its target.

    Attributes:
        clock: of the replay, the waits for its effect, and the comparison with the server's clock.
        connect: opens a wire; it takes what `open_wire` takes, and raises what it raises.
        follow: a context in which operations are sent, given the journal and the workload of each sender.
    """

    clock: Clock = SYSTEM_CLOCK
    connect: Callable[..., Wire] = open_wire
    follow: Callable[[Sequence[tuple[Journal, Workload]]], AbstractContextManager[object]] = contextlib.nullcontext

    def sender(
        self, assignment: Assignment, on_progress: Callable[[Progress], None], path: Path | None = None
    ) -> Sender:
        """The sender of a replay in this process, with its journal at a path, or in a temporary file.

        Raises:
            CpsimError: the target cannot be reached, or the journal cannot be written.
        """
        return Sender(
            assignment, on_progress, clock=self.clock, connect=self.connect, was_reached=True, journal=Journal(path)
        )


class Replayed(NamedTuple):
    """What a driver leaves; see `Evidence`. `effort` is the cost of sending; see `Run` for what ended it."""

    records: npt.NDArray[np.void]
    errors: list[str]
    elapsed_s: float
    effort: Effort
    start_ns: int
    interrupted: bool = False
    virtual_ns: npt.NDArray[np.int64] | None = None
    gaps: tuple[str, ...] = ()
    stopped_by: str = ""
    found: str = ""

    def evidence(self, plan: Plan, schedule_us: npt.NDArray[np.int64] | None) -> Evidence:
        """The evidence of a plan, before anything was seen of the accounts."""
        records, target = self.records, plan.target
        for where in stretches(len(records)):
            for column in ("sent_ns", "answered_ns"):
                records[column][where] -= records[column][where] % 1000
        return Evidence(
            workload=plan.workload,
            slot_prefix=plan.slot_prefix,
            fresh=plan.fresh,
            embedded=plan.embedded,
            endpoint=EMBEDDED if plan.embedded else target.endpoint,
            project=target.project,
            records=records,
            errors=self.errors,
            answers=tally(plan.workload.kind, records, self.errors),
            schedule_us=schedule_us,
            virtual_ns=self.virtual_ns,
            start_ns=self.start_ns,
            elapsed_s=self.elapsed_s,
            interrupted=self.interrupted,
            unsent=len(plan.workload) - len(records),
            gaps=self.gaps,
            command=plan.command,
            quirks=target.quirks,
        )


def drive(
    plan: Plan,
    assignment: Assignment,
    on_progress: Callable[[Progress], None],
    *,
    wiring: Wiring,
    observer: Observer | None = None,
    faults: SetFaults | None = None,
    live: LivePage | None = None,
    ahead: Ahead | None = None,
) -> Replayed:
    """Replay by the driver that a plan needs; Ctrl-C and SIGTERM end the replay, and what was sent is kept.

    Args:
        plan: what is replayed.
        assignment: of the whole workload.
        on_progress: called about twenty times a second.
        wiring: the clock, and the way to the target.
        observer: of the fake whose clock is moved, in virtual time.
        faults: those that are set; None for none.
        live: the page that shows the replay; None for none, as in virtual time.
        ahead: judges meanwhile; None if nobody does.

    Raises:
        CpsimError: the target cannot be reached, or a process of the replay failed.
    """
    watch = BreachWatch(plan, assignment.schedule_us)
    timed_faults, set_s = (None, None) if faults is None else (faults.timed, faults.since_s)

    def report_progress(progress: Progress) -> None:
        on_progress(progress)
        has_found = ahead is not None and ahead.look(journals, replay.start_ns)
        if progress.elapsed_s > plan.stop_after_s or watch.look() or has_found:
            replay.stop()
        for journal in journals:
            journal.flush()  # what the run folder has of it is all that is left of a run that is killed
        if live is not None:
            since_s = 0.0 if set_s is None else set_s - replay.start_ns / 1e9
            live.flush(journals, since_s, "" if ahead is None else ahead.text)

    replay: Processes | Engine
    kept = [] if plan.folder is None else journals_in(plan.folder, plan.processes)
    if plan.processes > 1:
        with Processes(assignment, plan.processes, report_progress, kept) as replayers:
            replay, journals = replayers, replayers.journals
            watch.follow(journals, replayers.operations)
            _follow(journals, live, ahead)
            with _interrupting(replayers.stop) as interrupts, wiring.follow(replayers.parts()):
                elapsed_s, records, errors = replayers.run()
            effort, start_ns = replayers.effort(), replayers.start_ns
            return Replayed(records, errors, elapsed_s, effort, start_ns, bool(interrupts), stopped_by=watch.broken)
    sender = wiring.sender(assignment, report_progress, *kept)
    follow = wiring.follow([(sender.journal, assignment.workload)])
    with sender, _interrupting(sender.engine.stop) as interrupts, follow, undisturbed():
        engine, journal = sender.engine, sender.journal
        replay, journals = engine, [journal]
        watch.follow(journals, [assignment.ops])
        _follow(journals, live, ahead)
        if isinstance(plan.pace, Virtual):
            assert observer is not None
            elapsed_s, virtual_ns = replay_in_virtual_time(
                engine, assignment, observer, timed_faults, wiring.clock, on_chunk=journal.upto
            )
        else:
            elapsed_s, virtual_ns = engine.run(assignment.operations(journal.upto)), None
        records = journal.records()
        effort, errors, start_ns = engine.effort(elapsed_s), journal.errors, engine.start_ns
        return Replayed(
            records, errors, elapsed_s, effort, start_ns, bool(interrupts), virtual_ns, stopped_by=watch.broken
        )


def _follow(journals: Sequence[Journal], *followers: Follower | None) -> None:
    for follower in followers:
        if follower is not None:
            follower.follow(journals)


@contextlib.contextmanager
def _interrupting(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Make Ctrl-C and SIGTERM end the replay but not the run, while the context lasts; yields those that came."""
    came: list[int] = []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        stop()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
