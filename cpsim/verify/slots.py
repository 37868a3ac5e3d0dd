"""Slot by slot: the state seen against the states that what was sent and answered allows."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.verify.anomalies import contradiction, name_of
from cpsim.verify.columns import fine, fine_outstanding, indices, slot_ids
from cpsim.verify.model import NOTHING, Fate
from cpsim.verify.orders import TooManyOrders, possible

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.verify.history import History
    from cpsim.verify.model import Span, Step
    from cpsim.verify.verdict import Verdict

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
    ours = _is_project(slots["project"], project_id)
    slot_of_row = indices(slots["slot"], slot_ids(history))
    row_of_slot = np.full(history.slots, -1)
    mine = np.flatnonzero(ours & (slot_of_row >= 0))
    row_of_slot[slot_of_row[mine]] = mine
    elsewhere = {int(slot_of_row[row]): row for row in np.flatnonzero(~ours & (slot_of_row >= 0)).tolist()}
    sent_for = history.sent_for()
    doubtful = sent_for & ~fine(history, slots, np.where(ours, slot_of_row, -1))
    one_by_one = history.steps(doubtful)
    given_up = 0
    while chunk := list(islice(one_by_one, CHUNK)):
        rows = row_of_slot[[slot for slot, _ in chunk]]
        states = iter(fates_in(slots.take(pa.array(rows[rows >= 0]))))
        for (slot, steps), row in zip(chunk, rows.tolist(), strict=True):
            found = NOTHING if row < 0 else next(states)
            stray = slots["project"][elsewhere[slot]].as_py() if row < 0 and slot in elsewhere else None
            given_up += not judge_slot(history.slot_id(slot), steps, history.seen, found, verdict, stray=stray)
    _give_up(given_up, verdict)
    if fresh:
        _judge_strays(history, slots, ours, slot_of_row, verdict)
    verdict.checked["slots"] += int(np.count_nonzero(sent_for))


def judge_slot(
    slot_id: str, steps: Sequence[Step], seen: Span, found: Fate, verdict: Verdict, *, stray: str | None = None
) -> bool:
    """Compare one slot's state with the states that its history allows.

    Args:
        slot_id: its name in the findings.
        steps: its operations, as they were sent; they may overlap.
        seen: when the state was looked at.
        found: the state; `NOTHING` if the server does not know the slot.
        verdict: takes what is found.
        stray: another project that has a slot of this id.

    Returns:
        Whether that could be told; not where too many orders are possible.
    """
    try:
        allowed = possible(steps, seen)
    except TooManyOrders:
        return False
    verdict.uncertain += len(allowed) > 1
    if found not in allowed:
        name, detail = _difference(steps, seen, allowed, found)
        if stray is not None:
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
            phases = {fate.phase for fate in possible(steps, history.seen)}
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


def fates_in(slots: pa.Table) -> list[Fate]:
    """The states that rows of a ledger show."""
    columns = (slots[name].to_pylist() for name in ("state", "machine", "granted", "reason", "counters", "meta"))
    return [
        Fate(state, machine, granted, reason, frozenset(counters or ()), frozenset(meta or ()))
        for state, machine, granted, reason, counters, meta in zip(*columns, strict=True)
    ]


def _is_project(projects: pa.ChunkedArray, project_id: str) -> npt.NDArray[np.bool_]:
    """Which rows are of a project; servers compare ids without regard to case."""
    same = [project for project in pc.unique(projects).to_pylist() if project.lower() == project_id.lower()]
    return np.asarray(pc.is_in(projects, value_set=pa.array(same, pa.string()))).astype(bool)


def _judge_strays(
    history: History,
    slots: pa.Table,
    ours: npt.NDArray[np.bool_],
    slot_of_row: npt.NDArray[np.int64],
    verdict: Verdict,
) -> None:
    """Find slots that are named like these and that nothing was sent for, or that are of another project."""
    named_alike = np.asarray(pc.starts_with(slots["slot"], f"{history.prefix}-")).astype(bool)
    sent_for = np.append(history.sent_for(), values=False)[slot_of_row]
    for row in np.flatnonzero(named_alike & ours & ~sent_for).tolist():
        slot_id = slots["slot"][row].as_py()
        verdict.find("phantom", slot_id, "it is there, but nothing was sent for it", [slot_id])
    leaked = np.zeros(history.slots, bool)
    strays = np.flatnonzero(named_alike & ~ours & sent_for)
    leaked[slot_of_row[strays]] = True
    known = set(slot_of_row[ours].tolist())
    rows = {int(slot_of_row[row]): row for row in strays.tolist()}
    for slot, steps in history.steps(leaked):
        if slot in known:  # else it was found missing
            row = rows[slot]
            slot_id, detail = history.slot_id(slot), f"also in project {slots['project'][row].as_py()}"
            anomaly = verdict.find("leaked", slot_id, detail, [slot_id])
            verdict.exemplify(anomaly, steps, history.seen, fates_in(slots.slice(row, 1))[0])


def _give_up(count: int, verdict: Verdict) -> None:
    if count:
        verdict.unseen.append(
            f"{count:,} slots: so many of their commands overlap, or were never answered, that not every order could "
            "be tried."
        )


def _difference(steps: Sequence[Step], seen: Span, allowed: set[Fate], found: Fate) -> tuple[str, str]:
    """The anomaly's name, and what is different, field by field, from the likeliest state."""
    if not allowed:
        return contradiction(steps, seen, found)
    same_phase = [fate for fate in allowed if fate.phase == found.phase]
    expected = min(
        same_phase or allowed, key=lambda fate: (sum(a != b for a, b in zip(fate, found, strict=True)), str(fate))
    )
    differences = "; ".join(
        f"{field} is {_shown(has)}, should be {_shown(wanted)}"
        for field, has, wanted in zip(Fate._fields, found, expected, strict=True)
        if has != wanted
    )
    return name_of(steps, seen, expected, found), differences


def _shown(value: object) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(f"{name}={amount}" for name, amount in sorted(value)) + "}"
    return repr(value)
