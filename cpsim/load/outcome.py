"""What became of a load as a whole: one journal of all workers, one verdict, one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim import run_folder
from cpsim.judging import judge
from cpsim.replay.engine import Effort
from cpsim.replay.journal import RECORD_TYPE, Outcome
from cpsim.summary import show, summarise
from cpsim.terminal import console
from cpsim.thresholds import Threshold
from cpsim.verify.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.load.master import Share
    from cpsim.load.plan import Plan
    from cpsim.replay.assignment import Assignment
    from cpsim.run import Run

LOST: Final = "lost with its worker"


def conclude(result: Run, plan: Plan, shares: Sequence[Share], start_ns: int) -> int:
    """Judge a load, write its run folder, and print its summary; returns the exit status."""
    whole = plan.assignment(result.slot_prefix)
    result.schedule_us = whole.schedule_us
    result.elapsed_s = max(share.elapsed_s for share in shares)
    result.records, result.errors = _journal(whole, shares, interrupted=result.interrupted)
    result.effort = Effort(
        max(share.effort.busy for share in shares),
        {error: count for share in shares for error, count in share.effort.retried.items()},
    )
    observer = None
    if result.target.server is not None and result.target.credentials is not None:
        observer = Observer(result.target.server, result.target.credentials, plan.timeout_s)
    judge(result, observer, start_ns, plan.timeout_s)
    result.effect_unknown = "it is not measured under Locust, where each worker has a clock of its own"
    lost = [share.worker for share in shares if share.lost]
    if lost:
        result.verdict.unseen.append(f"What {', '.join(lost)} had sent: lost in the middle of the replay.")
    summary = summarise(result)
    summary.check([Threshold.parse(text) for text in plan.thresholds])
    folder = Path(plan.output) if plan.output else run_folder.new_name(Path(plan.scenario))
    partial = run_folder.claim_folder(folder)
    try:
        run_folder.write(result, summary, partial, folder)
    finally:
        run_folder.abandon(partial)
    show(result, summary, console)
    console.print(f"run folder    {folder}", highlight=False, markup=False)
    return {"valid": 0, "invalid": 1, "unknown": 2}[result.verdict.ruling] if summary.holds else 1


def _journal(
    whole: Assignment, shares: Sequence[Share], *, interrupted: bool
) -> tuple[npt.NDArray[np.void], list[str]]:
    """The records of all workers as those of one; what a lost one may have sent is unknown."""
    errors: dict[str, int] = {"": 0}
    parts = []
    for share in shares:
        part = whole.part(share.index, len(shares))
        records = share.table()
        codes = [errors.setdefault(error, len(errors)) for error in share.errors]
        records["error"] = np.array(codes, np.uint16)[records["error"]]
        if share.lost and not (interrupted and not share.ready):
            records = np.concatenate([records, _missing(part, records, errors.setdefault(LOST, len(errors)))])
        records["op"] = part.ops[records["op"]]
        parts.append(records)
    records = np.concatenate(parts)
    return records[np.argsort(records["op"], kind="stable")], list(errors)


def _missing(part: Assignment, known: npt.NDArray[np.void], code: int) -> npt.NDArray[np.void]:
    """Records for what was not heard of: each may have been sent once the one before it in its slot was answered."""
    heard = np.zeros(len(part.ops), bool)
    heard[known["op"]] = True
    answered_ns = np.zeros(int(part.workload.slot.max(initial=0)) + 1, np.int64)
    np.maximum.at(answered_ns, part.workload.slot[known["op"]], known["answered_ns"])
    missing = np.zeros(int(np.count_nonzero(~heard)), RECORD_TYPE)
    missing["op"] = np.flatnonzero(~heard)
    missing["outcome"], missing["error"] = Outcome.UNKNOWN, code
    missing["sent_ns"] = answered_ns[part.workload.slot[missing["op"]]]
    missing["answered_ns"] = max(int(known["answered_ns"].max(initial=0)), int(missing["sent_ns"].max(initial=0))) + 1
    return missing
