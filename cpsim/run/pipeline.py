"""The main job: replay a workload at an endpoint, observe the accounts, and judge."""

from __future__ import annotations

import contextlib
import math
import resource
import secrets
import signal
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpdaemon.commands import Discard
from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import InvalidCommand
from cpsim.accounts.observer import CannotObserve, Observer
from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError, UsageError
from cpsim.evidence.journal import RECORD_TYPE, Journal
from cpsim.fake import FakeProcess
from cpsim.faults.spec import Fault
from cpsim.judge.apply_delay import ClockWatch, apply_delays_ns
from cpsim.judge.clock_offset import NotComparable
from cpsim.judge.verdict import Verdict
from cpsim.replay.assignment import Assignment
from cpsim.replay.engine import Effort, Engine
from cpsim.replay.pace import Users, Virtual
from cpsim.replay.processes import Processes
from cpsim.replay.wires.connect import open_wire
from cpsim.run.faults import faults_during
from cpsim.run.judging import judge
from cpsim.run.virtual import replay as replay_in_virtual_time
from cpsim.system.process import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from cpdaemon.endpoint import Endpoint
    from cpsim.clock import Clock
    from cpsim.metrics.progress import Progress
    from cpsim.replay.pace import Pace
    from cpsim.replay.wires.wire import Wire
    from cpsim.run.faults import TimedFaults
    from cpsim.scenario.workload import Workload

EMBEDDED_PROJECT: Final = "cpsim"
PREFIX_BYTES: Final = 80
"""Most bytes of a slot prefix: workloads are checked for slot ids of up to a hundred bytes."""
OTHER_FILES: Final = 64
"""Open files that a run needs in addition to its connections."""


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """The endpoint of a replay, and the server whose accounts are observed.

    Attributes:
        endpoint: a daemon or a server.
        server: the server whose accounts show what was applied; None if there is none to observe.
        credentials: (project id, secret) at the server.
        lanes: the daemon of each site, if the workload has several sites; they replace the endpoint.
    """

    endpoint: Endpoint
    server: UrlEndpoint | None = None
    credentials: tuple[str, str] | None = None
    lanes: tuple[UnixEndpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Wiring:
    """The clock of a run, and how a replay in this process reaches its target.

    Attributes:
        clock: of the replay, the waits for its effect, and the comparison with the server's clock.
        connect: opens a wire; it takes what `open_wire` takes, and raises what it raises.
    """

    clock: Clock = SYSTEM_CLOCK
    connect: Callable[..., Wire] = open_wire


@dataclass(slots=True)
class Run:
    """A run and its results. Times are nanoseconds since the replay began.

    `schedule_us` is when each operation was due, `virtual_ns` when it was sent in virtual time; each None if unused.
    `fresh` says that no other run uses the slot prefix; `command` is the command line that repeats the run.
    `effort` is the cost of sending. `apply_delay_ns` is the time from each command's answer to its application, within
    `apply_delay_uncertainty_ns`; if it is unknown, `apply_delay_unknown` says why.
    `faults` are the faults set during the replay with their counts, and `firings` each firing of one; if they could not
    be read back, `faults_unknown` says why.
    """

    workload: Workload
    target: ReplayTarget
    embedded: bool
    pace: Pace
    slot_prefix: str
    fresh: bool
    started: datetime
    elapsed_s: float = 0.0
    interrupted: bool = False
    schedule_us: npt.NDArray[np.int64] | None = None
    virtual_ns: npt.NDArray[np.int64] | None = None
    records: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, RECORD_TYPE))
    errors: list[str] = field(default_factory=list)
    effort: Effort = field(default_factory=lambda: Effort(0.0, {}))
    faults: list[dict[str, Any]] = field(default_factory=list)
    firings: list[dict[str, Any]] = field(default_factory=list)
    faults_unknown: str = ""
    slots: pa.Table | None = None
    accounts: pa.Table | None = None
    apply_delay_ns: npt.NDArray[np.int64] | None = None
    apply_delay_uncertainty_ns: float = 0.0
    apply_delay_unknown: str = ""
    verdict: Verdict = field(default_factory=Verdict)
    command: str = ""

    def links(self) -> dict[str, str]:
        """The owner of each of the workload's machines that has one."""
        machines, users = self.workload.machines, self.workload.users
        return {machines[m]: users[u] for m, u in enumerate(self.workload.owner.tolist()) if u >= 0}


def run(
    load: Callable[[], Workload],
    target: ReplayTarget | None,
    pace: Pace,
    *,
    in_flight: int,
    timeout_s: float,
    processes: int = 1,
    slot_prefix: str | None,
    faults: Sequence[str] = (),
    stop_after_s: float = math.inf,
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
    wiring: Wiring = Wiring(),
) -> Run:
    """Replay a workload at a target, and judge the result.

    Args:
        load: makes the workload; called while an embedded fake starts up.
        target: the endpoint; None embeds a fake in a process of its own.
        pace: when operations are due.
        in_flight: most operations in flight at once; with `Users`, their number instead.
        timeout_s: seconds to wait for an answer, and for a command to be applied.
        processes: number of processes that replay; they divide the slots among them.
        slot_prefix: prefix of slot ids; None makes one that no earlier run has used.
        faults: faults during the replay in addition to the workload's, in the text form of `cpsim faults`.
        stop_after_s: seconds after which the replay ends, complete or not.
        on_stage: called with a description of the current stage.
        on_progress: called with the number of operations planned, and the replay's progress.
        wiring: the clock, and the way to the target.

    Raises:
        CannotObserve, OSError: the target or its server cannot be reached.
        CpsimError: the embedded fake did not start; the target has no virtual time; the system does not allow as many
            open files; or there are faults and no fake to take them.
        InvalidCommand: the slot prefix is no valid slot id.
    """
    if slot_prefix is not None:
        check_prefix(slot_prefix)
    if isinstance(pace, Virtual):
        check_virtual(target, processes)
    if isinstance(pace, Users):
        in_flight = pace.number
    _allow_open_files(in_flight + OTHER_FILES)
    with _embedded() if target is None else contextlib.nullcontext(lambda *_: target) as locate:
        on_stage("making the workload")
        workload = load()
        faults = [*workload.faults, *faults]
        started = datetime.now(UTC)
        result = Run(
            workload=workload,
            target=locate(workload.sites, faults),
            embedded=target is None,
            pace=pace,
            slot_prefix=slot_prefix or _fresh_prefix(workload, started, embedded=target is None),
            fresh=slot_prefix is None or target is None,
            started=started,
        )
        assignment = _assignment(result, in_flight, timeout_s)
        observer = _reach(result.target, assignment, wiring)
        if observer is not None and result.embedded and not workload.link_after:
            observer.control.link(list(result.links().items()))
        on_stage("replaying")
        with ClockWatch(None if isinstance(pace, Virtual) else observer, wiring.clock) as watch:
            with faults_during(result, observer, faults, timeout_s, wiring.clock) as timed_faults:
                start = _replay(
                    result,
                    observer,
                    assignment,
                    timed_faults=timed_faults,
                    processes=processes,
                    stop_after_s=stop_after_s,
                    on_progress=lambda progress: on_progress(len(workload), progress),
                    wiring=wiring,
                )
            if observer is not None and result.embedded and workload.link_after:
                observer.control.link(list(result.links().items()))
            on_stage("verifying")
            judge(result, observer, start, timeout_s, wiring.clock)
            _measure_apply_delay(result, watch, start)
        return result


def _measure_apply_delay(result: Run, watch: ClockWatch, start_ns: int) -> None:
    """Set a run's apply delay, or why it is unknown."""
    if isinstance(result.pace, Virtual):
        result.apply_delay_unknown = "the server's clock is virtual, and jumps from step to step"
        return
    project = result.target.credentials and result.target.credentials[0]
    try:
        delays = apply_delays_ns(result, project, watch.readings(), start_ns)
        result.apply_delay_ns, result.apply_delay_uncertainty_ns = delays
    except (NotComparable, CannotObserve) as error:  # the verdict stands: only this figure is missing
        result.apply_delay_unknown = str(error)


def check_virtual(target: ReplayTarget | None, processes: int) -> None:
    """Raise UsageError if the target or the processes rule out virtual time."""
    if target is not None:
        raise UsageError("only the embedded fake has virtual time: leave out --target, or --virtual")
    if processes > 1:
        raise UsageError("virtual time needs a single process: leave out --processes, or --virtual")


def _assignment(result: Run, in_flight: int, timeout_s: float) -> Assignment:
    """The assignment of the whole workload."""
    workload, pace, target = result.workload, result.pace, result.target
    return Assignment(
        workload=workload,
        ops=np.arange(len(workload)),
        schedule_us=pace.schedule(workload.due_us),
        slot_prefix=result.slot_prefix,
        endpoint=target.endpoint,
        credentials=target.credentials,
        in_flight=in_flight,
        timeout_s=timeout_s,
        think_s=pace.think_s if isinstance(pace, Users) else 0.0,
        lanes=target.lanes,
    )


@contextlib.contextmanager
def _embedded() -> Iterator[Callable[[Sequence[str], Sequence[str]], ReplayTarget]]:
    """Start a fake in a process of its own.

    Yields:
        A function that makes the fake serve, with a daemon for each site, and with a store if a fault crashes it;
        returns the target.
    """
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="cpsim-") as name, FakeProcess() as process:
        folder = Path(name)

        def locate(sites: Sequence[str], faults: Sequence[str]) -> ReplayTarget:
            crashes = any(Fault.parse(text).crashes for text in faults)
            lanes = [folder / f"site-{index}.sock" for index in range(len(sites))]
            addresses = process.serve(
                dict.fromkeys([EMBEDDED_PROJECT, *sites], secret),
                folder / "daemon.sock",
                sites=zip(sites, lanes, strict=True),
                store=folder / "store.db" if crashes else None,
            )
            server = parse_endpoint(addresses["http"])
            assert isinstance(server, UrlEndpoint)
            return ReplayTarget(
                UnixEndpoint(addresses["unix"]),
                server,
                (EMBEDDED_PROJECT, secret),
                tuple(UnixEndpoint(str(lane)) for lane in lanes),
            )

        yield locate


def check_prefix(slot_prefix: str) -> None:
    """Raise InvalidCommand if slot ids cannot have this prefix."""
    Discard(slot_prefix)
    size = len(slot_prefix.encode())
    if size > PREFIX_BYTES:
        raise InvalidCommand(f"the slot prefix has {size} bytes: at most {PREFIX_BYTES} leave room for the rest")


def _fresh_prefix(workload: Workload, started: datetime, *, embedded: bool) -> str:
    suffix = "" if embedded else f"-{started:%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
    return workload.name.encode()[: PREFIX_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process and its children, if it is too low."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or count <= limit:
        return
    if highest != resource.RLIM_INFINITY and count > highest:
        raise CpsimError(
            f"{count:,} files would be open at once, and this system allows {highest:,}: lower --in-flight, or raise "
            "the limit with ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, highest))


def _reach(target: ReplayTarget, assignment: Assignment, wiring: Wiring) -> Observer | None:
    """Check that the target is reachable before any fault is set; returns the observer of its accounts, if any."""
    observer = None
    if target.server is not None and target.credentials is not None:
        observer = Observer(target.server, target.credentials, assignment.timeout_s, wiring.clock)
        observer.outstanding()
    wiring.connect(assignment.endpoint, assignment.timeout_s, assignment.in_flight, assignment.lanes).close()
    return observer


def _replay(
    result: Run,
    observer: Observer | None,
    assignment: Assignment,
    *,
    timed_faults: TimedFaults | None,
    processes: int,
    stop_after_s: float,
    on_progress: Callable[[Progress], None],
    wiring: Wiring,
) -> int:
    """Replay, and set the results in the run; returns its start in monotonic time, in nanoseconds."""
    result.schedule_us = assignment.schedule_us

    def report_progress(progress: Progress) -> None:
        on_progress(progress)
        if progress.elapsed_s > stop_after_s:
            stop()

    if processes > 1:
        with Processes(assignment, processes, report_progress) as replayers:
            stop = replayers.stop
            with _interrupting(result, stop):
                result.elapsed_s, result.records, result.errors = replayers.run()
                result.effort = replayers.effort()
            return replayers.start_ns
    wire = wiring.connect(
        assignment.endpoint, assignment.timeout_s, assignment.in_flight, assignment.lanes, was_reached=True
    )
    journal = Journal()
    engine = Engine(
        wire,
        journal,
        in_flight=assignment.in_flight,
        timeout_s=assignment.timeout_s,
        think_s=assignment.think_s,
        on_progress=report_progress,
        clock=wiring.clock,
    )
    stop = engine.stop
    try:
        with _interrupting(result, stop), undisturbed():
            if isinstance(result.pace, Virtual):
                assert observer is not None
                virtual = replay_in_virtual_time(engine, assignment, observer, timed_faults, wiring.clock)
                result.elapsed_s, result.virtual_ns, shift_ns = virtual
                result.records = journal.records()
                for column in ("sent_ns", "answered_ns"):
                    result.records[column] += shift_ns[result.records["op"]]
            else:
                result.elapsed_s = engine.run(assignment.operations())
                result.records = journal.records()
            result.errors = journal.errors
            result.effort = engine.effort(result.elapsed_s)
    finally:
        journal.close()
        wire.close()
    return engine.start_ns


@contextlib.contextmanager
def _interrupting(result: Run, stop: Callable[[], None]) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end the replay but not the run, while the context lasts."""

    def interrupt(*_: object) -> None:
        result.interrupted = True
        stop()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
