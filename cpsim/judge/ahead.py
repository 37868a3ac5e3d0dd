"""Judges slots while a replay goes on: each as soon as all its commands are answered, and what they did can be seen.

A slot whose state is right is counted and forgotten. One that is wrong may be so only because commands are still on
their way from a daemon to the accounts, or what was read is not of one moment, so it is a finding

- at once, where no command that is on its way could explain it; or
- once the accounts show commands of other slots that were answered later than its last one, by the apply delay that is
  waited for; or once that is over, where the server itself accepted its commands.

Whatever neither is true of waits for the verdict at the end, which looks at all slots anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.judge.history import History
from cpsim.judge.model import MODELLED, NO_QUIRKS, Span
from cpsim.judge.quirks import Suspects
from cpsim.judge.slots import judge_outstanding, judge_slots
from cpsim.judge.verdict import SHOWN_ANOMALIES, Verdict
from cpsim.scenario.workload import FRAME, numbers_of_ids
from cpsim.system.mapped import stretches, zeros

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.evidence.evidence import Seen
    from cpsim.judge.verdict import Anomaly
    from cpsim.scenario.workload import Workload

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]
    Records = npt.NDArray[np.void]

CHUNK: Final = 10_000
"""Slots that are judged together."""
NEVER: Final = np.iinfo(np.int64).max
NUMBER: Final = r"^(0|[1-9][0-9]{0,17})$"
"""The end of a slot's id, after its prefix."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged.

    Attributes:
        workload: what is replayed.
        prefix: the prefix of the slot ids.
        project: whose slots they are.
        direct: whether the server itself answers, so that what it accepted is applied.
        fresh: whether no other run has slot ids with this prefix.
        quirks: names of the quirks that the target is known to have.
        apply_delay_ns: how long a command that was acknowledged may take until it is applied.
    """

    workload: Workload
    prefix: str
    project: str
    direct: bool
    fresh: bool
    quirks: frozenset[str]
    apply_delay_ns: int


class _Complete(NamedTuple):
    """The slots of which every command is answered and that are not judged, in ascending order.

    Attributes:
        slots: their places in the workload.
        last_ns: when the last command of each was answered.
        accepted: how many of its commands were accepted.
    """

    slots: Ints
    last_ns: Ints
    accepted: Ints


class AheadJudge:
    """Takes the records of a replay and what is seen of the accounts meanwhile, and counts.

    Args:
        subject: what is judged.

    Attributes:
        valid: slots that were found as they should be.
        findings: slots that nothing explains.
        first: the first finding; None as long as there is none.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        workload = subject.workload
        count = len(workload.slot_numbers)
        self._left = zeros(count, np.dtype(np.int32))
        for where in stretches(len(workload)):
            np.add.at(self._left, workload.slot[where][workload.kind[where] != FRAME], 1)
        self._applied = zeros(count, np.dtype(np.uint32))
        self._missed, self._doubtful = np.zeros((2, count), bool)
        self._waiting = np.empty(0, RECORD_TYPE)
        self._errors: Sequence[str] = [""]
        self._numbers, self._order = workload.slot_numbers, None
        if np.any(self._numbers[1:] <= self._numbers[:-1]):
            self._order = np.argsort(self._numbers)
            self._numbers = self._numbers[self._order]
        self._shown_up_to_ns = -1
        """When a command was answered that is applied, the latest of which this is known."""
        self.valid = self.findings = 0
        self.first: Anomaly | None = None

    @property
    def waiting(self) -> int:
        """The number of operations that are kept, as their slots are not judged."""
        return len(self._waiting)

    def take(self, records: Records, errors: Sequence[str]) -> None:
        """Take new records.

        Args:
            records: with the numbers of operations in the workload (dtype RECORD_TYPE).
            errors: the texts that `records["error"]` indexes, in these and all records before.
        """
        workload = self._subject.workload
        records = records[workload.kind[records["op"]] != FRAME]
        for column in ("sent_ns", "answered_ns"):  # as the evidence has them
            records[column] -= records[column] % 1000
        np.subtract.at(self._left, workload.slot[records["op"]], 1)
        self._errors = errors
        self._waiting = np.concatenate([self._waiting, records])

    def take_applied(self, slot_ids: Sequence[str]) -> None:
        """Take the slots of commands that the accounts took, one for each command."""
        np.add.at(self._applied, self._places(pa.array(slot_ids, pa.string())), 1)

    def miss_applied(self) -> None:
        """Take note that some commands were applied of which nobody knows the slots: all that wait are worth a look."""
        self._missed[self._slots()] = True

    def due(self, now_ns: int) -> Ints:
        """The slots, by their places in the workload, whose states are worth a look now that the feed was read.

        Args:
            now_ns: the time, since the replay began.
        """
        complete = self._complete()
        self._see_applied(self._applied[self._slots()] > 0)
        is_due = (self._applied[complete.slots] >= complete.accepted) | self._missed[complete.slots]
        is_due &= ~self._doubtful[complete.slots]
        return complete.slots[is_due | (self._overdue_ns(complete) <= now_ns)]

    def judge_states(self, slots: Ints, seen: Seen) -> None:
        """Judge slots, of which a view has all that there are; each row is as of one moment."""
        self._judge(slots, seen, is_whole=True)

    def judge_view(self, seen: Seen) -> None:
        """Judge what a view of all slots shows, or a list of those that are outstanding."""
        table = None if seen.view is None else seen.view.slots
        if seen.outstanding is None and (table is None or "state" not in table.column_names):
            return
        if self._subject.fresh:
            ids = pa.array(sorted(seen.outstanding or ()), pa.string()) if table is None else table["slot"]
            shown = np.zeros(len(self._left), bool)
            shown[self._places(ids)] = True
            self._see_applied(shown[self._slots()])
        complete = self._complete()
        ended = complete.last_ns <= seen.from_ns
        if seen.outstanding is not None and not self._subject.direct:  # who is not listed may not be allocated yet
            ended &= self._overdue_ns(complete) <= seen.from_ns
        self._judge(complete.slots[ended], seen, is_whole=False)

    def _judge(self, slots: Ints, seen: Seen, *, is_whole: bool) -> None:
        complete = self._complete()
        certain = self._overdue_ns(complete)[np.searchsorted(complete.slots, slots)] <= seen.from_ns
        certain |= self._subject.direct and is_whole  # what was accepted is applied, and shown at once
        for start in range(0, len(slots), CHUNK):
            self._judge_chunk(slots[start : start + CHUNK], certain[start : start + CHUNK], seen, is_whole=is_whole)

    def _judge_chunk(self, slots: Ints, certain: Bools, seen: Seen, *, is_whole: bool) -> None:
        """Judge slots, and forget those that are right or certainly wrong."""
        verdict = self._verdict(slots, seen)
        if verdict.counts.total() > SHOWN_ANOMALIES:  # which of them are wrong is not known
            half = len(slots) // 2
            for part in (slice(None, half), slice(half, None)):
                self._judge_chunk(slots[part], certain[part], seen, is_whole=is_whole)
            return
        wrong = self._named(slots, verdict)
        unclear = {slot for slot in wrong if not certain[np.searchsorted(slots, slot)]}
        if unclear and is_whole and not self._subject.direct:
            chosen = np.array(sorted(unclear))
            unclear -= self._named(chosen, self._verdict(chosen, seen, on_their_way=True)).keys()
        self._doubtful[list(unclear)] = True
        found = [anomaly for slot, anomaly in wrong.items() if slot not in unclear]
        self.valid += len(slots) - len(wrong) - verdict.unsearched - verdict.still_listed
        self.findings += len(found)
        self.first = self.first or next(iter(found), None)
        self._forget(np.setdiff1d(slots, list(unclear)))

    def _verdict(self, slots: Ints, seen: Seen, *, on_their_way: bool = False) -> Verdict:
        """What is wrong with slots; also if commands that were acknowledged are still on their way."""
        subject = self._subject
        chosen = np.zeros(len(self._left), bool)
        chosen[slots] = True
        records = self._waiting[chosen[self._slots()]]
        records = records[np.argsort(records["op"])]
        part = subject.workload.of_operations(records["op"]).on_its_own()
        records["op"] = np.arange(len(records))
        if on_their_way:
            records["outcome"][records["outcome"] == OperationOutcome.ACCEPTED] = OperationOutcome.UNKNOWN
        span = Span(seen.from_ns, seen.to_ns)
        history = History(part, subject.prefix, records, self._errors, direct=subject.direct, seen=span)
        verdict = Verdict()
        if seen.outstanding is not None:
            judge_outstanding(history, set(seen.outstanding), verdict, subject.quirks)
        elif seen.view is not None:
            # which faults fired is known at the end: a quirk that is known is taken for one whose trigger was seen
            suspects = Suspects(subject.quirks & MODELLED, NO_QUIRKS)
            judge_slots(history, seen.view.slots, subject.project, verdict, suspects=suspects)
        return verdict

    def _named(self, slots: Ints, verdict: Verdict) -> dict[int, Anomaly]:
        """The anomaly of each slot that a verdict names."""
        if not verdict.counts:
            return {}
        workload, prefix = self._subject.workload, self._subject.prefix
        numbers = {workload.slot_id(slot, prefix): slot for slot in slots.tolist()}
        return {numbers[slot_id]: anomaly for anomaly in verdict.anomalies for slot_id in anomaly.slots}

    def _slots(self) -> npt.NDArray[np.int32]:
        """The slot of each record that is waiting."""
        slots: npt.NDArray[np.int32] = self._subject.workload.slot[self._waiting["op"]]
        return slots

    def _complete(self) -> _Complete:
        slot = self._slots()
        records = self._waiting[(is_over := self._left[slot] <= 0)]
        slots, place = np.unique(slot[is_over], return_inverse=True)
        last_ns = np.zeros(len(slots), np.int64)
        np.maximum.at(last_ns, place, records["answered_ns"])
        accepted = np.bincount(place[records["outcome"] == OperationOutcome.ACCEPTED], minlength=len(slots))
        return _Complete(slots.astype(np.int64), last_ns, accepted)

    def _overdue_ns(self, complete: _Complete) -> Ints:
        """From when on the apply delay of each slot's last command is over; NEVER where that is not known yet."""
        over_ns = complete.last_ns + self._subject.apply_delay_ns
        return over_ns if self._subject.direct else np.where(over_ns <= self._shown_up_to_ns, over_ns, NEVER)

    def _see_applied(self, shown: Bools) -> None:
        """Note up to where commands are applied: of a slot that is shown, the one that was answered first must be.

        Args:
            shown: for each record that is waiting, whether its slot is shown.
        """
        slots, place = np.unique(self._slots()[shown], return_inverse=True)
        records = self._waiting[shown]
        first_ns = np.full(len(slots), NEVER)
        accepted = records["outcome"] == OperationOutcome.ACCEPTED
        np.minimum.at(first_ns, place[accepted], records["answered_ns"][accepted])
        first_ns[place[records["outcome"] == OperationOutcome.UNKNOWN]] = NEVER
        self._shown_up_to_ns = max(self._shown_up_to_ns, int(first_ns[first_ns != NEVER].max(initial=-1)))

    def _forget(self, slots: Ints) -> None:
        gone = np.zeros(len(self._left), bool)
        gone[slots] = True
        self._waiting = self._waiting[~gone[self._slots()]]

    def _places(self, ids: pa.Array | pa.ChunkedArray) -> Ints:
        """The places in the workload of the slots with some ids, those of its own."""
        if self._subject.workload.slot_ids:
            numbers = numbers_of_ids(ids.to_pylist())
        else:
            prefix = f"{self._subject.prefix}-"
            ends = pc.utf8_slice_codeunits(ids.filter(pc.starts_with(ids, prefix)), len(prefix))
            numbers = np.asarray(pc.cast(ends.filter(pc.match_substring_regex(ends, NUMBER)), pa.int64()))
        places = np.searchsorted(self._numbers, numbers)
        places[places == len(self._numbers)] = 0
        found: Ints = places[self._numbers[places] == numbers] if len(self._numbers) else places[:0]
        return found if self._order is None else self._order[found]
