"""The operations of a run and their replies, as columns; and the operations of a slot as the model's steps."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cpdaemon.endpoint import UrlEndpoint
from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.model import Span, Step
from cpsim.judge.orders import in_order
from cpsim.scenario.workload import FRAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence
    from cpsim.scenario.workload import Workload

BY_RULE: Final = "HTTP 500: "
"""The prefix of errors with which a server refuses a command by the protocol's rules."""
CHUNK: Final = 20_000
"""Slots of which the steps are in memory at a time."""


class Runs(NamedTuple):
    """The operations of some slots: those of `slots[i]` are the records `places[starts[i] : ends[i]]`, in order."""

    slots: npt.NDArray[np.int32]
    places: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    ends: npt.NDArray[np.intp]


class History:
    """The outcomes of a workload's commands, without malformed frames, which change no slot.

    Args:
        workload: the planned operations.
        prefix: the prefix of the slot ids.
        records: one per operation sent, in the order of the operations (dtype `RECORD_TYPE`). Operations of one slot
            may overlap.
        errors: the texts that `records["error"]` indexes.
        prompt: whether an accepted command was applied before its reply; always true if the server itself answered.
        direct: whether the server itself answered: then an accepted command is applied, and a refusal by the
            protocol's rules says something about the slot.
        seen: when the final state was read.
    """

    def __init__(
        self,
        workload: Workload,
        prefix: str,
        records: npt.NDArray[np.void],
        errors: Sequence[str],
        *,
        direct: bool,
        seen: Span,
        prompt: bool = False,
    ) -> None:
        self.workload = workload
        self.prefix = prefix
        self._direct = direct
        self.prompt = direct or prompt
        self.seen = seen
        self.errors = errors
        is_frame = workload.kind == FRAME
        self.records = records = records[~is_frame[records["op"]]] if is_frame.any() else records
        self.op, self.sent_ns, self.answered_ns = (
            np.ascontiguousarray(records[name]) for name in ("op", "sent_ns", "answered_ns")
        )
        self.slot, self.kind = workload.slot.take(self.op), workload.kind.take(self.op)
        by_rule = np.array([error.startswith(BY_RULE) for error in errors], bool)
        self.accepted = records["outcome"] == OperationOutcome.ACCEPTED
        self.judged = (self.accepted | by_rule[records["error"]]) if direct else np.zeros(len(records), bool)

    @classmethod
    def of(cls, evidence: Evidence) -> History:
        """The history of a run's evidence, whose accounts were seen; in virtual time, by the scenario's clock."""
        assert evidence.seen is not None
        records = evidence.records
        if evidence.virtual_ns is not None:
            records = records.copy()
            records["sent_ns"] = records["answered_ns"] = evidence.virtual_ns[records["op"]]
        return cls(
            evidence.workload,
            evidence.slot_prefix,
            records,
            evidence.errors,
            direct=isinstance(evidence.endpoint, UrlEndpoint),
            seen=Span(evidence.seen.from_ns, evidence.seen.to_ns),
            prompt=evidence.virtual_ns is not None,
        )

    def of_project(self, project: str) -> History:
        """The history of one project."""
        workload, ops = self.workload.of_project(project)
        own = np.isin(self.records["op"], ops)
        records = self.records[own]
        records["op"] = np.searchsorted(ops, records["op"])
        return History(
            workload, self.prefix, records, self.errors, direct=self._direct, seen=self.seen, prompt=self.prompt
        )

    @property
    def slots(self) -> int:
        """How many slots the workload has."""
        return len(self.workload.slot_numbers)

    def sent_for(self) -> npt.NDArray[np.bool_]:
        """For each slot of the workload, whether an operation was sent."""
        sent = np.zeros(self.slots, bool)
        sent[self.slot] = True
        return sent

    def slot_id(self, slot: int) -> str:
        """The id of a slot of the workload."""
        return self.workload.slot_id(slot, self.prefix)

    @property
    def until_ns(self) -> npt.NDArray[np.int64]:
        """The latest time at which the command of each record was applied, if it was accepted."""
        until_ns: npt.NDArray[np.int64] = np.maximum(
            self.sent_ns, self.answered_ns if self.prompt else self.seen.latest_ns
        )
        return until_ns

    def steps(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, list[Step]]]:
        """The steps of some slots, in the order of sending, slot by slot in the order of their numbers.

        A chunk of slots is in memory at a time.

        Args:
            wanted: for each slot of the workload, whether it is wanted.
        """
        runs = self.runs(wanted)
        for start in range(0, len(runs.slots), CHUNK):
            chosen = np.arange(start, min(start + CHUNK, len(runs.slots)))
            yield from zip(runs.slots[chosen].tolist(), self.steps_of(runs, chosen), strict=True)

    def runs(self, wanted: npt.NDArray[np.bool_]) -> Runs:
        """The operations of some slots, see `steps`."""
        places = np.flatnonzero(wanted[self.slot])
        numbers = self.workload.slot_numbers[self.slot[places]]
        order = np.argsort(numbers, kind="stable")
        places = places[order]
        starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        return Runs(self.slot[places[starts]], places, starts, np.append(starts[1:], len(places)))

    def steps_of(self, runs: Runs, chosen: npt.NDArray[np.integer]) -> Iterator[list[Step]]:
        """The steps of the slots at some indices of `runs`, in the order of sending."""
        counts = (runs.ends - runs.starts)[chosen]
        bounds = np.cumsum([0, *counts])
        places = np.repeat(runs.starts[chosen] - bounds[:-1], counts) + np.arange(bounds[-1])
        steps = self._steps(runs.places[places])
        return (in_order(steps[start:end]) for start, end in pairwise(bounds.tolist()))

    def _steps(self, places: npt.NDArray[np.intp]) -> list[Step]:
        chosen = self.records[places]
        last_ns = self.seen.latest_ns
        steps = []
        for (op, outcome, _, sent_ns, answered_ns), judged in zip(
            chosen.tolist(), self.judged[places].tolist(), strict=True
        ):
            kind, arguments = next(self.workload.calls(op, op + 1, self.prefix))
            accepted = outcome == OperationOutcome.ACCEPTED
            applied = None if outcome == OperationOutcome.UNKNOWN else accepted or judged
            by_ns = answered_ns if self.prompt and applied else last_ns
            span = Span(sent_ns, max(sent_ns, by_ns))
            steps.append(Step(kind, arguments, span, applied, accepted if judged else None, answered_ns))
        return steps
