"""A workload's operations as Arrow columns of a run's journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.protocol.arguments import TYPES
from cpsim.scenario.models.misbehaviour import frame_bytes
from cpsim.scenario.workload import ABSENT, FRAME, KIND_NAMES, OPERATIONS, Column, Int32, Int64

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.scenario.workload import Arguments, Workload


class Operations:
    """A workload's operations as columns, rendered in chunks, so that memory does not grow with the workload.

    Args:
        workload: the workload.
        prefix: prefix of slot ids.
    """

    def __init__(self, workload: Workload, prefix: str) -> None:
        self._workload = workload
        self._prefix = pa.scalar(prefix)
        pools = {id(texts): texts for table in workload.arguments.values() for texts in _texts(table)}
        self._pools = {key: pa.array(texts, pa.string()) for key, texts in pools.items()}

    def kinds(self, ops: npt.NDArray[np.integer]) -> pa.DictionaryArray:
        """The kinds of operations."""
        return pa.DictionaryArray.from_arrays(pa.array(self._workload.kind[ops].astype(np.int8)), pa.array(KIND_NAMES))

    def slots(self, ops: npt.NDArray[np.integer]) -> pa.Array:
        """The slot ids of operations; empty for a malformed frame."""
        is_frame = pa.array(self._workload.kind[ops] == FRAME)
        return pc.if_else(is_frame, pa.scalar(""), self._ids(ops))

    def arguments(self, ops: npt.NDArray[np.integer]) -> list[pa.Array]:
        """The columns of `cpsim.protocol.arguments.fields`."""
        workload = self._workload
        kinds, rows = workload.kind[ops], workload.row[ops]
        found: list[pa.Array] = []
        for code, kind in enumerate(KIND_NAMES):
            table, places = workload.arguments[kind], np.flatnonzero(kinds == code)
            if code == FRAME:
                found.append(self._frames(ops, places))
                continue
            of_kind = rows[places]
            found += [self._column(column, places, of_kind, len(ops)) for column in table.fixed.values()]
            if (free := OPERATIONS[kind].free) is not None:
                found.append(self._maps(table, TYPES[free], places, of_kind, len(ops)))
        return found

    def _ids(self, ops: npt.NDArray[np.integer]) -> pa.Array:
        slots = self._workload.slot[ops]
        if self._workload.slot_ids:
            return pa.array([self._workload.slot_ids[slot] for slot in slots.tolist()], pa.string())
        numbers = pa.array(self._workload.slot_numbers[slots]).cast(pa.string())
        return pc.binary_join_element_wise(self._prefix, numbers, "-")

    def _column(self, column: Column, places: npt.NDArray[np.intp], rows: Int32, count: int) -> pa.Array:
        values = np.full(count, ABSENT)
        values[places] = column.values[rows]
        numbers = pa.array(values, mask=values == ABSENT)
        return numbers if column.texts is None else self._pools[id(column.texts)].take(numbers)

    def _maps(
        self, table: Arguments, of: pa.DataType, places: npt.NDArray[np.intp], rows: Int32, count: int
    ) -> pa.Array:
        values: Int64 | Int32 = table.free[rows]
        given = values != ABSENT
        sizes = np.zeros(count + 1, np.int32)
        sizes[places + 1] = given.sum(axis=1)
        absent = np.ones(count + 1, bool)
        absent[places] = absent[-1] = False
        offsets = pa.array(np.cumsum(sizes, dtype=np.int32), mask=absent)
        column = np.nonzero(given)[1]
        items = pa.array(values[given], pa.int64())
        if table.choices is not None:
            firsts = np.cumsum([0, *map(len, table.choices)])
            texts = pa.array([text for choices in table.choices for text in choices], pa.string())
            items = texts.take(pa.array(values[given] + firsts[column]))
        return pa.MapArray.from_arrays(offsets, pa.array(table.names, pa.string()).take(pa.array(column)), items).cast(
            pa.map_(pa.string(), of)
        )

    def _frames(self, ops: npt.NDArray[np.integer], places: npt.NDArray[np.intp]) -> pa.Array:
        frames: list[bytes | None] = [None] * len(ops)
        form = self._workload.arguments[KIND_NAMES[FRAME]].fixed["frame"]
        slots = self._ids(ops[places]).to_pylist()
        for place, slot, row in zip(places.tolist(), slots, self._workload.row[ops[places]].tolist(), strict=True):
            assert form.texts is not None
            frames[place] = frame_bytes(form.texts[form.values[row]], slot.encode())
        return pa.array(frames, pa.binary())


def places_of(values: pa.ChunkedArray, known: Sequence[str]) -> Int64:
    """The place of each text among those that are known.

    Raises:
        ValueError: one is not.
    """
    places = indices(values, pa.array(known, pa.string()))
    if np.any(places < 0):
        raise ValueError(f"there is a text that is none of {', '.join(known)}")
    return places


def indices(values: pa.Array | pa.ChunkedArray, known: pa.Array) -> Int64:
    """The index of each value among the known ones, the first of equal ones; -1 for other values.

    Values may be dictionary-encoded, which is fast.
    """
    if not pa.types.is_dictionary(values.type):
        return np.asarray(pc.fill_null(pc.index_in(values, value_set=known, skip_nulls=True), -1)).astype(np.int64)
    if isinstance(values, pa.ChunkedArray):
        found = [indices(chunk, known) for chunk in values.chunks]
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.int64), *found])
    of_texts = np.append(indices(values.dictionary, known), -1)
    places: Int64 = of_texts.take(np.asarray(pc.fill_null(values.indices, len(of_texts) - 1)))
    return places


def ascending(values: Int64) -> Int64 | slice:
    """What puts values in ascending order, equal ones as they come; nothing is moved where all are in order."""
    if np.all(values[1:] >= values[:-1]):
        return slice(None)
    return np.argsort(values, kind="stable")


def places_among(known: Int64, numbers: Int64) -> Int64:
    """The place of each number among known ones, which ascend; any place for another number."""
    steps = np.diff(known)
    if len(steps) and steps[0] > 0 and np.all(steps == steps[0]):  # as in a partition of which no slot is missing
        places = (numbers - known[0]) // steps[0]
    else:
        places = np.searchsorted(known, numbers)
    inside: Int64 = np.clip(places, 0, len(known) - 1)
    return inside


def slot_ids(workload: Workload, prefix: str) -> pa.Array:
    """The ids of a workload's slots."""
    if workload.slot_ids:
        return pa.array(workload.slot_ids, pa.string())
    return pc.binary_join_element_wise(pa.scalar(prefix), pa.array(workload.slot_numbers).cast(pa.string()), "-")


def _texts(table: Arguments) -> list[tuple[str, ...]]:
    return [column.texts for column in table.fixed.values() if column.texts is not None]
