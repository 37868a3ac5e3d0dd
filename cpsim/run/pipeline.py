"""The main job: a workload replayed at an endpoint, the effect observed, judged, and written down."""

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
from cpsim.run.judging import judge
from cpsim.run.outages import failing
from cpsim.run.virtual import replay as replay_in_virtual_time
from cpsim.system.process import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from cpdaemon.endpoint import Endpoint
    from cpsim.metrics.progress import Progress
    from cpsim.replay.pace import Pace
    from cpsim.run.outages import Outages
    from cpsim.scenario.workload import Workload

EMBEDDED_PROJECT: Final = "cpsim"
PREFIX_BYTES: Final = 80
"""The longest slot prefix: workloads are checked for slot ids of up to a hundred bytes."""
FILES_BESIDE: Final = 64
"""Open files that a run needs beside its connections."""


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """Where to replay, and where to look.

    Attributes:
        endpoint: a daemon or a server.
        server: the server whose accounts show the effect, if there is one to look at.
        credentials: (project id, secret) at that server.
        lanes: the daemon of each site of the workload, where it has several; they stand for the endpoint then.
    """

    endpoint: Endpoint
    server: UrlEndpoint | None = None
    credentials: tuple[str, str] | None = None
    lanes: tuple[UnixEndpoint, ...] = ()


@dataclass(slots=True)
class Run:
    """One run and all that came of it. Times are nanoseconds since the replay began.

    `schedule_us` says when each operation was due, `virtual_ns` when it was sent in virtual time, where there are such.
    `fresh` says that no other run has slot ids that begin like these; `command` is the command line that repeats it.
    `effort` is what sending cost, and `effect_ns` how long after its answer each command was applied, to within
    `effect_uncertainty_ns`; where that is not known, `effect_unknown` says why.
    `faults` are those that were set meanwhile and what came of each, and `firings` each time that one came to pass.
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
    slots: pa.Table | None = None
    accounts: pa.Table | None = None
    effect_ns: npt.NDArray[np.int64] | None = None
    effect_uncertainty_ns: float = 0.0
    effect_unknown: str = ""
    verdict: Verdict = field(default_factory=Verdict)
    command: str = ""

    def links(self) -> dict[str, str]:
        """Machine to user, of the workload's machines that have one."""
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
) -> Run:
    """Replay a workload at a target and judge the effect.

    Args:
        load: makes the workload; called while an embedded fake starts up.
        target: where to; None embeds a fake in a process of its own.
        pace: when operations are due.
        in_flight: operations under way at once; users are in flight one each.
        timeout_s: for one operation, and for its effect to show.
        processes: that replay, each its own slots.
        slot_prefix: begins the ids of the slots; None makes one that no earlier run has used.
        faults: what goes wrong during the replay beside what the workload says, as `cpsim faults` has it.
        stop_after_s: the replay ends then, whatever is left to send.
        on_stage: told what is being done, in words.
        on_progress: told the number of operations in all, and how far the replay is.

    Raises:
        CannotObserve, OSError: the target cannot be reached or looked at.
        CpsimError: the embedded fake did not start, or is none whose time could be virtual; so many operations cannot
            be in flight here; or there are faults and no fake to have them.
        InvalidCommand: the slot prefix cannot be in a command.
    """
    if slot_prefix is not None:
        check_prefix(slot_prefix)
    if isinstance(pace, Virtual):
        check_virtual(target, processes)
    if isinstance(pace, Users):
        in_flight = pace.number
    _allow_open_files(in_flight + FILES_BESIDE)
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
        observer = _reach(result.target, assignment)
        if observer is not None and result.embedded and not workload.link_after:
            observer.link(list(result.links().items()))
        on_stage("replaying")
        with ClockWatch(None if isinstance(pace, Virtual) else observer) as watch:
            with failing(result, observer, faults, timeout_s) as outages:
                start = _replay(
                    result,
                    observer,
                    assignment,
                    outages=outages,
                    processes=processes,
                    stop_after_s=stop_after_s,
                    on_progress=lambda progress: on_progress(len(workload), progress),
                )
            if observer is not None and result.embedded and workload.link_after:
                observer.link(list(result.links().items()))
            on_stage("verifying")
            judge(result, observer, start, timeout_s)
            _measure_effect(result, watch, start)
        return result


def _measure_effect(result: Run, watch: ClockWatch, start: int) -> None:
    """Put into a run how long after its answer each command was applied, or why that is not known."""
    if isinstance(result.pace, Virtual):
        result.effect_unknown = "the server's clock is virtual, and jumps from one moment of the scenario to the next"
        return
    project = result.target.credentials and result.target.credentials[0]
    try:
        result.effect_ns, result.effect_uncertainty_ns = apply_delays_ns(result, project, watch.readings(), start)
    except (NotComparable, CannotObserve) as error:  # the run is judged: what is amiss now costs a figure alone
        result.effect_unknown = str(error)


def check_virtual(target: ReplayTarget | None, processes: int) -> None:
    """Raise UsageError if time cannot be virtual."""
    if target is not None:
        raise UsageError("only an embedded CreditPiggy lives in virtual time: leave out --target, or --virtual")
    if processes > 1:
        raise UsageError("one process moves the clock in virtual time: leave out --processes, or --virtual")


def _assignment(result: Run, in_flight: int, timeout_s: float) -> Assignment:
    """All of the workload, for one engine or to be shared out."""
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
    """A fake in a process of its own, which starts up.

    Yields:
        A function that has it serve, with a daemon for each site, and be able to fail like this; returns where.
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
    """Raise InvalidCommand if slot ids cannot begin like this."""
    Discard(slot_prefix)
    size = len(slot_prefix.encode())
    if size > PREFIX_BYTES:
        raise InvalidCommand(f"the slot prefix has {size} bytes: at most {PREFIX_BYTES} leave room for the rest")


def _fresh_prefix(workload: Workload, started: datetime, *, embedded: bool) -> str:
    suffix = "" if embedded else f"-{started:%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
    return workload.name.encode()[: PREFIX_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, and so that of a process it starts, if it is too low."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or count <= limit:
        return
    if highest != resource.RLIM_INFINITY and count > highest:
        raise CpsimError(
            f"{count:,} files would be open at once, and this system allows {highest:,}: lower --in-flight, or raise "
            "the limit with ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, highest))


def _reach(target: ReplayTarget, assignment: Assignment) -> Observer | None:
    """See that the target is there, before anything is sent and a fault prevents it; who can look at its accounts."""
    observer = None
    if target.server is not None and target.credentials is not None:
        observer = Observer(target.server, target.credentials, assignment.timeout_s)
        observer.outstanding()
    open_wire(assignment.endpoint, assignment.timeout_s, assignment.in_flight, assignment.lanes).close()
    return observer


def _replay(
    result: Run,
    observer: Observer | None,
    assignment: Assignment,
    *,
    outages: Outages | None,
    processes: int,
    stop_after_s: float,
    on_progress: Callable[[Progress], None],
) -> int:
    """Replay, and put what came of it into the run; returns when it began, on the performance counter."""
    result.schedule_us = assignment.schedule_us

    def progressed(progress: Progress) -> None:
        on_progress(progress)
        if progress.elapsed_s > stop_after_s:
            stop()

    if processes > 1:
        with Processes(assignment, processes, progressed) as several:
            stop = several.stop
            with _interrupting(result, stop):
                result.elapsed_s, result.records, result.errors = several.run()
                result.effort = several.effort()
            return several.start_ns
    wire = open_wire(
        assignment.endpoint, assignment.timeout_s, assignment.in_flight, assignment.lanes, was_reached=True
    )
    journal = Journal()
    engine = Engine(
        wire,
        journal,
        in_flight=assignment.in_flight,
        timeout_s=assignment.timeout_s,
        think_s=assignment.think_s,
        on_progress=progressed,
    )
    stop = engine.stop
    try:
        with _interrupting(result, stop), undisturbed():
            if isinstance(result.pace, Virtual):
                assert observer is not None
                virtual = replay_in_virtual_time(engine, assignment, observer, outages)
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
    """Have Ctrl-C and SIGTERM end the replay, and not the run, while the context lasts."""

    def interrupt(*_: object) -> None:
        result.interrupted = True
        stop()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
