"""The capacity of a target: the highest rate at which it keeps to a response time, and what gives way above it.

A step is a replay of its own, at one even rate, with slots of its own. Rates double until one is not kept, or are
quartered until one is; then they close in on the border between. What was due and could not be sent was not in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.errors import CpsimError
from cpsim.evidence.journal import Outcome
from cpsim.replay.pace import Rate
from cpsim.run.latency import percentiles_ms, senders_lateness_ns
from cpsim.run.pipeline import run
from cpsim.run.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.metrics.progress import Progress
    from cpsim.run.pipeline import ReplayTarget, Run
    from cpsim.run.summary import Summary
    from cpsim.scenario.workload import Workload

FIRST_RATE: Final = 125.0
LOWEST_RATE: Final = 5.0
"""Operations a second below which no rate is tried."""
PRECISION: Final = 1.05
"""The search ends when a rate that is not kept is within this of one that is."""
MOST_STEPS: Final = 40
OPERATIONS: Final = 50
"""In a step at least, for fewer have no percentile to speak of, unless it would last longer than LONGEST_S."""
LONGEST_S: Final = 10.0
P99S: Final = 10
"""A step lasts at least this many times the response time that is to be kept, or a queue could hide in it."""
KEPT_RATE: Final = 0.9
"""The share of the offered rate at which a step must have been answered."""
HOPELESS_FACTOR: Final = 2.0
"""Times the response time to be kept, beyond which a rate is not tried a second time."""
FAILED: Final = 0.001
"""The share of operations that may be refused or unknown."""
IN_FLIGHT: Final = (64, 10_000)
"""Operations under way at once, at least and at most."""


PREFIX_CHARACTERS: Final = 40
"""Of a slot prefix that steps keep: each adds its number."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is searched for, and how.

    Attributes:
        workload: its slots are replayed at every step, under new ids.
        target: where to.
        p99_ms: milliseconds of response time to keep at the 99th percentile.
        step_s: how long a step lasts, at least.
        timeout_s: for an operation, and for its effect to show.
        processes: that replay.
        slot_prefix: begins the ids of slots; None makes new ones.
    """

    workload: Workload
    target: ReplayTarget
    p99_ms: float
    step_s: float
    timeout_s: float
    processes: int
    slot_prefix: str | None

    def lasts_s(self, rate: float) -> float:
        """How long a step at a rate offers operations."""
        return max(self.step_s, P99S * self.p99_ms / 1e3, min(OPERATIONS / rate, LONGEST_S))

    def in_flight(self, rate: float) -> int:
        """Places enough that all are taken only when the mean service time is the response time to be kept.

        This is Little's law: so many are under way at a rate, if each takes as long as it may.
        """
        return int(min(max(math.ceil(rate * self.p99_ms / 1e3), IN_FLIGHT[0]), IN_FLIGHT[1]))


@dataclass(frozen=True, slots=True)
class SearchStep:
    """What became of one rate.

    Attributes:
        offered_per_s: operations a second that were due.
        achieved_per_s: operations a second that were answered.
        unsent: operations that were due and not sent when the step was given up.
        in_flight: how many could be under way at once.
        sender_late_p99_ms: how late operations were sent by the sender's own doing.
        ruling: the verdict on what was sent.
        gave_way: why the rate was not kept; None if it was.
        summary: its figures.
    """

    offered_per_s: float
    achieved_per_s: float
    unsent: int
    in_flight: int
    sender_late_p99_ms: float
    ruling: str
    gave_way: str | None
    summary: Summary

    @property
    def response_p99_ms(self) -> float:
        """Milliseconds; infinite if nothing was answered."""
        times = percentiles_ms(self.summary.response) if self.summary.response is not None else {}
        return times.get("p99", math.inf)

    def document(self) -> dict[str, Any]:
        """As `capacity.json` has it."""
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
            "kept": self.gave_way is None,
            "gave_way": self.gave_way,
        }


@dataclass(slots=True)
class Capacity:
    """What a search has found, whether or not it came to its end.

    Attributes:
        p99_ms: what was to be kept.
        steps: in the order in which they were measured.
        ended: why the search ended before it was done, if it did.
    """

    p99_ms: float
    steps: list[SearchStep] = field(default_factory=list)
    ended: str | None = None

    @property
    def best(self) -> SearchStep | None:
        """The highest rate that was kept."""
        return max((step for step in self.steps if step.gave_way is None), key=_offered, default=None)

    @property
    def border(self) -> SearchStep | None:
        """The lowest rate above it that was not."""
        floor = self.best.offered_per_s if self.best is not None else 0.0
        above = (step for step in self.steps if step.gave_way is not None and step.offered_per_s > floor)
        return min(above, key=_offered, default=None)

    def document(self) -> dict[str, Any]:
        """As `capacity.json` has it."""
        best, border = self.best, self.border
        return {
            "p99_ms": self.p99_ms,
            "capacity_per_s": None if best is None else best.offered_per_s,
            "gave_way": None if border is None else border.gave_way,
            "gave_way_at_per_s": None if border is None else border.offered_per_s,
            "ended": self.ended,
            "asserts": [] if best is None else [checked.document() for checked in best.summary.checked],
            "steps": [step.document() for step in self.steps],
        }


def _offered(step: SearchStep) -> float:
    return step.offered_per_s


def find(
    asked: SearchRequest,
    found: Capacity,
    *,
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
) -> None:
    """Search, and put each step into `found` when it is measured, so that what is known stays known.

    Args:
        asked: what is searched for.
        found: takes the steps; says why, where the search ends early: by Ctrl-C, or because the target is gone.
        on_stage: told what is being done, in words.
        on_progress: told the number of operations of a step in all, and how far it is.

    Raises:
        CpsimError: the target cannot be reached or looked at, at the first step.
    """
    bracket = Bracket(asked.p99_ms)
    while (rate := bracket.next()) is not None:
        if len(found.steps) >= MOST_STEPS:
            found.ended = f"{MOST_STEPS} steps were measured"
            return
        number = len(found.steps) + 1

        def staged(stage: str, name: str = f"step {number}, {rate:,.4g} operations/s") -> None:
            on_stage(f"{name}: {stage}")

        try:
            step = _measure(asked, rate, number, staged, on_progress)
        except KeyboardInterrupt:
            found.ended = "interrupted"
            return
        except CpsimError as problem:
            if not found.steps:
                raise
            found.ended = str(problem)
            return
        if step is None:
            found.ended = "interrupted"
            return
        found.steps.append(step)
        bracket.take(step)


class Bracket:
    """The highest rate that was kept and the lowest that was not, as far as is known; and which to try next."""

    def __init__(self, p99_ms: float) -> None:
        self._far_ms = HOPELESS_FACTOR * p99_ms
        self._kept: float | None = None
        self._not_kept: float | None = None
        self._again: float | None = None

    def next(self) -> float | None:
        """The rate to try; None if the border is known, or none is kept at all."""
        if self._again is not None:
            return self._again
        match self._kept, self._not_kept:
            case None, None:
                return FIRST_RATE
            case float(kept), None:
                return 2 * kept
            case None, float(not_kept):
                return not_kept / 4 if not_kept / 4 >= LOWEST_RATE else None
            case float(kept), float(not_kept) if not_kept > PRECISION * kept:
                return float(f"{math.sqrt(kept * not_kept):.4g}")
        return None

    def take(self, step: SearchStep) -> None:
        """Note what came of a rate. One that is not kept is tried again, unless it was far from it."""
        rate = step.offered_per_s
        if step.gave_way is None:
            self._kept = max(rate, self._kept or 0.0)
            self._again = None
        elif step.unsent or step.response_p99_ms > self._far_ms or self._again is not None:
            self._not_kept = min(rate, self._not_kept or math.inf)
            self._again = None
        else:
            self._again = rate


def _measure(
    asked: SearchRequest,
    rate: float,
    number: int,
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
) -> SearchStep | None:
    """Replay at a rate; None if that was interrupted."""
    lasts_s = asked.lasts_s(rate)
    in_flight = asked.in_flight(rate)
    result = run(
        lambda: part(asked.workload, max(1, round(rate * lasts_s))),
        asked.target,
        Rate(rate),
        in_flight=in_flight,
        timeout_s=asked.timeout_s,
        processes=asked.processes,
        slot_prefix=None if asked.slot_prefix is None else f"{asked.slot_prefix[:PREFIX_CHARACTERS]}-{number}",
        stop_after_s=lasts_s * 1.5 + asked.p99_ms / 1e3,
        on_stage=on_stage,
        on_progress=on_progress,
    )
    if result.interrupted:
        return None
    records, schedule_us = result.records, result.schedule_us
    assert schedule_us is not None
    late_ns = [
        senders_lateness_ns(
            mine, schedule_us[mine["op"]] * 1000, result.workload.slot[mine["op"]], max(1, in_flight // asked.processes)
        )
        for mine in (
            records[result.workload.slot[records["op"]] % asked.processes == n] for n in range(asked.processes)
        )
    ]
    late_p99_ms = max((float(np.percentile(share, 99)) / 1e6 for share in late_ns if len(share)), default=0.0)
    summary = summarise(result)
    unsent = len(result.workload) - len(records)
    answered_s = max(int(records["answered_ns"].max(initial=1)) / 1e9, len(result.workload) / rate)
    step = SearchStep(
        offered_per_s=rate,
        achieved_per_s=np.count_nonzero(records["outcome"] != Outcome.UNKNOWN) / answered_s,
        unsent=unsent,
        in_flight=in_flight,
        sender_late_p99_ms=late_p99_ms,
        ruling=result.verdict.ruling,
        gave_way=None,
        summary=summary,
    )
    return replace(step, gave_way=_gave_way(step, result, asked.p99_ms))


def _gave_way(step: SearchStep, result: Run, p99_ms: float) -> str | None:
    """Why a rate was not kept; None if it was."""
    if step.ruling == "invalid":
        return "effect"
    failed = sum(step.summary.failures.values())
    in_time = not step.unsent and step.response_p99_ms <= p99_ms
    if in_time and failed <= FAILED * len(result.workload) and step.achieved_per_s >= KEPT_RATE * step.offered_per_s:
        return None
    limit = result.effort.limit(len(result.records))
    return "generator" if limit == "target" and step.sender_late_p99_ms > p99_ms / 2 else limit


def part(workload: Workload, operations: int) -> Workload:
    """About so many operations of a workload: whole slots, from its beginning to its end, or all of them repeatedly.

    The faults of a scenario are left out.
    """
    copies = -(-operations // len(workload))
    slots = len(workload.slot_numbers)
    if copies > 1:
        workload = _repeated(workload, copies)
    wanted = np.zeros(slots * copies, bool)
    share = min(1.0, operations / len(workload))
    wanted[np.linspace(0, slots * copies - 1, max(1, round(share * slots * copies))).astype(np.int64)] = True
    ops = np.flatnonzero(wanted[workload.slot])
    return replace(
        workload,
        faults=(),
        due_us=workload.due_us[ops],
        kind=workload.kind[ops],
        slot=workload.slot[ops],
        row=workload.row[ops],
    )


def _repeated(workload: Workload, copies: int) -> Workload:
    """A workload so many times, one after the other, each with slots of its own."""
    slots = len(workload.slot_numbers)
    turns = np.repeat(np.arange(copies), len(workload))
    span_us = int(workload.due_us[-1]) + 1
    first = int(workload.slot_numbers.max()) + 1
    numbers = np.tile(workload.slot_numbers, copies) + np.repeat(np.arange(copies), slots) * first
    return replace(
        workload,
        duration_us=workload.duration_us + (copies - 1) * span_us,
        due_us=np.tile(workload.due_us, copies) + turns * span_us,
        kind=np.tile(workload.kind, copies),
        slot=(np.tile(workload.slot, copies) + turns * slots).astype(np.int32),
        row=np.tile(workload.row, copies),
        slot_numbers=numbers,
    )
