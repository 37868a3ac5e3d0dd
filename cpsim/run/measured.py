"""What was measured of the operations of a replay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cpsim.evidence.evidence import tally
from cpsim.evidence.journal import OperationOutcome
from cpsim.run.latency import Times, by_second, chosen, percentile, senders_lateness_ns, timed_records
from cpsim.scenario.workload import KIND_NAMES
from cpsim.system.growing import made
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of the operations of a replay.

    Attributes:
        by_kind: see `Summary`.
        errors: see `Summary`.
        times: of the operations after the warm-up.
        lateness_p99_ms: see `Summary`.
        own_p99_ms: of the lateness that the sender alone caused; None if operations had no due times.
        seconds: see `Summary`.
        sent: operations sent.
        warm_up_operations: see `Summary`.
    """

    by_kind: dict[str, dict[str, int]]
    errors: dict[str, int]
    times: Times
    lateness_p99_ms: float | None
    own_p99_ms: Callable[[], float] | None
    seconds: list[dict[str, float | None]]
    sent: int
    warm_up_operations: int

    @classmethod
    def of(cls, whole: Evidence, warm_up_s: float) -> Measured:
        """Of the operations of evidence, of which the first seconds are a warm-up."""
        evidence = after(whole, int(warm_up_s * 1e9))
        timed, schedule_us, lateness_p99_ms = timed_records(evidence), evidence.schedule_us, None

        def due_ns(records: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
            assert schedule_us is not None
            times_ns: npt.NDArray[np.int64] = schedule_us[records["op"]] * 1000
            return times_ns

        if schedule_us is not None and len(timed):
            lateness_p99_ms = percentile(len(timed), lambda w: timed["sent_ns"][w] - due_ns(timed[w]), 99) / 1e6
        of_all = timed if evidence is whole else timed_records(whole)

        def due_at(where: slice) -> npt.NDArray[np.int64]:
            return due_ns(of_all[where])

        return cls(
            by_kind=by_kind(planned_of(evidence), outcomes_of(evidence), outcomes_of(whole)),
            errors=errors_of(evidence),
            times=Times.of(evidence, timed),
            lateness_p99_ms=lateness_p99_ms,
            own_p99_ms=None if schedule_us is None else partial(_own_p99_ms, whole),
            seconds=by_second(of_all, None if schedule_us is None else made(len(of_all), np.int64, due_at)),
            sent=len(whole.records),
            warm_up_operations=len(whole.records) - len(evidence.records),
        )


def after(evidence: Evidence, warm_up_ns: int) -> Evidence:
    """The evidence without the records of operations due, or sent if none was due, in the warm-up."""
    if not warm_up_ns:
        return evidence
    due_us = evidence.schedule_us

    def counts(piece: npt.NDArray[np.void]) -> npt.NDArray[np.bool]:
        since_ns = piece["sent_ns"] if due_us is None else due_us[piece["op"]] * 1000
        is_later: npt.NDArray[np.bool] = since_ns >= warm_up_ns
        return is_later

    return replace(evidence, records=chosen(evidence.records, counts))


def errors_of(evidence: Evidence) -> dict[str, int]:
    """How many records had each error, the most frequent first."""
    counts = tally(evidence.workload.kind, evidence.records, evidence.errors).sum(axis=0)
    order = np.argsort(-counts, kind="stable").tolist()
    return {evidence.errors[code]: int(counts[code]) for code in order if code and counts[code]}


def by_kind(
    planned: npt.NDArray[np.int64], outcomes: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]
) -> dict[str, dict[str, int]]:
    """Operations of each kind: planned, and with each outcome; without those that the warm-up leaves out.

    Args:
        planned: int64[kinds], by `planned_of`.
        outcomes: int64[kinds, outcomes] after the warm-up, by `outcomes_of`.
        whole: the same of all operations.
    """
    left = (planned - (whole - outcomes).sum(axis=1)).tolist()
    return {
        name: {"planned": left[code]}
        | {outcome.name.lower(): int(outcomes[code, outcome]) for outcome in OperationOutcome}
        for code, name in enumerate(KIND_NAMES)
        if planned[code]
    }


def planned_of(evidence: Evidence) -> npt.NDArray[np.int64]:
    """How many operations of each kind were to be sent: int64[kinds]."""
    planned = np.zeros(len(KIND_NAMES), np.int64)
    for where in stretches(len(evidence.workload)):
        planned += np.bincount(evidence.workload.kind[where], minlength=len(planned))
    return planned


def outcomes_of(evidence: Evidence) -> npt.NDArray[np.int64]:
    """How many operations of each kind had each outcome: int64[kinds, outcomes]."""
    found = np.zeros((len(KIND_NAMES), len(OperationOutcome)), np.int64)
    for where in stretches(len(evidence.records)):
        piece = evidence.records[where]
        places = evidence.workload.kind[piece["op"]].astype(np.int64) * len(OperationOutcome) + piece["outcome"]
        found += np.bincount(places, minlength=found.size).reshape(found.shape)
    return found


def _own_p99_ms(evidence: Evidence) -> float:
    """The lateness at the 99th percentile that the sender alone caused; 0 if nothing was sent."""
    late_ns = own_lateness_ns(evidence)
    return percentile(len(late_ns), late_ns.__getitem__, 99) / 1e6 if len(late_ns) else 0.0


def own_lateness_ns(evidence: Evidence) -> npt.NDArray[np.int64]:
    """The lateness of each record that the sender alone caused, in the order of sending; operations had due times."""
    schedule_us, slot = evidence.schedule_us, evidence.workload.slot
    assert schedule_us is not None
    return senders_lateness_ns(
        evidence.records, lambda some: schedule_us[some["op"]] * 1000, lambda some: slot[some["op"]]
    )
