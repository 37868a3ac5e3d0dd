"""The judgement of a run: wait until commands are applied, read the accounts, and compare them with the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpdaemon.endpoint import UrlEndpoint
from cpdaemon.wire import MalformedFrame, parse
from cpsim.accounts.observer import CannotObserve
from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.books import judge_books
from cpsim.judge.history import History
from cpsim.judge.model import Span
from cpsim.judge.slots import judge_outstanding, judge_slots
from cpsim.judge.verdict import Verdict
from cpsim.scenario.workload import FRAME

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock
    from cpsim.run.pipeline import Run
    from cpsim.scenario.workload import Workload

LONGEST_WAIT: Final = 20
"""Limit of the wait for commands that are still being applied, in timeouts."""
SHORTEST_QUIET_S: Final = 0.05
LONGEST_QUIET_S: Final = 1.0
"""Bounds of the quiet time before the next judgement, which is as long as a judgement takes."""
POLL_S: Final = 0.01
UNFIT: Final = ("HTTP 400: ", "HTTP 401: ")
"""Prefixes of errors for malformed or unsigned requests, which the replay does not send."""


def judge(run: Run, observer: Observer | None, start_ns: int, timeout_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
    """Judge the accounts, as far as they can be observed, and the replies.

    Args:
        run: takes the verdict, and the server's tables if they can be read.
        observer: reads the server's accounts; None if there is no server to observe.
        start_ns: start of the replay in monotonic time.
        timeout_s: seconds without change in the accounts after which missing commands count as lost.
        clock: measures the waits.
    """
    try:
        if observer is None:
            run.verdict.not_verified.append(
                "Whether any command was applied: a daemon shows only its acknowledgements. Name the server behind it "
                "with --server URL --project ID --secret-file FILE."
            )
        else:
            _judge_applied(run, observer, start_ns, timeout_s, clock)
    except CannotObserve as error:
        run.slots = run.accounts = None
        run.verdict = Verdict(not_verified=[f"Whether commands were applied: {error}."])
    _judge_replies(run)
    if run.faults_unknown:
        run.verdict.not_verified.append(
            f"How often the faults fired, and whether they are still set: {run.faults_unknown}."
        )


def _judge_applied(run: Run, observer: Observer, start_ns: int, timeout_s: float, clock: Clock) -> None:
    """Judge until the accounts are as they should be, or have not changed for `timeout_s`.

    A daemon may take its time to forward commands; while it does, the judge waits, within a limit. Requests during the
    wait are cheap; the judge reads all accounts only when they no longer change.
    """
    end = clock.monotonic() + LONGEST_WAIT * timeout_s
    control = observer.control.exists()
    signal = observer.control.totals if control else observer.outstanding
    if control:
        _wait(lambda: not observer.control.totals()["pending"], clock.monotonic() + timeout_s, clock)
    changed = True
    while True:
        begun = clock.monotonic()
        shown, counts = signal(), run.verdict.counts
        verdict = run.verdict = Verdict()
        seen_from = clock.monotonic_ns() - start_ns
        if control:
            _judge_accounts(run, observer, seen_from, start_ns, clock)
        else:
            outstanding = observer.outstanding()
            judge_outstanding(_history(run, Span(seen_from, clock.monotonic_ns() - start_ns)), outstanding, verdict)
            verdict.not_verified.append(
                "Credits, counters and how slots were settled: the server has no control API, and shows only which "
                "slots are outstanding."
            )
        now = clock.monotonic()
        if not verdict.counts or now > end or isinstance(run.target.endpoint, UrlEndpoint):
            return
        if not changed and counts == verdict.counts:
            return
        changed = _wait(lambda: signal() != shown, min(now + timeout_s, end), clock)  # noqa: B023 - called at once
        if changed:
            _wait_until_quiet(signal, min(max(now - begun, SHORTEST_QUIET_S), LONGEST_QUIET_S), end, clock)


def _judge_accounts(run: Run, observer: Observer, seen_from_ns: int, start_ns: int, clock: Clock) -> None:
    view = observer.view()
    run.slots, run.accounts = view.slots, view.accounts
    run.verdict.not_verified += view.missing()
    history = _history(run, Span(seen_from_ns, clock.monotonic_ns() - start_ns))
    assert run.target.credentials is not None
    if not run.workload.sites:
        judge_slots(history, view.slots, run.target.credentials[0], run.verdict, fresh=run.fresh)
    for project in run.workload.projects:
        run.verdict.within = f"in project {project}, "
        # slots of the same ids in other projects are judged with those projects
        others = pa.array([other for other in run.workload.projects if other != project], pa.string())
        slots = view.slots and view.slots.filter(pc.invert(pc.is_in(view.slots["project"], value_set=others)))
        judge_slots(history.of_project(project), slots, project, run.verdict, fresh=run.fresh)
    run.verdict.within = ""
    judge_books(view, run.verdict, run.links() if run.embedded else None)


def _history(run: Run, seen: Span) -> History:
    direct = isinstance(run.target.endpoint, UrlEndpoint)
    records = run.records
    if run.virtual_ns is not None:
        records = records.copy()
        records["sent_ns"] = records["answered_ns"] = run.virtual_ns[records["op"]]
        end_ns = max(int(run.virtual_ns[-1]), run.workload.duration_us * 1_000) if len(run.virtual_ns) else 0
        seen = Span(end_ns, end_ns)
    prompt = run.virtual_ns is not None
    return History(run.workload, run.slot_prefix, records, run.errors, direct=direct, seen=seen, prompt=prompt)


def _wait(condition: Callable[[], bool], deadline: float, clock: Clock) -> bool:
    """Poll a condition, with backoff, until it is true; False if it is not by the deadline."""
    pause_s = POLL_S
    while not condition():
        if clock.monotonic() > deadline:
            return False
        clock.sleep(pause_s)
        pause_s = min(1.5 * pause_s, LONGEST_QUIET_S)
    return True


def _wait_until_quiet(signal: Callable[[], object], quiet_s: float, deadline: float, clock: Clock) -> None:
    shown, now = None, signal()
    while shown != now and clock.monotonic() < deadline:
        clock.sleep(quiet_s)
        shown, now = now, signal()


def _judge_replies(run: Run) -> None:
    verdict = run.verdict
    verdict.checked["replies"] += len(run.records)
    subject = str(run.target.endpoint)
    is_frame = run.workload.kind[run.records["op"]] == FRAME
    for code, error in enumerate(run.errors):
        if error == "ER" or error.startswith(UNFIT):
            refused = int(np.count_nonzero((run.records["error"] == code) & ~is_frame))
            if refused:
                verdict.find("wrongly refused", subject, f"{refused:,} well-formed commands were answered {error}")
    taken = _malformed(
        run.workload, run.records["op"][is_frame & (run.records["outcome"] == OperationOutcome.ACCEPTED)]
    )
    if taken:
        verdict.find("wrongly accepted", subject, f"{taken:,} malformed frames were answered with success")
    if len(run.workload) and not np.any(run.records["outcome"] == OperationOutcome.ACCEPTED):
        verdict.not_verified.append("Everything: no operation was accepted.")
    if run.interrupted:
        missing = len(run.workload) - len(run.records)
        verdict.not_verified.append(f"{missing:,} operations were not sent: the run was interrupted.")


def _malformed(workload: Workload, accepted: npt.NDArray[np.integer]) -> int:
    """How many accepted frames are malformed: a recorded frame may be a command, such as one of 7.9 credits."""
    form, forms = workload.arguments["frame"]["frame"]
    wrong = np.array([not _is_command(text) for text in forms or ()], bool)
    return int(np.count_nonzero(wrong[form[workload.row[accepted]]])) if len(accepted) else 0


def _is_command(form: str) -> bool:
    try:
        parse(form.replace("{slot}", "slot").encode("latin-1"))
    except MalformedFrame:
        return False
    return True
