"""Slot by slot: the state seen against the states that what was sent and answered allows."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.judge.anomalies import EXPLAINED, contradiction, name_of
from cpsim.judge.columns import fine, fine_outstanding, indices, slot_ids
from cpsim.judge.model import NOTHING, SlotState
from cpsim.judge.orders import MOST_POSITIONS, TooManyOrders, possible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cpsim.judge.history import History
    from cpsim.judge.model import Span, Step
    from cpsim.judge.verdict import Verdict

FEW_POSITIONS: Final = 500
PATIENCE: Final = 50
"""Slots whose orders are searched as far as `orders` goes without a result; after these, a search ends earlier."""
CHUNK: Final = 10_000
"""Slots that are judged one by one at a time."""


def judge_slots(history: History, slots: pa.Table, project_id: str, verdict: Verdict, *, fresh: bool = False) -> None:
    """Compare every slot's final state with the states that its history allows.

    Args:
        history: what was sent and answered.
        slots: the server's slots, one row each, as the control API exports them.
        project_id: whose slots are meant.
        verdict: takes the findings.
        fresh: whether no other run has slot ids that begin like these.
    """
    rows = _Rows(slots, project_id, slot_ids(history))
    sent_for = history.sent_for()
    doubtful = sent_for & ~fine(history, slots, np.where(rows.ours, rows.meant, -1))
    one_by_one = ((slot, history.slot_id(slot), steps) for slot, steps in history.steps(doubtful))
    _judge_one_by_one(one_by_one, rows, history.seen, verdict, fresh=fresh)
    if fresh:
        _judge_strays(history, rows, verdict)
    verdict.checked["slots"] += int(np.count_nonzero(sent_for))


def judge_histories(
    histories: Mapping[str, Sequence[Step]], slots: pa.Table, project_id: str, seen: Span, verdict: Verdict
) -> None:
    """Do as `judge_slots` for operations that are of no workload.

    Args:
        histories: slot id to its operations, as they were sent; they may overlap.
        slots: the server's slots, one row each.
        project_id: whose slots are meant.
        seen: when the slots were read.
        verdict: takes the findings.
    """
    rows = _Rows(slots, project_id, pa.array(list(histories), pa.string()))
    one_by_one = ((number, slot_id, steps) for number, (slot_id, steps) in enumerate(histories.items()))
    _judge_one_by_one(one_by_one, rows, seen, verdict, fresh=False)
    verdict.checked["slots"] += len(histories)


def judge_slot(
    slot_id: str,
    steps: Sequence[Step],
    seen: Span,
    found: SlotState,
    verdict: Verdict,
    *,
    stray: str | None = None,
    most_positions: int = MOST_POSITIONS,
) -> bool:
    """Compare one slot's state with the states that its history allows.

    Args:
        slot_id: its name in the findings.
        steps: its operations, as they were sent; they may overlap.
        seen: when the state was looked at.
        found: the state; `NOTHING` if the server does not know the slot.
        verdict: takes what is found.
        stray: another project, which has a slot of this id and should not.
        most_positions: where the search for orders ends without a result.

    Returns:
        Whether that could be told; not where too many orders are possible.
    """
    try:
        allowed = possible(steps, seen, most_positions=most_positions)
    except TooManyOrders:
        return False
    verdict.uncertain += len(allowed) > 1
    if found not in allowed:
        explain = verdict.counts.total() < EXPLAINED
        name, detail = _difference(steps, seen, allowed, found, explain=explain)
        if allowed and stray is not None:
            name, detail = "leaked", f"missing, but in project {stray}"
        verdict.exemplify(verdict.find(name, slot_id, detail, [slot_id]), steps, seen, found)
    return True


def judge_outstanding(history: History, outstanding: set[str], verdict: Verdict) -> None:
    """Compare the slots that the server lists as not settled with those that may be."""
    sent_for = history.sent_for()
    doubtful = sent_for & ~fine_outstanding(history, outstanding)
    given_up = 0
    for slot, steps in history.steps(doubtful):
        slot_id = history.slot_id(slot)
        try:
            most = MOST_POSITIONS if given_up < PATIENCE else FEW_POSITIONS
            phases = {fate.phase for fate in possible(steps, history.seen, most_positions=most)}
        except TooManyOrders:
            given_up += 1
            continue
        verdict.uncertain += len(phases) > 1
        listed = slot_id in outstanding
        if not phases:
            name, detail = contradiction(steps, history.seen, None)
        elif listed and "allocated" not in phases:
            name = "late expiry" if phases == {"expired"} else "lost"
            detail = f"listed as outstanding, but should be {' or '.join(sorted(phases))}"
        elif not listed and phases == {"allocated"}:
            name, detail = "lost", "not listed as outstanding, but should be"
        else:
            continue
        verdict.exemplify(verdict.find(name, slot_id, detail, [slot_id]), steps, history.seen, None)
    _give_up(given_up, verdict)
    verdict.checked["slots"] += int(np.count_nonzero(sent_for))


def fates_in(slots: pa.Table) -> list[SlotState]:
    """The states that rows of a ledger show."""
    columns = (slots[name].to_pylist() for name in ("state", "machine", "granted", "reason", "counters", "meta"))
    return [
        SlotState(state, machine, granted, reason, frozenset(counters or ()), frozenset(meta or ()))
        for state, machine, granted, reason, counters, meta in zip(*columns, strict=True)
    ]


class _Rows:
    """The rows of a ledger that are of some slots.

    Attributes:
        slots: the ledger.
        ours: which of its rows are of the project; servers compare ids without regard to case.
        meant: which of the slots each row is, of this project or another; -1 for none of them.
        of_slot: for each slot, the last of the project's rows; -1 for none.
    """

    def __init__(self, slots: pa.Table, project_id: str, ids: pa.Array) -> None:
        projects = slots["project"]
        same = [project for project in pc.unique(projects).to_pylist() if project.lower() == project_id.lower()]
        self.slots = slots
        self.ours = np.asarray(pc.is_in(projects, value_set=pa.array(same, pa.string()))).astype(bool)
        self.meant = indices(slots["slot"], ids)
        self.of_slot = np.full(len(ids), -1)
        places = np.flatnonzero(self.ours & (self.meant >= 0))
        self.of_slot[self.meant[places]] = places
        strays = np.flatnonzero(~self.ours & (self.meant >= 0))
        self._strays = dict(zip(self.meant[strays].tolist(), strays.tolist(), strict=True))

    def other_project(self, slot: int) -> str | None:
        """Another project that has a slot of this id."""
        row = self._strays.get(slot)
        return None if row is None else str(self.slots["project"][row])


def _judge_one_by_one(
    histories: Iterator[tuple[int, str, Sequence[Step]]], rows: _Rows, seen: Span, verdict: Verdict, *, fresh: bool
) -> None:
    given_up = 0
    while chunk := list(islice(histories, CHUNK)):
        places = rows.of_slot[[slot for slot, _, _ in chunk]]
        states = iter(fates_in(rows.slots.take(pa.array(places[places >= 0]))))
        for (slot, slot_id, steps), place in zip(chunk, places.tolist(), strict=True):
            found = NOTHING if place < 0 else next(states)
            stray = rows.other_project(slot) if fresh and place < 0 else None
            most = MOST_POSITIONS if given_up < PATIENCE else FEW_POSITIONS
            given_up += not judge_slot(slot_id, steps, seen, found, verdict, stray=stray, most_positions=most)
    _give_up(given_up, verdict)


def _judge_strays(history: History, rows: _Rows, verdict: Verdict) -> None:
    """Find slots that are named like these and that nothing was sent for, or that are in another project too."""
    named_alike = np.asarray(pc.starts_with(rows.slots["slot"], f"{history.prefix}-")).astype(bool)
    sent_for = np.append(history.sent_for(), values=False)[rows.meant]
    for row in np.flatnonzero(named_alike & rows.ours & ~sent_for).tolist():
        slot_id = str(rows.slots["slot"][row])
        verdict.find("phantom", slot_id, "it is there, but nothing was sent for it", [slot_id])
    leaked = np.zeros(history.slots, bool)
    leaked[rows.meant[named_alike & ~rows.ours & sent_for]] = True
    leaked &= rows.of_slot >= 0  # else it was found missing
    for slot, steps in history.steps(leaked):
        slot_id = history.slot_id(slot)
        anomaly = verdict.find("leaked", slot_id, f"also in project {rows.other_project(slot)}", [slot_id])
        found = fates_in(rows.slots.slice(rows.of_slot[slot], 1))[0]
        verdict.exemplify(anomaly, steps, history.seen, found)


def _give_up(count: int, verdict: Verdict) -> None:
    if count:
        verdict.unseen.append(
            f"{count:,} slots: so many of their commands overlap, or were never answered, that not every order could "
            "be tried."
        )


def _difference(
    steps: Sequence[Step], seen: Span, allowed: set[SlotState], found: SlotState, *, explain: bool
) -> tuple[str, str]:
    """The anomaly's name, and what is different, field by field, from the likeliest state."""
    if not allowed:
        return contradiction(steps, seen, found)
    same_phase = [fate for fate in allowed if fate.phase == found.phase]
    candidates = same_phase or allowed
    expected = next(iter(candidates))
    if len(candidates) > 1:
        expected = min(candidates, key=lambda fate: (sum(a != b for a, b in zip(fate, found, strict=True)), str(fate)))
    differences = "; ".join(
        f"{field} is {_shown(has)}, should be {_shown(wanted)}"
        for field, has, wanted in zip(SlotState._fields, found, expected, strict=True)
        if has != wanted
    )
    return name_of(steps, seen, expected, found, explain=explain), differences


def _shown(value: object) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(f"{name}={amount}" for name, amount in sorted(value)) + "}"
    return repr(value)
