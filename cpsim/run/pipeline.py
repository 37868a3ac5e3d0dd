"""The main job: replay a workload at an endpoint, observe the accounts, and judge."""

from __future__ import annotations

import contextlib
import math
import resource
import secrets
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.commands import Discard
from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import InvalidCommand
from cpsim.accounts.observer import Observer
from cpsim.errors import CpsimError, UsageError
from cpsim.evidence import extensions
from cpsim.evidence.beginning import begin
from cpsim.evidence.evidence import links_of
from cpsim.evidence.journal import RECORD_TYPE
from cpsim.evidence.unfinished import CUT_SHORT
from cpsim.fake import FakeProcess
from cpsim.faults.spec import Fault
from cpsim.judge.apply_delay import apply_delays_ns
from cpsim.judge.clock_offset import NotComparable
from cpsim.judge.judge import checkers_of_others
from cpsim.replay.engine import Effort
from cpsim.replay.pace import Users, Virtual
from cpsim.run.clock_watch import ClockWatch
from cpsim.run.drivers import Replayed, Wiring, drive
from cpsim.run.faults import faults_during
from cpsim.run.observing import conclude, imbalances_before
from cpsim.run.plan import Plan, ReplayTarget
from cpsim.system.mapped import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from cpsim.config.thresholds import Threshold
    from cpsim.evidence.evidence import Evidence, Imbalance
    from cpsim.judge.judge import Checker
    from cpsim.judge.verdict import Verdict
    from cpsim.metrics.progress import Progress
    from cpsim.replay.assignment import Assignment
    from cpsim.replay.pace import Pace
    from cpsim.run.ahead import Ahead
    from cpsim.run.live import LivePage
    from cpsim.scenario.workload import Workload

EMBEDDED_PROJECT: Final = "cpsim"
PREFIX_BYTES: Final = 80
"""Most bytes of a slot prefix: workloads are checked for slot ids of up to a hundred bytes."""
OTHER_FILES: Final = 64
"""Open files that a run needs in addition to its connections."""


@dataclass(frozen=True, slots=True)
class ApplyDelay:
    """The time from each command's answer to its application.

    Attributes:
        delays_ns: int64, in no order; None if unknown.
        answered_ns: int64, when each of these commands was answered, since the replay began; None likewise.
        uncertainty_ns: the largest error of one.
        unknown: why they are unknown; "" if they are known.
    """

    delays_ns: npt.NDArray[np.int64] | None = None
    answered_ns: npt.NDArray[np.int64] | None = None
    uncertainty_ns: float = 0.0
    unknown: str = ""

    @classmethod
    def of(cls, evidence: Evidence) -> ApplyDelay:
        """The apply delays that the evidence shows."""
        if evidence.virtual_ns is not None:
            return cls(unknown="the server's clock is virtual, and jumps from step to step")
        if evidence.clock_unknown:
            return cls(unknown=evidence.clock_unknown)
        try:
            return cls(*apply_delays_ns(evidence))
        except NotComparable as error:  # the verdict stands: only this figure is missing
            return cls(unknown=str(error))


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run that has ended.

    Attributes:
        plan: what was to be done.
        evidence: what was sent, answered and seen.
        effort: the cost of sending.
        verdict: on the evidence.
        apply_delay: by the evidence.
        faults_since_s: the time from which the faults' times count, in seconds since the replay began.
        stopped_by: the assert that ended the replay; "" if none did.
        found: the finding that ended the replay; "" if none did.
    """

    plan: Plan
    evidence: Evidence
    effort: Effort
    verdict: Verdict
    apply_delay: ApplyDelay
    faults_since_s: float = 0.0
    stopped_by: str = ""
    found: str = ""


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
    warm_up_s: float = 0.0,
    stop_on: Sequence[Threshold] = (),
    command: Callable[[int], str] = lambda _: "",
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
    wiring: Wiring = Wiring(),  # noqa: B008 - it cannot be changed
    checkers: Sequence[Checker] | None = None,
    live: LivePage | None = None,
    folder: Path | None = None,
    ahead: Ahead | None = None,
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
        warm_up_s: seconds at the beginning of the replay that the figures leave out.
        stop_on: asserts of which the first that is broken ends the replay.
        command: the command line that repeats the run, for the seed of its workload.
        on_stage: called with a description of the current stage.
        on_progress: called with the number of operations planned, and the replay's progress.
        wiring: the clock, and the way to the target.
        checkers: checkers beside the product's own; None takes those that are installed.
        live: shows the run while it goes on; not in virtual time.
        ahead: judges slots while they are sent, as far as that can be.
        folder: has the evidence while the run lasts, so that it can be judged if the run is cut short; None for none.

    Raises:
        CannotObserve, OSError: the target or its server cannot be reached.
        CpsimError: the embedded fake did not start; the target has no virtual time; the system does not allow as many
            open files; there are faults and no fake to take them; or something that is installed cannot be loaded.
        InvalidCommand: the slot prefix is no valid slot id.
    """
    if slot_prefix is not None:
        check_prefix(slot_prefix)
    if isinstance(pace, Virtual):
        check_virtual(target, processes)
    if isinstance(pace, Users):
        in_flight = pace.number
    _allow_open_files(in_flight + OTHER_FILES)
    extensions.check()
    checkers = checkers_of_others() if checkers is None else checkers
    with _embedded() if target is None else contextlib.nullcontext(lambda *_: target) as locate:
        on_stage("making the workload")
        workload = load()
        give_back()
        if workload.slot_ids and slot_prefix is not None:
            raise UsageError(f"{workload.name} keeps the ids of its slots, and takes no --slot-prefix")
        faults = [*workload.faults, *faults]
        started = datetime.now(UTC)
        plan = Plan(
            workload=workload,
            target=locate(workload.sites, faults),
            pace=pace,
            slot_prefix=slot_prefix or fresh_prefix(workload, started, embedded=target is None),
            started=started,
            in_flight=in_flight,
            timeout_s=timeout_s,
            embedded=target is None,
            fresh=target is None or (slot_prefix is None and not workload.slot_ids),
            processes=processes,
            stop_after_s=stop_after_s,
            warm_up_s=warm_up_s,
            stop_on=tuple(stop_on),
            command=command(workload.seed),
            folder=folder,
        )
        return _perform(
            plan,
            faults,
            wiring,
            on_stage=on_stage,
            on_progress=lambda progress: on_progress(len(workload), progress),
            checkers=checkers,
            live=live,
            ahead=ahead,
        )


def _perform(
    plan: Plan,
    faults: Sequence[str],
    wiring: Wiring,
    *,
    on_stage: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    checkers: Sequence[Checker],
    live: LivePage | None,
    ahead: Ahead | None,
) -> Run:
    """Replay, with the faults, and conclude."""
    assignment = plan.assignment()
    if plan.target.accounts is not None:
        on_stage(f"looking{_where(plan)}")
    observer = _reach(plan, wiring)
    before = () if plan.embedded else imbalances_before(observer, plan.target.accounts, plan.timeout_s)
    wiring.connect(assignment.endpoint, assignment.timeout_s, assignment.in_flight, assignment.lanes).close()
    fake = observer if plan.embedded else None
    links = list(links_of(plan.workload).items())
    if fake is not None and not plan.workload.link_after:
        fake.control.link(links)
    if plan.folder is not None:
        on_stage("writing the workload")
        begin(_evidence_before(plan, assignment, before, faults), plan.folder, plan.processes)
        give_back()
    if live is not None:
        live.begin(plan, faults)
    if ahead is not None:
        ahead.begin(plan, observer)
    on_stage("replaying")
    with ClockWatch(None if isinstance(plan.pace, Virtual) else observer, wiring.clock) as watch:
        with faults_during(plan, observer, faults, wiring.clock) as set_faults:
            replayed = drive(
                plan,
                assignment,
                on_progress,
                wiring=wiring,
                observer=observer,
                faults=set_faults,
                live=live,
                ahead=ahead,
            )
        if ahead is not None:
            replayed = replayed._replace(found=ahead.stopped_by)
        if fake is not None and plan.workload.link_after:
            fake.control.link(links)
        on_stage(f"verifying{_where(plan)}")
        evidence = replace(replayed.evidence(plan, assignment.schedule_us), before=before, **set_faults.found)
        give_back()
        evidence, verdict = conclude(
            evidence, observer, plan.timeout_s, wiring.clock, checkers, source=plan.target.accounts
        )
        evidence = replace(evidence, **watch.found())
        give_back()
    faults_since_s = 0.0 if set_faults.since_s is None else set_faults.since_s - evidence.start_ns / 1e9
    delay, ended = ApplyDelay.of(evidence), (replayed.stopped_by, replayed.found)
    return Run(plan, evidence, replayed.effort, verdict, delay, faults_since_s, *ended)


def _evidence_before(
    plan: Plan, assignment: Assignment, before: tuple[Imbalance, ...] | None, faults: Sequence[str]
) -> Evidence:
    """The evidence of a replay that has not begun."""
    nothing = Replayed(np.empty(0, RECORD_TYPE), [""], 0.0, Effort(0.0, {}), 0)
    return replace(
        nothing.evidence(plan, assignment.schedule_us),
        virtual_ns=np.empty(0, np.int64) if isinstance(plan.pace, Virtual) else None,
        before=before,
        clock_unknown=CUT_SHORT,
        faults_unknown=CUT_SHORT if faults else "",
        unseen="" if plan.target.project is None else f"{CUT_SHORT}, and nobody has looked at the accounts",
    )


def check_virtual(target: ReplayTarget | None, processes: int) -> None:
    """Raise UsageError if the target or the processes rule out virtual time."""
    if target is not None:
        raise UsageError("only the embedded fake has virtual time: leave out --target, or --virtual")
    if processes > 1:
        raise UsageError("virtual time needs a single process: leave out --processes, or --virtual")


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


def fresh_prefix(workload: Workload, started: datetime, *, embedded: bool) -> str:
    """A slot prefix that no earlier run has used; the workload's name, for a fake that has no earlier runs."""
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


def _reach(plan: Plan, wiring: Wiring) -> Observer | None:
    """Check that the server is reachable before any fault is set; returns the observer of its accounts, if any."""
    target = plan.target
    if target.server is None or target.credentials is None:
        return None
    observer = Observer(target.server, target.credentials, plan.timeout_s, wiring.clock)
    observer.outstanding()
    return observer


def _where(plan: Plan) -> str:
    """Where the accounts are, for the name of a stage."""
    return "" if plan.target.accounts is None else f" in {plan.target.accounts}"
