"""Compares the final state of each slot with the states that its commands and their replies allow."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.judge.anomalies import MOST_EXPLAINED, MOST_STEPS, contradiction, name_of
from cpsim.judge.columns import correct_outstanding, correct_slots, slots_of_ids
from cpsim.judge.model import NO_QUIRKS, NOTHING, SlotState
from cpsim.judge.orders import MOST_POSITIONS, TooManyOrders, possible
from cpsim.judge.quirks import BREAKING, LISTS_CLAIMED, Suspects, explanation, fitting_histories
from cpsim.judge.shapes import ALONE, shapes
from cpsim.scenario.formats.arrow import indices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from cpsim.judge.corrections import Corrections
    from cpsim.judge.history import History
    from cpsim.judge.model import Branch, Quirks, Span, Step
    from cpsim.judge.verdict import Verdict

FEW_POSITIONS: Final = 500
FULL_SEARCHES: Final = 50
"""Slots whose search may end without a result at `MOST_POSITIONS`; after these, at `FEW_POSITIONS`."""
NOBODY: Final = Suspects()
CHUNK: Final = 500
"""Slots of which the operations and states are in memory at a time."""


class SlotFinding(NamedTuple):
    """What was found of a slot, and so of those that are alike.

    Attributes:
        is_uncertain: whether more than one state is allowed.
        steps: how many operations it has.
        name: the anomaly's; "" if the slot is as it may be, or a known quirk explains it.
        quirk: one that would explain the anomaly; "" for none.
        is_certain: whether the name is that of all that are alike: one state is the likeliest.
    """

    is_uncertain: bool
    steps: int
    name: str = ""
    quirk: str = ""
    is_certain: bool = True


def judge_slots(
    history: History,
    slots: pa.Table | None,
    project_id: str,
    verdict: Verdict,
    *,
    fresh: bool = False,
    suspects: Suspects = NOBODY,
) -> None:
    """Compare every slot's final state with the states that its history allows, as far as it is shown.

    Args:
        history: the operations and their replies.
        slots: the table of slots of a view; without it, or without its column `state`, no slot is compared.
        project_id: whose slots are compared.
        verdict: takes the findings.
        fresh: whether no other run has slot ids with this prefix.
        suspects: quirks that may explain what is wrong.
    """
    if slots is None or "state" not in slots.column_names:
        return
    rows = _Rows(slots, project_id, slots_of_ids(history.workload, history.prefix, slots["slot"]), history.slots)
    sent_for = history.sent_for()
    doubtful = sent_for & ~correct_slots(history, slots, np.where(rows.ours, rows.slot_of_row, -1))
    if "resend-duplicates" in suspects.known and BREAKING & suspects.known:
        doubtful = sent_for  # what was paid twice may look as if it was paid once
    runs = history.runs(doubtful)
    alike = np.full(len(runs.slots), ALONE)
    if not suspects.known:  # these may explain more where the search may be longer
        alike = shapes(history, runs, slots, rows.of_slot)
        if fresh:
            alike[rows.has_strays[runs.slots]] = ALONE
    in_turn = _InTurn(runs.slots, alike, history.slot_id, partial(history.steps_of, runs))
    _judge_in_turn(in_turn, rows, history.seen, verdict, fresh=fresh, suspects=suspects)
    if fresh:
        _judge_strays(history, rows, verdict)
    verdict.checked["slots"] += int(np.count_nonzero(sent_for))


def judge_histories(
    histories: Mapping[str, Sequence[Step]], slots: pa.Table, project_id: str, seen: Span, verdict: Verdict
) -> None:
    """Compare the final states of slots that are in no workload, as `judge_slots` does.

    Args:
        histories: slot id to its operations, in the order of sending; they may overlap.
        slots: the table of slots of a view, with the column `state`.
        project_id: whose slots are compared.
        seen: when the slots were read.
        verdict: takes the findings.
    """
    slot_of_row = indices(slots["slot"], pa.array(list(histories), pa.string()))
    rows = _Rows(slots, project_id, slot_of_row, len(histories))
    ids, steps = list(histories), list(histories.values())
    each = np.arange(len(ids))
    in_turn = _InTurn(each, np.full(len(ids), ALONE), ids.__getitem__, lambda chosen: (steps[at] for at in chosen))
    _judge_in_turn(in_turn, rows, seen, verdict, fresh=False)
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
    hidden: Collection[str] = (),
    suspects: Suspects = NOBODY,
    like: SlotFinding | None = None,
) -> SlotFinding | None:
    """Compare one slot's state with the states that its history allows.

    Args:
        slot_id: its name in the findings.
        steps: its operations, in the order of sending; they may overlap.
        seen: when the state was read.
        found: the state; `NOTHING` if the server does not know the slot.
        verdict: takes the findings.
        stray: another project that wrongly has a slot of this id.
        most_positions: where the search for orders ends without a result.
        hidden: fields of the state that are not shown, and not compared.
        suspects: quirks that may explain the state.
        like: what was found of a slot that is alike, and so is found of this one.

    Returns:
        What was found; None if too many orders are possible, so that the search ended without a result.
    """
    try:
        allowed = possible(steps, seen, most_positions=most_positions)
    except TooManyOrders:
        return None
    if hidden:
        allowed = {state.without(hidden) for state in allowed}
    verdict.uncertain += len(allowed) > 1
    finding = SlotFinding(len(allowed) > 1, len(steps))
    if found in allowed:
        return finding
    explain = like is None and verdict.counts.total() < MOST_EXPLAINED
    name, detail, is_certain = _difference(steps, seen, allowed, found, explain=explain, hidden=hidden)
    if quirk := explanation(steps, seen, found, suspects.known, most_positions=most_positions, hidden=hidden):
        verdict.explain(quirk, slot_id, detail)
        return finding
    if explain and len(steps) <= MOST_STEPS:
        quirk = explanation(steps, seen, found, suspects.possible, most_positions=FEW_POSITIONS, hidden=hidden)
    if like is not None:
        name, quirk = like.name, like.quirk
    detail += f"; as with the quirk {quirk}" if quirk else ""
    if allowed and stray is not None:
        name, detail = "leaked", f"missing, but in project {stray}"
    verdict.add_example(verdict.find(name, slot_id, detail, [slot_id]), steps, seen, found)
    return finding._replace(name=name, quirk=quirk, is_certain=is_certain)


def judge_outstanding(history: History, outstanding: set[str], verdict: Verdict, known: Quirks = NO_QUIRKS) -> None:
    """Compare the slots that the server lists as outstanding with those that may be outstanding.

    A claimed slot that is still listed is not lost: there are servers that list it until its machine has a user.

    Args:
        history: the operations and their replies.
        outstanding: the ids of the slots that are listed.
        verdict: takes the findings.
        known: quirks that the server is known to have.
    """
    sent_for = history.sent_for()
    doubtful = sent_for & ~correct_outstanding(history, outstanding)
    unsearched = still_listed = 0
    for slot, steps in history.steps(doubtful):
        slot_id = history.slot_id(slot)
        try:
            most = MOST_POSITIONS if unsearched < FULL_SEARCHES else FEW_POSITIONS
            phases = {state.phase for state in possible(steps, history.seen, most_positions=most)}
        except TooManyOrders:
            unsearched += 1
            continue
        verdict.uncertain += len(phases) > 1
        listed = slot_id in outstanding
        if not phases:
            name, detail = contradiction(steps, history.seen, None)
        elif listed and phases == {"claimed"}:
            if LISTS_CLAIMED in known:
                verdict.explain(LISTS_CLAIMED, slot_id, "claimed, and still listed as outstanding")
            still_listed += 1
            continue
        elif listed and "allocated" not in phases:
            name = "late expiry" if phases == {"expired"} else "lost"
            detail = f"listed as outstanding, but should be {' or '.join(sorted(phases))}"
        elif not listed and phases == {"allocated"}:
            name, detail = "lost", "not listed as outstanding, but should be"
        else:
            continue
        verdict.add_example(verdict.find(name, slot_id, detail, [slot_id]), steps, history.seen, None)
    verdict.unsearched += unsearched
    verdict.still_listed += still_listed
    verdict.checked["slots"] += int(np.count_nonzero(sent_for))


def states_in(slots: pa.Table) -> list[SlotState]:
    """The state of each row of a table of slots; fields that it does not show are as in a slot without them."""
    nothing = [None] * len(slots)
    columns = (
        slots[name].to_pylist() if name in slots.column_names else nothing for name in ("state", *SlotState._fields[1:])
    )
    return [
        SlotState(state, machine, granted, reason, frozenset(counters or ()), frozenset(meta or ()))
        for state, machine, granted, reason, counters, meta in zip(*columns, strict=True)
    ]


class _Rows:
    """The rows of a ledger that belong to given slots.

    Attributes:
        project_id: the project.
        slots: the ledger.
        ours: whether each row is of the project; servers ignore the case of project ids.
        slot_of_row: the slot of each row, in this project or another; -1 for other slots.
        of_slot: the last row of each slot in the project; -1 for none.
        has_strays: whether another project has a slot of this id.
        hidden: the fields of the states that the ledger does not show.
    """

    def __init__(self, slots: pa.Table, project_id: str, slot_of_row: npt.NDArray[np.int64], count: int) -> None:
        projects = slots["project"]
        known = {project for chunk in projects.chunks for project in pc.unique(chunk).to_pylist()}
        same = [project for project in known if project.lower() == project_id.lower()]
        self.project_id = project_id
        self.slots = slots
        self.hidden = [field for field in SlotState._fields[1:] if field not in slots.column_names]
        self.ours = indices(projects, pa.array(same, pa.string())) >= 0
        self.slot_of_row = slot_of_row
        self.of_slot = np.full(count, -1)
        places = np.flatnonzero(self.ours & (self.slot_of_row >= 0))
        self.of_slot[self.slot_of_row[places]] = places
        strays = np.flatnonzero(~self.ours & (self.slot_of_row >= 0))
        self.has_strays = np.zeros(count, bool)
        self.has_strays[self.slot_of_row[strays]] = True
        self._strays = dict(zip(self.slot_of_row[strays].tolist(), strays.tolist(), strict=True))

    def other_project(self, slot: int) -> str | None:
        """Another project that has a slot of this id."""
        row = self._strays.get(slot)
        return None if row is None else str(self.slots["project"][row])


class _InTurn(NamedTuple):
    """Slots to judge one after the other.

    Attributes:
        slots: their numbers among those of the rows.
        shapes: see `shapes`.
        slot_id: the id of a slot.
        steps_of: the operations of the slots at some indices, in the order of sending.
    """

    slots: npt.NDArray[np.integer]
    shapes: npt.NDArray[np.int64]
    slot_id: Callable[[int], str]
    steps_of: Callable[[npt.NDArray[np.integer]], Iterator[Sequence[Step]]]


def _judge_in_turn(
    in_turn: _InTurn, rows: _Rows, seen: Span, verdict: Verdict, *, fresh: bool, suspects: Suspects = NOBODY
) -> None:
    """Judge slots; one that is alike to one before is only counted, unless what is found of it is shown."""
    known: dict[tuple[int, bool], SlotFinding] = {}
    unsearched = 0

    def counted(shape: int) -> SlotFinding | None:
        """What is found of a slot of a shape, if that is known and nothing of it is shown."""
        finding = known.get((shape, verdict.counts.total() < MOST_EXPLAINED))
        is_shown = finding is not None and finding.name and verdict.shows(finding.name, finding.steps)
        return None if is_shown else finding

    def prepared(chosen: npt.NDArray[np.integer]) -> Iterator[tuple[Sequence[Step], SlotState]]:
        places = rows.of_slot[in_turn.slots[chosen]]
        states = iter(states_in(rows.slots.take(pa.array(places[places >= 0]))))
        for steps, place in zip(in_turn.steps_of(chosen), places.tolist(), strict=True):
            yield steps, NOTHING if place < 0 else next(states)

    for start in range(0, len(in_turn.slots), CHUNK):
        chunk = np.arange(start, min(start + CHUNK, len(in_turn.slots)))
        shapes_of = in_turn.shapes[chunk].tolist()
        wanted = np.array([counted(shape) is None for shape in shapes_of])
        steps_and_states = prepared(chunk[wanted])
        for index, shape, is_prepared in zip(chunk.tolist(), shapes_of, wanted.tolist(), strict=True):
            each = next(steps_and_states) if is_prepared else None
            if (finding := counted(shape)) is not None:
                verdict.count(finding.name, uncertain=finding.is_uncertain)
                continue
            steps, found = each or next(prepared(np.array([index])))
            slot = int(in_turn.slots[index])
            kind = shape, verdict.counts.total() < MOST_EXPLAINED
            judged = partial(
                judge_slot,
                in_turn.slot_id(slot),
                steps,
                seen,
                found,
                verdict,
                stray=rows.other_project(slot) if fresh and rows.of_slot[slot] < 0 else None,
                hidden=rows.hidden,
                suspects=suspects,
                like=known.get(kind),
            )
            if shape != ALONE and (finding := judged(most_positions=FEW_POSITIONS)) is not None:
                if finding.is_certain:
                    known[kind] = finding
                continue
            most = MOST_POSITIONS if unsearched < FULL_SEARCHES else FEW_POSITIONS
            unsearched += judged(most_positions=most) is None
            if BREAKING & suspects.known:
                fits = partial(fitting_histories, steps, seen, found, suspects.known, hidden=rows.hidden)
                _correct_sums(verdict.corrections, rows.project_id, fits)
    verdict.unsearched += unsearched


def _correct_sums(corrections: Corrections, project_id: str, fits: Callable[..., list[Branch]]) -> None:
    """Note what the histories of a slot that fit what was found may have put sums off by."""
    try:
        corrections.add(project_id, fits(most_positions=FEW_POSITIONS))
    except TooManyOrders:
        corrections.unknown += 1


def _judge_strays(history: History, rows: _Rows, verdict: Verdict) -> None:
    """Find slots with this prefix that were never sent, or that are in another project too."""
    begin = "" if history.workload.slot_ids else f"{history.prefix}-"
    sent_for = np.append(history.sent_for(), values=False)[rows.slot_of_row]
    if np.array_equal(rows.ours, sent_for):
        return
    named_alike = np.asarray(pc.starts_with(rows.slots["slot"], begin)).astype(bool)
    for row in np.flatnonzero(named_alike & rows.ours & ~sent_for).tolist():
        slot_id = str(rows.slots["slot"][row])
        verdict.find("phantom", slot_id, "in the ledger, but no command was sent for it", [slot_id])
    leaked = np.zeros(history.slots, bool)
    leaked[rows.slot_of_row[named_alike & ~rows.ours & sent_for]] = True
    leaked &= rows.of_slot >= 0  # else it was found missing
    for slot, steps in history.steps(leaked):
        slot_id = history.slot_id(slot)
        anomaly = verdict.find("leaked", slot_id, f"also in project {rows.other_project(slot)}", [slot_id])
        found = states_in(rows.slots.slice(rows.of_slot[slot], 1))[0]
        verdict.add_example(anomaly, steps, history.seen, found)


def _difference(
    steps: Sequence[Step],
    seen: Span,
    allowed: set[SlotState],
    found: SlotState,
    *,
    explain: bool,
    hidden: Collection[str],
) -> tuple[str, str, bool]:
    """The name of the anomaly, each field that differs from the likeliest state, and whether that is the only one."""
    if not allowed:
        return *contradiction(steps, seen, found), True
    same_phase = [state for state in allowed if state.phase == found.phase]
    candidates = same_phase or allowed
    expected, is_certain = next(iter(candidates)), True
    if len(candidates) > 1:
        differing = {state: sum(a != b for a, b in zip(state, found, strict=True)) for state in candidates}
        expected = min(candidates, key=lambda state: (differing[state], str(state)))
        is_certain = list(differing.values()).count(differing[expected]) == 1
    differences = "; ".join(
        f"{field} is {_shown(has)}, should be {_shown(wanted)}"
        for field, has, wanted in zip(SlotState._fields, found, expected, strict=True)
        if has != wanted
    )
    return name_of(steps, seen, expected, found, explain=explain, hidden=hidden), differences, is_certain


def _shown(value: object) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(f"{name}={amount}" for name, amount in sorted(value)) + "}"
    return "none" if value is None else repr(value)
