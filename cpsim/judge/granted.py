"""What claims granted, added up by machine, of the slots of any part of a ledger. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.judge.columns import indices, map_entries
from cpsim.judge.corrections import CREDITS
from cpsim.system.mapped_rows import pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

SEPARATOR: Final = "\x1f"
"""Separates a project id from a machine id; neither contains it, because no command can."""


@dataclass(frozen=True, slots=True, eq=False)
class Granted:
    """Sums over claimed slots; merging is associative. Sums have 64 bits and wrap.

    Attributes:
        holders: project and machine, joined by `SEPARATOR`; the machine is "" where it is not shown.
        names: credits, and each counter that any slot has, claimed or not.
        values: int64[holders, names].
    """

    holders: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    names: tuple[str, ...] = (CREDITS,)
    values: Ints = field(default_factory=lambda: np.zeros((0, 1), np.int64))

    @classmethod
    def of(cls, slots: pa.Table | None) -> Granted:
        """Those of a table of slots; none, if it does not show their states."""
        if slots is None or "state" not in slots.column_names:
            return cls()
        return reduce(cls.merged, map(cls._of_piece, pieces(slots)), cls())

    @classmethod
    def _of_piece(cls, slots: pa.Table) -> Granted:
        shown = slots.column_names
        paid = np.asarray(is_paid(slots))
        holders, whose = _holders(slots, paid)
        names, entries = [CREDITS], None
        if "counters" in shown:
            offsets, keys, amounts = map_entries(slots["counters"])
            keys = keys.dictionary_encode()
            names += [name for name in keys.dictionary.to_pylist() if name != CREDITS]
            entries = np.repeat(whose, np.diff(offsets)), keys, amounts
        values = np.zeros((len(holders), len(names)), np.int64)
        if "granted" in shown:
            amounts = np.asarray(pc.fill_null(slots["granted"], 0))[paid]
            values[:, 0] += _added_up(whose[paid], amounts, len(values))
        if entries is not None:
            of_entries, keys, amounts = entries
            column = indices(keys.dictionary, pa.array(names, pa.string()))[np.asarray(keys.indices)]
            given = of_entries >= 0
            place = of_entries[given] * len(names) + column[given]
            amounts = np.asarray(pc.fill_null(amounts, 0))[given]
            values += _added_up(place, amounts, values.size).reshape(values.shape)
        return cls(holders, tuple(names), values)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Granted)
            and self.holders.equals(other.holders)
            and self.names == other.names
            and np.array_equal(self.values, other.values)
        )

    __hash__ = None  # type: ignore[assignment]

    def merged(self, other: Granted) -> Granted:
        """The sums of both."""
        holders = pc.unique(pa.concat_arrays([self.holders, other.holders]))
        names = tuple(dict.fromkeys([*self.names, *other.names]))
        return Granted(holders, names, self.values_of(holders, names) + other.values_of(holders, names))

    def values_of(self, holders: pa.Array, names: Sequence[str]) -> Ints:
        """The sums in another order of holders and names, which has all that are here: int64[holders, names]."""
        values = np.zeros((len(holders), len(names)), np.int64)
        if len(self.holders):
            columns = np.array([names.index(name) for name in self.names])
            values[np.ix_(indices(self.holders, holders), columns)] = self.values
        return values


def _holders(slots: pa.Table, paid: npt.NDArray[np.bool_]) -> tuple[pa.Array, Ints]:
    """The distinct holders of the slots that are paid, as they come; and the one of each slot, -1 if it is not paid."""
    rows = slots.select([name for name in ("project", "machine") if name in slots.column_names])
    rows = rows.filter(pa.array(paid))
    projects = whole(rows["project"]).dictionary_encode()
    shown = pc.fill_null(rows["machine"], "") if "machine" in rows.column_names else pa.repeat("", len(rows))
    machines = whole(shown).dictionary_encode()
    known = max(1, len(machines.dictionary))
    pairs = np.asarray(projects.indices).astype(np.int64) * known + np.asarray(machines.indices)
    distinct = pa.array(pairs).dictionary_encode()  # texts that are joined would take longer, one for each slot
    project, machine = np.divmod(np.asarray(distinct.dictionary), known)
    holders = pc.binary_join_element_wise(
        projects.dictionary.take(pa.array(project)), machines.dictionary.take(pa.array(machine)), SEPARATOR
    )
    whose = np.full(len(slots), -1)
    whose[paid] = np.asarray(distinct.indices)
    return holders, whose


def _added_up(places: Ints, amounts: Ints, size: int) -> Ints:
    """The sum of the amounts at each place."""
    largest = max(int(amounts.max(initial=0)), -int(amounts.min(initial=0)))
    if largest * len(amounts) < 2**53:  # floating point is exact, and fast
        return np.bincount(places, amounts, size).astype(np.int64)
    sums = np.zeros(size, np.int64)
    np.add.at(sums, places, amounts)
    return sums


def is_paid(slots: pa.Table) -> pa.Array:
    """The slots that are claimed, or were and, as a quirk has it, are settled otherwise since."""
    states = slots["state"]
    paid = pc.equal(states, "claimed")
    if "granted" in slots.column_names:
        is_settled = pc.is_in(states, value_set=pa.array(["discarded", "expired"]))
        paid = pc.or_(paid, pc.and_(is_settled, pc.is_valid(slots["granted"])))
    return pc.fill_null(paid, fill_value=False)


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
