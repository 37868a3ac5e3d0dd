"""The result of a load: one journal of all workers, one verdict, one run folder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
import numpy as np

from cpsim.accounts.observer import Observer
from cpsim.clock import Clock, SystemClock
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome, merged
from cpsim.load.aside import aside
from cpsim.load.judging import by_workers
from cpsim.load.share import WorkersShare, partitions_of
from cpsim.replay.engine import joint_effort
from cpsim.replay.failures import LOST
from cpsim.run.drivers import Replayed
from cpsim.run.folder import write
from cpsim.run.observing import conclude as judge
from cpsim.run.pipeline import ApplyDelay, Run
from cpsim.run.results import results_of
from cpsim.run.summary import show, summarise
from cpsim.ui.terminal import printed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from rich.console import Console

    from cpsim.accounts.view import View
    from cpsim.config.thresholds import Threshold
    from cpsim.evidence.evidence import Imbalance
    from cpsim.load.master import Share
    from cpsim.replay.assignment import Assignment
    from cpsim.run.folder import OutputFolder
    from cpsim.run.plan import Plan
    from cpsim.ui.results import ResultFiles


class _GreenletClock(SystemClock):
    """The machine's clock; while one greenlet sleeps, Locust's others run."""

    sleep = staticmethod(gevent.sleep)


class _Observer(Observer):
    """Reads accounts in a thread, while greenlets run."""

    def view(self) -> View:
        """What the control API shows of the accounts."""
        return aside(super().view)


CLOCK: Final[Clock] = _GreenletClock()


def joined(plan: Plan, shares: Sequence[Share], start_ns: int, *, interrupted: bool, failure: str | None) -> Replayed:
    """What the workers leave, joined.

    Args:
        plan: of the whole load.
        shares: the reports of each worker.
        start_ns: start of the replay in monotonic time.
        interrupted: whether the load was ended before its end.
        failure: why it failed; None if it did not.
    """
    records, errors = _journal(plan.assignment(), shares)
    gaps = []
    lost = [share.worker for share in shares if share.lost and share.begun]
    if lost:
        gaps.append(f"Operations of {', '.join(lost)}: lost in the middle of the replay.")
    if failure is not None:
        gaps.append(f"Operations that were not sent, because the run failed: {failure}.")
    return Replayed(
        records,
        errors,
        max(share.seconds() for share in shares),
        joint_effort(share.effort for share in shares),
        start_ns,
        interrupted=interrupted or any(share.interrupted for share in shares),
        gaps=tuple(gaps),
    )


def observer_of(plan: Plan) -> Observer | None:
    """Who reads the accounts of a plan's server; None if there is none to observe."""
    target = plan.target
    if target.server is None or target.credentials is None:
        return None
    return _Observer(target.server, target.credentials, plan.timeout_s, CLOCK)


def conclude(
    plan: Plan,
    replayed: Replayed,
    thresholds: Sequence[Threshold],
    output: OutputFolder,
    *,
    before: tuple[Imbalance, ...] | None,
    files: ResultFiles,
    tell: Callable[[Callable[[Console], None]], None],
    shares: Sequence[Share],
    ask: Callable[..., Any],
) -> int:
    """Judge a load, write its run folder, and tell its summary; returns the exit status.

    Args:
        plan: what was replayed.
        replayed: what came of it.
        thresholds: to check.
        output: takes the files.
        before: the sums of accounts that did not agree before; None if nobody looked.
        files: take the results.
        tell: called with a function that prints the summary.
        shares: of the workers.
        ask: asks who has a share, see `by_workers`.

    Raises:
        NotWritten: a file of the run folder cannot be written; the summary is told nevertheless.
    """
    evidence = replace(
        replayed.evidence(plan, plan.assignment().schedule_us),
        before=before,
        in_parts=partitions_of(len(plan.workload), len(shares)),
        clock_unknown="it is not measured under Locust, where each worker has its own clock",
    )
    for share in shares:
        if share.lost:
            share.own = WorkersShare(evidence)
    judged = partial(by_workers, shares, ask)
    observer, source = observer_of(plan), plan.target.accounts
    evidence, verdict = judge(evidence, observer, plan.timeout_s, CLOCK, source=source, judged=judged)
    delay, ended = ApplyDelay.of(evidence), (replayed.stopped_by, replayed.found)
    result = Run(plan, evidence, replayed.effort, verdict, delay, 0.0, *ended)
    summary = summarise(result)
    summary.check(thresholds)

    def say(console: Console) -> None:
        show(result, summary, console)
        if output.is_whole:
            console.print(f"run folder    {output.path}", highlight=False, markup=False)

    files.add(lambda: results_of(verdict, printed(partial(show, result, summary)), summary.checked))
    try:
        write(result, summary, output)
    finally:
        tell(say)
    return {"valid": 0, "invalid": 1, "unknown": 2}[verdict.ruling] if summary.holds else 1


def _journal(whole: Assignment, shares: Sequence[Share]) -> tuple[npt.NDArray[np.void], list[str]]:
    """The merged records of all workers; operations that a lost worker may have sent are unknown."""
    parts = []
    for share in shares:
        records, errors = share.table(), share.errors
        if share.lost and share.begun:
            part = whole.part(share.index, len(shares))
            records = np.concatenate([records, _missing(part, records, len(errors))])
            errors = [*errors, LOST]
        parts.append((records, errors, share.ops))
    return merged(parts)


def _missing(part: Assignment, known: npt.NDArray[np.void], code: int) -> npt.NDArray[np.void]:
    """Records of unreported operations: each may have been sent after the previous one of its slot was answered."""
    heard = np.zeros(len(part.ops), bool)
    heard[known["op"]] = True
    answered_ns = np.zeros(int(part.workload.slot.max(initial=0)) + 1, np.int64)
    np.maximum.at(answered_ns, part.workload.slot[known["op"]], known["answered_ns"])
    missing = np.zeros(int(np.count_nonzero(~heard)), RECORD_TYPE)
    missing["op"] = np.flatnonzero(~heard)
    missing["outcome"], missing["error"] = OperationOutcome.UNKNOWN, code
    missing["sent_ns"] = answered_ns[part.workload.slot[missing["op"]]]
    missing["answered_ns"] = max(int(known["answered_ns"].max(initial=0)), int(missing["sent_ns"].max(initial=0))) + 1
    return missing
