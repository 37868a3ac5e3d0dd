"""The capacity of a target: the highest rate that meets a limit on response time, and why higher rates fail.

A step is a replay at one even rate, with new slots. The rate doubles until a step fails, or is quartered until one
passes; then a bisection narrows the range. An operation that was due and not sent counts as late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.errors import CpsimError
from cpsim.replay.pace import Rate
from cpsim.run.drivers import Wiring
from cpsim.run.latency import senders_lateness_ns
from cpsim.run.pipeline import run
from cpsim.run.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.metrics.progress import Progress
    from cpsim.run.pipeline import Run
    from cpsim.run.plan import ReplayTarget
    from cpsim.run.summary import Summary
    from cpsim.scenario.workload import Workload

FIRST_RATE: Final = 125.0
LOWEST_RATE: Final = 5.0
"""Operations a second below which no rate is tried."""
PRECISION: Final = 1.05
"""The search ends when the ratio of the lowest failed rate to the highest passed rate is at most this."""
MOST_STEPS: Final = 40
LEAST_OPERATIONS: Final = 50
"""Operations in a step, at least, for a meaningful percentile; fewer if the step would exceed LONGEST_S."""
LONGEST_S: Final = 10.0
LEAST_P99S: Final = 10
"""A step lasts at least this many times the limit on response time; a shorter one could hide a queue."""
LEAST_ACHIEVED: Final = 0.9
"""The share of the offered rate that a step must achieve to pass."""
HOPELESS_FACTOR: Final = 2.0
"""A step whose response time exceeds the limit by this factor is not repeated."""
MOST_FAILURES: Final = 0.001
"""The share of operations that may be refused or unknown in a step that passes."""
IN_FLIGHT: Final = (64, 10_000)
"""Operations in flight, at least and at most."""


PREFIX_CHARACTERS: Final = 40
"""Characters of the slot prefix that steps use; each step appends its number."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """The arguments of a search for capacity.

    Attributes:
        workload: the operations; each step replays them with new slot ids.
        target: the endpoint and its server.
        p99_ms: limit on response time at the 99th percentile, in milliseconds.
        step_s: minimum duration of a step, in seconds.
        timeout_s: seconds to wait for an answer, and for a command to be applied.
        processes: number of processes that replay.
        slot_prefix: prefix of slot ids; None makes a new one.
    """

    workload: Workload
    target: ReplayTarget
    p99_ms: float
    step_s: float
    timeout_s: float
    processes: int
    slot_prefix: str | None

    def lasts_s(self, rate: float) -> float:
        """Seconds that a step at a rate, in operations/s, offers operations."""
        return max(self.step_s, LEAST_P99S * self.p99_ms / 1e3, min(LEAST_OPERATIONS / rate, LONGEST_S))

    def in_flight(self, rate: float) -> int:
        """Operations in flight at a rate, enough that all places are taken only at a mean service time of p99_ms.

        By Little's law: in flight = rate x time.
        """
        return int(min(max(math.ceil(rate * self.p99_ms / 1e3), IN_FLIGHT[0]), IN_FLIGHT[1]))


@dataclass(frozen=True, slots=True)
class SearchStep:
    """The result of one step of the search.

    Attributes:
        offered_per_s: operations due per second.
        achieved_per_s: operations answered per second.
        unsent: operations due and not sent when the step ended.
        in_flight: most operations in flight at once.
        sender_late_p99_ms: lateness that the sender caused, in milliseconds at the 99th percentile.
        ruling: the verdict on the operations sent.
        failed_by: why the step failed, a key of `curve.REASONS`; None if it passed.
        summary: the step's figures.
    """

    offered_per_s: float
    achieved_per_s: float
    unsent: int
    in_flight: int
    sender_late_p99_ms: float
    ruling: str
    failed_by: str | None
    summary: Summary

    @property
    def response_p99_ms(self) -> float:
        """Response time in milliseconds; infinite if no operation was answered."""
        times = self.summary.response.percentiles_ms() if self.summary.response is not None else {}
        return times.get("p99", math.inf)

    def document(self) -> dict[str, Any]:
        """The step in `capacity.json`."""
        figures = self.summary.figures()
        names = ("response_ms", "service_ms", "lateness_p99_ms", "busy", "failures")
        return {
            "offered_per_s": self.offered_per_s,
            "achieved_per_s": round(self.achieved_per_s, 1),
            "operations": self.summary.operations,
            "unsent": self.unsent,
            "in_flight": self.in_flight,
            **{name: figures[name] for name in names},
            "sender_late_p99_ms": round(self.sender_late_p99_ms, 3),
            "verdict": self.ruling,
            "kept": self.failed_by is None,
            "gave_way": self.failed_by,
        }


@dataclass(slots=True)
class Capacity:
    """The result of a search, complete or not.

    Attributes:
        p99_ms: limit on response time at the 99th percentile, in milliseconds.
        steps: in the order of measurement.
        ended: why the search ended early; None if it finished.
    """

    p99_ms: float
    steps: list[SearchStep] = field(default_factory=list)
    ended: str | None = None

    @property
    def best(self) -> SearchStep | None:
        """The step with the highest rate that passed."""
        return max((step for step in self.steps if step.failed_by is None), key=_offered, default=None)

    @property
    def border(self) -> SearchStep | None:
        """The step with the lowest rate above `best` that failed."""
        floor = self.best.offered_per_s if self.best is not None else 0.0
        above = (step for step in self.steps if step.failed_by is not None and step.offered_per_s > floor)
        return min(above, key=_offered, default=None)

    def document(self) -> dict[str, Any]:
        """The step in `capacity.json`."""
        best, border = self.best, self.border
        return {
            "p99_ms": self.p99_ms,
            "capacity_per_s": None if best is None else best.offered_per_s,
            "gave_way": None if border is None else border.failed_by,
            "gave_way_at_per_s": None if border is None else border.offered_per_s,
            "ended": self.ended,
            "asserts": [] if best is None else [checked.document() for checked in best.summary.checked],
            "steps": [step.document() for step in self.steps],
        }


def _offered(step: SearchStep) -> float:
    return step.offered_per_s


def find(
    request: SearchRequest,
    found: Capacity,
    *,
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
    wiring: Wiring = Wiring(),  # noqa: B008 - it cannot be changed
) -> None:
    """Search, and add each step to `found` when it is measured, so that an interrupted search keeps its steps.

    Args:
        request: the arguments of the search.
        found: collects the steps, and the reason of an early end: Ctrl-C, or an unreachable target.
        on_stage: called with a description of the current stage.
        on_progress: called with the number of operations in a step, and its progress.
        wiring: the clock, and the way to the target.

    Raises:
        CpsimError: the target or its server cannot be reached at the first step.
    """
    bracket = _Bracket(request.p99_ms)
    while (rate := bracket.next()) is not None:
        if len(found.steps) >= MOST_STEPS:
            found.ended = f"{MOST_STEPS} steps were measured"
            return
        number = len(found.steps) + 1

        def report_stage(stage: str, name: str = f"step {number}, {rate:,.4g} operations/s") -> None:
            on_stage(f"{name}: {stage}")

        try:
            step = _measure(request, rate, number, report_stage, on_progress, wiring=wiring)
        except KeyboardInterrupt:
            found.ended = "interrupted"
            return
        except CpsimError as error:
            if not found.steps:
                raise
            found.ended = str(error)
            return
        if step is None:
            found.ended = "interrupted"
            return
        found.steps.append(step)
        bracket.add(step)


class _Bracket:
    """The highest rate that passed, the lowest that failed, and the next rate to try."""

    def __init__(self, p99_ms: float) -> None:
        self._hopeless_ms = HOPELESS_FACTOR * p99_ms
        self._passed: float | None = None
        self._failed: float | None = None
        self._repeat: float | None = None

    def next(self) -> float | None:
        """The next rate, in operations/s; None if the search is done."""
        if self._repeat is not None:
            return self._repeat
        match self._passed, self._failed:
            case None, None:
                return FIRST_RATE
            case float(passed), None:
                return 2 * passed
            case None, float(failed):
                return failed / 4 if failed / 4 >= LOWEST_RATE else None
            case float(passed), float(failed) if failed > PRECISION * passed:
                return float(f"{math.sqrt(passed * failed):.4g}")
        return None

    def add(self, step: SearchStep) -> None:
        """Add a step; one that failed narrowly is repeated once."""
        rate = step.offered_per_s
        if step.failed_by is None:
            self._passed = max(rate, self._passed or 0.0)
            self._repeat = None
        elif step.unsent or step.response_p99_ms > self._hopeless_ms or self._repeat is not None:
            self._failed = min(rate, self._failed or math.inf)
            self._repeat = None
        else:
            self._repeat = rate


def _measure(
    request: SearchRequest,
    rate: float,
    number: int,
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
    *,
    wiring: Wiring,
) -> SearchStep | None:
    """Replay at a rate; None if the replay was interrupted."""
    lasts_s = request.lasts_s(rate)
    in_flight = request.in_flight(rate)
    result = run(
        lambda: part(request.workload, max(1, round(rate * lasts_s))),
        request.target,
        Rate(rate),
        in_flight=in_flight,
        timeout_s=request.timeout_s,
        processes=request.processes,
        slot_prefix=None if request.slot_prefix is None else f"{request.slot_prefix[:PREFIX_CHARACTERS]}-{number}",
        stop_after_s=lasts_s * 1.5 + request.p99_ms / 1e3,
        on_stage=on_stage,
        on_progress=on_progress,
        wiring=wiring,
    )
    evidence = result.evidence
    if evidence.interrupted:
        return None
    records, schedule_us, slots = evidence.records, evidence.schedule_us, evidence.workload.slot
    assert schedule_us is not None
    late_ns = [
        senders_lateness_ns(
            mine,
            lambda some: schedule_us[some["op"]] * 1000,
            lambda some: slots[some["op"]],
            max(1, in_flight // request.processes),
        )
        for mine in (records[slots[records["op"]] % request.processes == n] for n in range(request.processes))
    ]
    late_p99_ms = max((float(np.percentile(share, 99)) / 1e6 for share in late_ns if len(share)), default=0.0)
    summary = summarise(result)
    answered_s = max(int(records["answered_ns"].max(initial=1)) / 1e9, len(evidence.workload) / rate)
    step = SearchStep(
        offered_per_s=rate,
        achieved_per_s=sum(summary.per_second) / answered_s,
        unsent=evidence.unsent,
        in_flight=in_flight,
        sender_late_p99_ms=late_p99_ms,
        ruling=result.verdict.ruling,
        failed_by=None,
        summary=summary,
    )
    return replace(step, failed_by=_failed_by(step, result, request.p99_ms))


def _failed_by(step: SearchStep, result: Run, p99_ms: float) -> str | None:
    """Why a step failed; None if it passed."""
    if step.ruling == "invalid":
        return "effect"
    few_failures = sum(step.summary.failures.values()) <= MOST_FAILURES * len(result.plan.workload)
    in_time = not step.unsent and step.response_p99_ms <= p99_ms
    if in_time and few_failures and step.achieved_per_s >= LEAST_ACHIEVED * step.offered_per_s:
        return None
    limit = result.effort.limit(len(result.evidence.records))
    failures = {kind: count for kind, count in step.summary.failures.items() if kind != "interrupted"}
    is_ours = step.sender_late_p99_ms > max(p99_ms, step.summary.lateness_p99_ms or 0.0) / 2
    if limit == "target" and is_ours and sum(failures.values()) <= MOST_FAILURES * len(result.plan.workload):
        return "generator"
    return limit


def part(workload: Workload, operations: int) -> Workload:
    """About `operations` operations of a workload: whole slots spread evenly over it, repeated if it has too few.

    The part has no faults.
    """
    copies = -(-operations // len(workload))
    slots = len(workload.slot_numbers)
    if copies > 1:
        workload = _repeated(workload, copies)
    wanted = np.zeros(slots * copies, bool)
    share = min(1.0, operations / len(workload))
    wanted[np.linspace(0, slots * copies - 1, max(1, round(share * slots * copies))).astype(np.int64)] = True
    ops = np.flatnonzero(wanted[workload.slot])
    return replace(workload.of_operations(ops), faults=())


def _repeated(workload: Workload, copies: int) -> Workload:
    """`copies` copies of a workload, one after the other, each with new slots."""
    slots = len(workload.slot_numbers)
    copy = np.repeat(np.arange(copies), len(workload))
    span_us = int(workload.due_us[-1]) + 1
    own = np.arange(1, slots + 1) if workload.slot_ids else workload.slot_numbers
    first = int(own.max()) + 1
    numbers = np.tile(own, copies) + np.repeat(np.arange(copies), slots) * first
    return replace(
        workload,
        duration_us=workload.duration_us + (copies - 1) * span_us,
        due_us=np.tile(workload.due_us, copies) + copy * span_us,
        kind=np.tile(workload.kind, copies),
        slot=(np.tile(workload.slot, copies) + copy * slots).astype(np.int32),
        row=np.tile(workload.row, copies),
        slot_numbers=numbers,
        slot_ids=(),
    )
