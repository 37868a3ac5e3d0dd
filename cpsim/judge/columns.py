"""Compares ordinary slots with their expected states, in columns.

An ordinary slot has one alloc, and at most one counters, meta and claim or discard; every command was accepted, none
overlaps another, and the slot clearly expired or clearly did not. Its state is then known, and is computed and compared
for millions of slots at once. `correct_slots` says which slots are ordinary and in the expected state; all others are
for the model, which alone makes findings. So this module can be wrong in one way only: to call a wrong slot correct.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.judge.model import DAY_MINUTES, MINUTE_NS
from cpsim.scenario.formats.arrow import indices, places_among, slot_ids
from cpsim.scenario.workload import ABSENT, FRAME, KIND_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from cpsim.judge.history import History
    from cpsim.scenario.workload import Workload

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]

PHASES: Final = ("allocated", "claimed", "discarded", "expired")
ALLOCATED, CLAIMED, DISCARDED, EXPIRED = range(4)
ALLOC, META, COUNTERS, DISCARD, CLAIM = (KIND_CODES[kind] for kind in ("alloc", "meta", "counters", "discard", "claim"))
KNOWN: Final = [ALLOC, META, COUNTERS, DISCARD, CLAIM]
LONGEST_MIN: Final = 100_000_000
"""The longest time to expiry, in minutes: 190 years, the most that nanoseconds can hold."""
NEVER: Final = np.iinfo(np.int64).min, np.iinfo(np.int64).max
"""Before and after all times."""
MOST_DIGITS: Final = 18
"""Of a slot's number."""
ROWS: Final = 1_048_576
"""Rows of the ledger compared at a time."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected states of ordinary slots: columns with one row per slot of the workload.

    Attributes:
        ordinary: whether the slot is ordinary; the other columns are valid for ordinary slots.
        phase: index into PHASES.
        granted: credits, ABSENT unless claimed.
        machine: index into the workload's machines, -1 unless claimed.
        reason: index into the texts of the workload's reasons, -1 unless discarded.
        counters, meta: row of the workload's arguments, -1 for none.
    """

    ordinary: Bools
    phase: Ints
    granted: Ints
    machine: Ints
    reason: Ints
    counters: Ints
    meta: Ints


def expected(history: History) -> Expected:
    """Find the ordinary slots, and compute their states."""
    workload = history.workload
    ordinary = history.sent_for()
    ordinary[history.slot[~history.accepted]] = False
    place = np.full((FRAME, history.slots), -1, np.int32)
    for kind in range(FRAME):  # malformed frames are not in the history
        places = np.flatnonzero(history.kind == kind).astype(np.int32)
        slots = history.slot.take(places)
        place[kind, slots] = places
        again = place[kind, slots] != places
        ordinary[slots[again] if kind in KNOWN else slots] = False
    ordinary &= (place[ALLOC] >= 0) & ((place[CLAIM] < 0) | (place[DISCARD] < 0))
    ordinary &= _is_in_order(history, place)
    rows = workload.row.take(history.op)
    row = [_values_at(rows, places, -1) for places in place]
    granted, agreed = _granted(history, row)
    settled = np.where(place[CLAIM] >= 0, CLAIMED, np.where(place[DISCARD] >= 0, DISCARDED, ALLOCATED))
    in_time, over = _times(history, place, row[ALLOC])
    machine = _values_at(workload.arguments["claim"]["machine"].values, row[CLAIM], -1)
    reason = _values_at(workload.arguments["discard"]["reason"].values, row[DISCARD], -1)
    ordinary &= agreed & (in_time | over) & (machine != ABSENT) & (reason != ABSENT)
    return Expected(
        ordinary=ordinary,
        phase=np.where(over & (settled == ALLOCATED), EXPIRED, settled),
        granted=np.where(settled == CLAIMED, granted, ABSENT),
        machine=machine,
        reason=reason,
        counters=row[COUNTERS],
        meta=row[META],
    )


def correct_slots(history: History, slots: pa.Table, slot_of_row: Ints) -> Bools:
    """For each slot of the workload, whether it is ordinary and, in the columns that are shown, in the expected state.

    Args:
        history: the operations and their replies.
        slots: the table of slots of a view, with the column `state`.
        slot_of_row: the workload's slot of each row, -1 for none. The last row of a slot counts.
    """
    should = expected(history)
    shown = np.zeros(history.slots, bool)
    comparison = _Comparison(history, should)
    for start in range(0, len(slots), ROWS):
        meant = slot_of_row[start : start + ROWS]
        known = meant >= 0
        rows = slots.slice(start, ROWS)
        shown[meant[known]] = comparison.same(rows if known.all() else rows.filter(pa.array(known)), meant[known])
    good: Bools = should.ordinary & shown
    return good


def correct_outstanding(history: History, outstanding: set[str]) -> Bools:
    """For each slot of the workload, whether it is ordinary, and listed as outstanding exactly if it is."""
    should = expected(history)
    listed = indices(slot_ids(history.workload, history.prefix), pa.array(sorted(outstanding), pa.string())) >= 0
    good: Bools = should.ordinary & (listed == (should.phase == ALLOCATED))
    return good


def slots_of_ids(workload: Workload, prefix: str, ids: pa.ChunkedArray) -> Ints:
    """The slot of a workload of each id; -1 for other ids."""
    known = workload.slot_numbers
    if workload.slot_ids or not len(known):
        return indices(ids, slot_ids(workload, prefix))
    numbers = np.concatenate([np.empty(0, np.int64), *(_numbers_of_ids(f"{prefix}-", chunk) for chunk in ids.chunks)])
    order = np.argsort(known, kind="stable")
    place = places_among(known[order], numbers)
    found: Ints = np.where((numbers >= 0) & (known[order[place]] == numbers), order[place], -1)
    return found


def _numbers_of_ids(beginning: str, ids: pa.Array) -> Ints:
    """The number behind the beginning of each id; -1 where that is none, or not written as we do."""
    numbers = np.zeros(len(ids), np.int64)
    _, offsets, data = ids.buffers()
    if not len(ids) or data is None:
        return numbers - 1
    texts = np.frombuffer(data, np.uint8)
    bounds = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    begin = beginning.encode()
    first, end = bounds[:-1] + len(begin), bounds[1:]
    digits = end - first
    good = np.asarray(ids.is_valid()) & (digits >= 1) & (digits <= MOST_DIGITS)
    for place, byte in enumerate(begin):
        good &= texts.take(bounds[:-1] + place, mode="clip") == byte
    for place in range(int(digits[good].max(initial=0))):
        digit = texts.take(end - 1 - place, mode="clip") - ord("0")
        is_there = digits > place
        good &= ~is_there | (digit <= 9)
        numbers += np.where(is_there & good, digit, 0).astype(np.int64) * 10**place
    good &= (digits == 1) | (texts.take(first, mode="clip") != ord("0"))
    return np.where(good, numbers, -1)


def _is_in_order(history: History, place: npt.NDArray[np.int32]) -> Bools:
    """Whether the alloc came before all other commands, and the claim or discard after them."""

    def follows(first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> Bools:
        """Whether the second came after the first, if there are both."""
        answered = _values_at(history.answered_ns, first, NEVER[0])
        sent = _values_at(history.sent_ns, second, NEVER[1])
        good: Bools = (answered < sent) | ((answered == sent) & (first < second))
        return good

    settling = np.maximum(place[CLAIM], place[DISCARD])
    inner = [places for kind in (META, COUNTERS) if (places := place[kind]).max(initial=-1) >= 0]
    turns = [follows(place[ALLOC], each) for each in (*inner, settling)] + [follows(each, settling) for each in inner]
    all_follow: Bools = np.logical_and.reduce(turns)
    return all_follow


def _granted(history: History, row: list[Ints]) -> tuple[Ints, Bools]:
    """The credits that a claim of each slot grants, and whether the protocol accepts alloc and claim."""
    terms, claim = history.workload.arguments["alloc"], history.workload.arguments["claim"]
    credits, least, most = (_values_at(terms[name].values, row[ALLOC]) for name in ("credits", "min", "max"))
    asked = _values_at(claim["credits"].values, row[CLAIM])
    agreed = (least == ABSENT) | (most == ABSENT) | (least <= most)
    for given in (credits, least, most, asked):
        agreed &= (given == ABSENT) | (given >= 0)
    granted = np.where(asked == ABSENT, 1, asked)
    granted = np.where((least != ABSENT) & (granted < least), least, granted)
    granted = np.where((most != ABSENT) & (granted > most), most, granted)
    return np.where(credits == ABSENT, granted, credits), agreed


def _times(history: History, place: npt.NDArray[np.int32], alloc_row: Ints) -> tuple[Bools, Bools]:
    """For each slot, whether it clearly did not expire, and whether it clearly did after its last command."""
    seen = history.seen
    until_ns, last_ns = history.until_ns, np.zeros(history.slots, np.int64)
    for kind in (META, COUNTERS, CLAIM, DISCARD):
        last_ns = np.maximum(last_ns, _values_at(until_ns, place[kind], 0))
    minutes = _values_at(history.workload.arguments["alloc"]["expire"].values, alloc_row)
    minutes = np.where(minutes == ABSENT, DAY_MINUTES, np.minimum(minutes, LONGEST_MIN))
    earliest_ns = _values_at(history.sent_ns, place[ALLOC], 0) + minutes * MINUTE_NS
    latest_ns = _values_at(until_ns, place[ALLOC], 0) + minutes * MINUTE_NS
    in_time = (last_ns < earliest_ns) & (minutes > 0)
    settled = (place[CLAIM] >= 0) | (place[DISCARD] >= 0)
    return in_time & (settled | (seen.latest_ns < earliest_ns)), in_time & (seen.earliest_ns >= latest_ns)


def _values_at(column: npt.NDArray[np.integer], rows: npt.NDArray[np.integer], absent: int = ABSENT) -> Ints:
    """A column's values at some rows; `absent` where the row is -1."""
    if not len(column):
        return np.full(len(rows), absent, np.int64)
    values: Ints = column.take(rows, mode="clip").astype(np.int64, copy=False)
    values[rows < 0] = absent
    return values


class _Comparison:
    """Compares rows of the ledger with the expected states of their slots."""

    def __init__(self, history: History, should: Expected) -> None:
        workload = history.workload
        self._should = should
        self._machines = pa.array(workload.machines, pa.string())
        self._reasons = pa.array(workload.arguments["discard"]["reason"].texts, pa.string())
        self._counters, self._meta = workload.arguments["counters"], workload.arguments["meta"]
        choices = self._meta.choices or ()
        self._texts = pa.array([text for texts in choices for text in texts], pa.string())
        self._first_machine = indices(self._machines, self._machines)
        self._first_reason = indices(self._reasons, self._reasons)
        firsts = indices(self._texts, self._texts)
        bounds = np.cumsum([0, *map(len, choices)])
        self._first_texts = [firsts[start:end] for start, end in pairwise(bounds)]

    def same(self, rows: pa.Table, slots: Ints) -> Bools:
        """For each row, whether it is, as far as it is shown, in the expected state of the slot at the same index."""
        should = self._should
        shown = rows.column_names
        same: Bools = indices(rows["state"], pa.array(PHASES)) == should.phase.take(slots)
        for column, known, firsts, wanted in (
            ("machine", self._machines, self._first_machine, should.machine.take(slots)),
            ("reason", self._reasons, self._first_reason, should.reason.take(slots)),
        ):
            if column in shown:
                values = rows[column]
                same &= indices(values, known) == _values_at(firsts, wanted, -1)
                same &= np.asarray(pc.is_null(values)) == (wanted < 0)
        if "granted" in shown:
            same &= _numbers(rows["granted"]) == should.granted.take(slots)
        if "counters" in shown:
            counters = self._counters
            amounts = [_values_at(column, should.counters.take(slots)) for column in counters.free.T]
            same &= _entries_are(rows["counters"], counters.names, amounts, _numbers)
        if "meta" in shown:
            texts = [
                _values_at(firsts, _values_at(column, should.meta.take(slots), -1))
                for column, firsts in zip(self._meta.free.T, self._first_texts, strict=True)
            ]
            same &= _entries_are(rows["meta"], self._meta.names, texts, lambda values: indices(values, self._texts))
        return same


def _numbers(values: pa.Array) -> Ints:
    return np.asarray(pc.fill_null(values, ABSENT)).astype(np.int64)


def _entries_are(
    column: pa.ChunkedArray, names: Sequence[str], wanted: Sequence[Ints], coded: Callable[[pa.Array], Ints]
) -> Bools:
    """For each row of a map column, whether its entries are those wanted: a column per name, ABSENT for none."""
    offsets, keys, values = map_entries(column)
    sizes, count = np.diff(offsets), len(offsets) - 1
    found = np.full((len(names) + 1, count), ABSENT)  # a last row for names that are not known
    name, row = indices(keys, pa.array(names, pa.string())), np.repeat(np.arange(count), sizes)
    found.reshape(-1)[name * count + row] = coded(values)
    same = np.ones(count, bool)
    for has, should_have in zip(found, wanted, strict=False):
        same &= has == should_have
        sizes -= should_have != ABSENT
    same &= sizes == 0
    return same


def map_entries(column: pa.ChunkedArray) -> tuple[Ints, pa.Array, pa.Array]:
    """A map column's entries: the offset of each row (and the end of the last), the keys, the values."""
    maps = whole(column)
    offsets = np.asarray(maps.offsets).astype(np.int64)
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    return offsets - first, maps.keys.slice(first, size), maps.items.slice(first, size)


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
