"""Finds slots that are alike: whose histories and states differ in nothing that the model tells apart.

The model compares times, and never subtracts them; it compares the names of machines and texts of metadata, and adds up
counters. So two slots are alike if their times are in the same order, their texts are the same in the same places, and
what was found of each counter is the same multiple of what was sent. The judgement of one is then that of the other.
`shapes` compares all of that exactly; in doubt, a slot is alike with none. So this module can be wrong in one way only:
to call slots alike that the model tells apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.columns import PHASES, map_entries
from cpsim.judge.model import DAY_MINUTES, MINUTE_NS, SlotState
from cpsim.scenario.formats.arrow import indices
from cpsim.scenario.workload import ABSENT, FRAME, KIND_CODES

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.judge.history import History, Runs
    from cpsim.scenario.workload import Arguments

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]

MIXER: Final = 0x5851F42D4C957F2D
ALONE: Final = -1
"""The shape of a slot that is alike with none."""
MOST_STEPS: Final = 8
LARGEST: Final = 2**61
"""Greater times and counters are not compared: their sums would not fit 64 bits."""
LONGEST_MIN: Final = 25_000_000
"""The longest time to expiry that is compared: 47 years."""
OTHER: Final = -2
"""The code of a text that no command has."""
MOST_SHAPES: Final = 10_000
CHUNK: Final = 20_000
"""Slots that are compared at a time."""


def shapes(history: History, runs: Runs, slots: pa.Table, row_of_slot: Ints) -> Ints:
    """A number for each slot, which those that are alike share; `ALONE` for a slot that is alike with none.

    Args:
        history: the operations and their replies.
        runs: the slots, and their operations.
        slots: the table of slots of a view, with the column `state`.
        row_of_slot: the row of each slot of the workload in it, -1 for none.
    """
    found = np.full(len(runs.slots), ALONE)
    counts = runs.ends - runs.starts
    known: dict[bytes, int] = {}
    for count in np.unique(counts[counts <= MOST_STEPS]).tolist():
        of_count = np.flatnonzero(counts == count)
        for start in range(0, len(of_count), CHUNK):
            chosen = of_count[start : start + CHUNK]
            places = runs.places[runs.starts[chosen, np.newaxis] + np.arange(count)]
            traits = _Traits(history, places)
            traits.add_state(slots, row_of_slot[runs.slots[chosen]])
            found[chosen] = _numbered(np.hstack(traits.columns), known)
            found[chosen[~traits.are_comparable]] = ALONE
    return found


def _numbered(rows: Ints, known: dict[bytes, int]) -> Ints:
    """The number of each row, which those that are equal share; `known` has those of rows before."""
    mixed = np.zeros(len(rows), np.int64)
    for column in rows.T:
        mixed = (mixed ^ column) * MIXER
    _, first, group = np.unique(mixed, return_index=True, return_inverse=True)
    numbers = np.full(len(first), ALONE)
    for at, place in enumerate(first.tolist()):
        row = rows[place].tobytes()
        if row in known or len(known) < MOST_SHAPES:
            numbers[at] = known.setdefault(row, len(known))
    same = (rows == rows[first[group]]).all(axis=1)  # mixed, rows that differ may be equal
    return np.where(same, numbers[group], ALONE)


class _Traits:
    """All that the model tells apart, in columns of one row a slot.

    Args:
        history: the operations and their replies.
        places: the records of each slot, int[slots, operations].

    Attributes:
        columns: int64[slots, any].
        are_comparable: the slots of which the columns say all.
    """

    def __init__(self, history: History, places: npt.NDArray[np.integer]) -> None:
        self._workload = history.workload
        self._kind = history.kind[places]
        self._row = history.workload.row[history.records["op"][places]]
        self.are_comparable = np.ones(len(places), bool)
        outcome = history.records["outcome"][places]
        accepted, judged = outcome == OperationOutcome.ACCEPTED, history.judged[places]
        is_unknown = outcome == OperationOutcome.UNKNOWN
        is_applied = ~is_unknown & (accepted | judged)
        fate = np.where(is_unknown, 2, is_applied) + 4 * judged + 8 * (judged & accepted)
        self.columns = [self._kind.astype(np.int64), fate]
        self._add_times(history, history.sent_ns[places], history.answered_ns[places], is_applied)
        for kind, table in self._workload.arguments.items():
            if KIND_CODES[kind] == FRAME or not (self._kind == KIND_CODES[kind]).any():
                continue
            fixed = [name for name in table.fixed if (kind, name) not in {("alloc", "expire"), ("claim", "machine")}]
            self.columns += [self._given(kind, table[name].values) for name in fixed]
            if table.names and kind not in {"counters", "meta"}:
                self.columns += [self._given(kind, table[name].values) for name in table.names]

    def _given(self, kind: str, values: npt.NDArray[np.integer]) -> Ints:
        """An argument of the operations of a kind; `ABSENT` for others."""
        of_kind = self._kind == KIND_CODES[kind]
        given = np.full(self._kind.shape, ABSENT)
        given[of_kind] = values[self._row[of_kind]]
        return given

    def _add_times(self, history: History, sent_ns: Ints, answered_ns: Ints, is_applied: Bools) -> None:
        """Add the order of all times, of which some may be equal."""
        latest_ns = np.maximum(sent_ns, np.where(history.prompt & is_applied, answered_ns, history.seen.latest_ns))
        minutes = self._given("alloc", self._workload.arguments["alloc"]["expire"].values)
        self.columns.append(np.where(minutes == ABSENT, 1, np.sign(minutes)))
        minutes = np.where(minutes == ABSENT, DAY_MINUTES, minutes)
        lasts_ns = np.where(self._kind == KIND_CODES["alloc"], np.clip(minutes, 0, LONGEST_MIN) * MINUTE_NS, 0)
        seen_ns = np.broadcast_to(history.seen, (len(sent_ns), 2))
        times = np.hstack([sent_ns, latest_ns, answered_ns, sent_ns + lasts_ns, latest_ns + lasts_ns, seen_ns])
        order = np.argsort(times, axis=1, kind="stable")
        in_order = np.take_along_axis(times, order, axis=1)
        ranks = np.zeros_like(times)
        np.put_along_axis(ranks, order[:, 1:], np.cumsum(np.diff(in_order) > 0, axis=1), axis=1)
        self.columns.append(ranks)
        later = (np.diff(sent_ns) > 0) | ((np.diff(sent_ns) == 0) & (np.diff(answered_ns) >= 0))
        self.are_comparable &= later.all(axis=1) & (minutes <= LONGEST_MIN).all(axis=1)
        self.are_comparable &= (np.abs(sent_ns) < LARGEST).all(axis=1) & (np.abs(answered_ns) < LARGEST).all(axis=1)

    def add_state(self, slots: pa.Table, row: Ints) -> None:
        """Add what was found of the slots, in rows of a table; -1 for nothing."""
        there = np.flatnonzero(row >= 0)
        shown = [name for name in SlotState._fields if name in slots.column_names] + ["state"]
        rows = slots.select(shown).take(pa.array(row[there]))

        def found(values: Ints) -> Ints:
            column = np.full((len(row), *values.shape[1:]), ABSENT)
            column[there] = values
            return column

        phase = found(indices(rows["state"], pa.array(PHASES)))
        self.are_comparable &= phase != -1
        self.columns.append(phase[:, np.newaxis])
        if "granted" in shown:
            self.columns.append(found(np.asarray(pc.fill_null(rows["granted"], ABSENT)))[:, np.newaxis])
        arguments = self._workload.arguments
        machines = pa.array(self._workload.machines, pa.string())
        claimed_by = self._given("claim", _firsts(machines, arguments["claim"]["machine"].values))
        if "machine" in shown:
            claimed_by = np.column_stack([claimed_by, found(_codes(rows["machine"], machines))])
        self.columns.append(_places_of_equals(claimed_by))
        if "reason" in shown:
            texts = [*(arguments["discard"]["reason"].texts or ()), "unspecified"]
            self.columns.append(found(_codes(rows["reason"], pa.array(texts, pa.string())))[:, np.newaxis])
        for kind in ("counters", "meta"):
            table = arguments[kind]
            entries = self._entries(rows[kind], table, there) if kind in shown else None
            self._add_entries(kind, table, None if entries is None else found(entries))

    def _entries(self, column: pa.ChunkedArray, table: Arguments, there: Ints) -> Ints:
        """What a map column has under each name, as the table has it: int64[rows, names]."""
        offsets, keys, values = map_entries(column)
        sizes = np.diff(offsets)
        row = np.repeat(np.arange(len(sizes)), sizes)
        name = indices(keys, pa.array(table.names, pa.string()))
        coded = np.asarray(pc.fill_null(values, ABSENT)) if table.choices is None else _codes(values, _pool(table))
        entries = np.full((len(sizes), len(table.names)), ABSENT)
        known = name >= 0
        entries[row[known], name[known]] = coded[known]
        strange = (entries != ABSENT).sum(axis=1) != sizes  # other names, one twice, or nothing under a name
        self.are_comparable[there[strange]] = False
        return entries

    def _add_entries(self, kind: str, table: Arguments, found: Ints | None) -> None:
        """Add counters or metadata: of one command, what was found in terms of what was sent; else both as they are."""
        pool = None if table.choices is None else _pool(table)
        bounds = np.cumsum([0, *map(len, table.choices or ())])
        are_many = (self._kind == KIND_CODES[kind]).sum(axis=1) > 1
        for at, name in enumerate(table.names):
            values = table[name].values
            if pool is not None:
                values = np.where(values == ABSENT, ABSENT, _firsts(pool, values + bounds[at]))
            sent = self._given(kind, values)
            has = np.full(len(sent), ABSENT) if found is None else found[:, at]
            once = sent.max(axis=1, initial=ABSENT)
            if pool is None:
                given = once != ABSENT
                self.are_comparable &= ~given | (np.abs(np.where(given, once, 0)) < LARGEST)
                relation = np.select(
                    [has == ABSENT, has == 0, given & (has == once), given & (has == 2 * np.where(given, once, 0))],
                    [0, 1, 2, 3],
                    4,
                )
                of_one = np.column_stack([np.where(given, (once != 0) + 1, 0), relation])
            else:
                of_one = np.column_stack([once != ABSENT, np.select([has == ABSENT, has == once], [0, 1], 2)])
            exact = np.column_stack([sent, has])
            padded = np.zeros_like(exact)
            padded[:, :2] = of_one
            self.columns.append(np.where(are_many[:, np.newaxis], exact, padded))


def _pool(table: Arguments) -> pa.Array:
    """The texts of all names."""
    return pa.array([text for texts in table.choices or () for text in texts], pa.string())


def _firsts(pool: pa.Array, codes: npt.NDArray[np.integer]) -> Ints:
    """The first text that is the same as each of some, by their numbers in a pool; of `ABSENT`, that."""
    firsts = np.append(indices(pool, pool), ABSENT)
    return firsts[np.where((codes < 0) | (codes >= len(pool)), len(pool), codes)]


def _codes(values: pa.ChunkedArray | pa.Array, pool: pa.Array) -> Ints:
    """The number of each text in a pool, of equal ones the first; `OTHER` for another, `ABSENT` for none."""
    codes = indices(values, pool)
    return np.where(np.asarray(pc.is_null(values)), ABSENT, np.where(codes < 0, OTHER, codes))


def _places_of_equals(values: Ints) -> Ints:
    """The place of the first value of its row that each value is equal to; that of `ABSENT` is that of none."""
    places = np.full_like(values, ABSENT)
    for place in range(values.shape[1] - 1, -1, -1):
        same = (values == values[:, place, np.newaxis]) & (values != ABSENT)
        places[same] = place
    return places
