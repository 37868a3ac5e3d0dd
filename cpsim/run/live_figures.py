"""The figures of a replay while it lasts, for Prometheus."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cpsim.evidence.journal import OperationOutcome
from cpsim.evidence.reader import JournalReader
from cpsim.metrics.duration_buckets import BOUNDS_S, DurationBuckets
from cpsim.metrics.exposition import Family, build_info
from cpsim.scenario.workload import KIND_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from cpsim.evidence.journal import Journal
    from cpsim.scenario.workload import Workload

    Kinds = npt.NDArray[np.uint8]


class JudgesAhead(Protocol):
    """What judges slots meanwhile: how many were found valid, and how many not."""

    valid: int
    findings: int

    @property
    def is_started(self) -> bool: ...  # noqa: D102 - it is described above


class Counted(NamedTuple):
    """Operations of some records, counted.

    Attributes:
        outcomes: of each kind of operation, how many had each outcome.
        service: how many service times are up to each of `BOUNDS_S`, and beyond.
        sum_s: the sum of these times, in seconds.
    """

    outcomes: list[list[int]]
    service: list[int]
    sum_s: float

    @classmethod
    def of(cls, kinds: Kinds, records: npt.NDArray[np.void]) -> Counted:
        """Of records (dtype RECORD_TYPE) of operations whose kinds are given by number."""
        outcomes = np.zeros((len(KIND_NAMES), len(OperationOutcome)), np.int64)
        np.add.at(outcomes, (kinds[records["op"]], records["outcome"]), 1)
        answered = records[records["outcome"] != OperationOutcome.UNKNOWN]
        durations_s = (answered["answered_ns"] - answered["sent_ns"]) / 1e9
        places = np.searchsorted(BOUNDS_S, durations_s)
        service = np.bincount(places, minlength=len(BOUNDS_S) + 1).tolist()
        return cls(outcomes.tolist(), service, float(durations_s.sum()))


class LiveFigures:
    """Counts operations from their journals, when it is asked; thread-safe. Several replays add up.

    Attributes:
        ahead: what judges slots meanwhile, if anything does.
    """

    def __init__(self, ahead: JudgesAhead | None = None) -> None:
        self.ahead = ahead
        self._lock = threading.Lock()
        self._planned = 0
        self._counts = np.zeros((len(KIND_NAMES), len(OperationOutcome)), np.int64)
        self._service = DurationBuckets()
        self._parts: list[tuple[JournalReader, Kinds]] = []

    def plan(self, operations: int) -> None:
        """Add to the number of operations that are to be sent."""
        with self._lock:
            self._planned += operations

    @contextmanager
    def following(self, parts: Iterable[tuple[Journal, Workload]]) -> Iterator[None]:
        """Count what is written to journals, while the context lasts.

        Args:
            parts: the journal of each sender, and the operations that its records number.
        """
        followed = [(JournalReader(journal), workload.kind) for journal, workload in parts]
        self.plan(sum(len(kinds) for _, kinds in followed))
        self._parts = followed
        try:
            yield
        finally:
            with self._lock:
                self._read()
                self._parts = []

    def add(self, counted: Counted) -> None:
        """Add what another has counted."""
        with self._lock:
            self._add(counted)

    def families(self) -> list[Family]:
        """Return the metrics.

        Raises:
            CpsimError: a journal cannot be written.
        """
        with self._lock:
            self._read()
            outcomes = [
                ({"kind": KIND_NAMES[kind], "outcome": OperationOutcome(outcome).name.lower()}, int(count))
                for (kind, outcome), count in np.ndenumerate(self._counts)
                if count
            ]
        service = "From when an operation was sent until it was answered."
        return [
            build_info(),
            Family("gauge", "cpsim_replay_planned_operations", "Operations to send.", [({}, self._planned)]),
            Family("counter", "cpsim_replay_operations", "Operations that were sent, by their outcome.", outcomes),
            *self._judged(),
            Family("histogram", "cpsim_replay_service_time_seconds", service, [({}, self._service.read())]),
        ]

    def _judged(self) -> list[Family]:
        ahead = self.ahead
        if ahead is None or not ahead.is_started:
            return []
        counts = [({"result": "valid"}, ahead.valid), ({"result": "finding"}, ahead.findings)]
        return [Family("counter", "cpsim_replay_judged_slots", "Slots that are judged so far, by the result.", counts)]

    def _read(self) -> None:
        for reader, kinds in self._parts:
            self._add(Counted.of(kinds, reader.read()))

    def _add(self, counted: Counted) -> None:
        self._counts += np.array(counted.outcomes)
        self._service.add(counted.service, counted.sum_s)
