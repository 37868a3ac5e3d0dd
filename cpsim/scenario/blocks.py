"""Operations that are made a block of one kind at a time, and put in the order of time."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cpsim.scenario.workload import KIND_CODES, KIND_NAMES, OPERATIONS, Arguments, Column, Int32, Int64, UInt8, joined
from cpsim.system.external_sort import in_order
from cpsim.system.growing import Growing
from cpsim.system.mapped import stored, stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cpsim.scenario.workload import Given

MOMENT: Final = np.dtype([("due_us", np.int64), ("kind", np.uint8), ("slot", np.int32), ("row", np.int32)])
"""An operation while operations are put in the order of time."""
PAGE_BYTES: Final = 1 << 14
"""Where a workload is made in parts, arrays that take fewer stay in memory."""


class _Block(NamedTuple):
    """Operations of one kind; see `Blocks.add`. The slot of those of other shares is -1, and they have no arguments."""

    kind: str
    due_us: Int64
    slot: Int32
    given: Mapping[str, Given]
    rows: int


class Blocks:
    """Collects operations, a block of one kind at a time; those of large blocks are in temporary files.

    Operations of a slot that are due at the same microsecond happen in the order of their blocks.
    """

    def __init__(self) -> None:
        self._blocks: list[list[_Block]] = []

    def add(self, kind: str, due_us: Int64, slot: Int32, given: Mapping[str, Given] | None = None) -> None:
        """Add operations.

        Args:
            kind: one of OPERATIONS.
            due_us: when each is due.
            slot: of each.
            given: arguments by name; what is missing is not given. Columns of texts under one name have the same texts.
        """
        kept = {name: _stored(column) for name, column in (given or {}).items()}
        self._blocks.append([_Block(kind, stored(due_us), stored(slot), kept, len(slot))])

    def extend(self, later: Blocks, slots: Int64) -> None:
        """Add to each block, in their order, the operations of one of other blocks.

        Args:
            later: the other blocks, as many of the same kinds.
            slots: the slot that each of theirs is here; -1 for those of other shares.
        """
        if not self._blocks:
            self._blocks = [[] for _ in later._blocks]
        for block, ((more,),) in zip(self._blocks, zip(later._blocks, strict=True), strict=True):
            slot = slots[more.slot].astype(np.int32)
            own = slot >= 0
            rows = int(np.count_nonzero(own))
            given = {
                name: _stored(column if rows == len(own) else _of_rows(column, own), PAGE_BYTES)
                for name, column in more.given.items()
            }
            block.append(_Block(more.kind, stored(more.due_us, PAGE_BYTES), stored(slot, PAGE_BYTES), given, rows))

    def update(self, add: Callable[[bytes], None]) -> None:
        """Have all operations, in the order in which they were added, be part of a digest."""
        for part in chain.from_iterable(self._blocks):
            columns = {"due_us": part.due_us, "slot": part.slot, **part.given}
            add(f"{part.kind} {part.rows} {','.join(columns)} ".encode())
            for column in columns.values():
                values = column.values if isinstance(column, Column) else column
                add(values.tobytes() if isinstance(values, np.ndarray) else str(values).encode())

    def timeline(self) -> tuple[Int64, UInt8, Int32, Int32]:
        """The columns due_us, kind, slot and row of a workload."""
        return timeline(self._moments())

    def share(self) -> tuple[tuple[Int64, UInt8, Int32, Int32], Int64, int]:
        """The columns of a share, the numbers of its operations in the whole, and how many the whole has."""
        numbers, total = Growing(), 0

        def own() -> Iterator[npt.NDArray[np.void]]:
            nonlocal total
            for piece in _in_order(self._moments()):
                places = np.flatnonzero(piece["slot"] >= 0)
                numbers.add(total + places)
                total += len(piece)
                yield piece.take(places)

        columns = _columns(own())
        return columns, numbers.array(), total

    def _moments(self) -> Sequence[tuple[str, Int64, Int32]]:
        return [(part.kind, part.due_us, part.slot) for part in chain.from_iterable(self._blocks)]

    def arguments(self) -> dict[str, Arguments]:
        """The arguments of each kind."""
        parts: dict[str, list[tuple[int, Mapping[str, Given]]]] = {kind: [] for kind in OPERATIONS}
        for block in self._blocks:
            for part in block:
                parts[part.kind].append((part.rows, part.given))
        return {kind: joined(description, parts[kind]) for kind, description in OPERATIONS.items()}


def timeline(blocks: Sequence[tuple[str, Int64, Int32]]) -> tuple[Int64, UInt8, Int32, Int32]:
    """Merge blocks of operations in order of their due times.

    Args:
        blocks: kind, due_us and slot of operations, in the order in which operations of a slot must happen when
            they are due at the same microsecond. The rows of a kind are 0, 1, ..., from one of its blocks to the next.

    Returns:
        The columns due_us, kind, slot and row of a workload.
    """
    return _columns(_in_order(blocks))


def _in_order(blocks: Sequence[tuple[str, Int64, Int32]]) -> Iterator[npt.NDArray[np.void]]:
    """The operations of blocks in the order of time, of which those of no slot have no row."""

    def moments() -> Iterator[npt.NDArray[np.void]]:
        rows = dict.fromkeys(KIND_NAMES, 0)
        for kind, due_us, slot in blocks:
            for where in stretches(len(due_us)):
                values = np.empty(where.stop - where.start, MOMENT)
                values["due_us"], values["slot"] = due_us[where], slot[where]
                values["kind"] = KIND_CODES[kind]
                own = values["slot"] >= 0
                values["row"] = rows[kind] - 1 + np.cumsum(own)
                rows[kind] += int(np.count_nonzero(own))
                yield values

    return in_order(moments(), "due_us")


def _columns(pieces: Iterable[npt.NDArray[np.void]]) -> tuple[Int64, UInt8, Int32, Int32]:
    columns = {name: Growing(MOMENT[name]) for name in MOMENT.names or ()}
    for piece in pieces:
        for name, column in columns.items():
            column.add(piece[name])
    due_us, kind, slot, row = (column.array() for column in columns.values())
    return due_us, kind, slot, row


def _stored(given: Given, least_bytes: int | None = None) -> Given:
    if isinstance(given, Column):
        return Column(stored(given.values, least_bytes), given.texts)
    return stored(given, least_bytes) if isinstance(given, np.ndarray) else given


def _of_rows(given: Given, own: npt.NDArray[np.bool_]) -> Given:
    if isinstance(given, Column):
        return Column(given.values[own], given.texts)
    return given[own] if isinstance(given, np.ndarray) else given
