"""What claims granted, added up by machine, of the slots of any part of a ledger. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.judge.columns import map_entries, whole
from cpsim.judge.corrections import CREDITS
from cpsim.scenario.formats.arrow import indices
from cpsim.system.mapped_rows import pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

ROWS: Final = 131_072
"""Rows that are added up at a time."""
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
        return reduce(cls.merged, map(cls._of_piece, pieces(slots, ROWS)), cls())

    @classmethod
    def _of_piece(cls, slots: pa.Table) -> Granted:
        shown = slots.column_names
        paid = np.asarray(is_paid(slots))
        holders, whose = _holders(slots, paid)
        names, entries = [CREDITS], None
        if "counters" in shown:
            offsets, keys, amounts = map_entries(slots["counters"])
            keys = _encoded(keys)
            names = list(dict.fromkeys([CREDITS, *keys.dictionary.to_pylist()]))
            entries = np.repeat(whose, np.diff(offsets)), keys, amounts
        values = np.zeros((len(holders), len(names)), np.int64)
        if "granted" in shown:
            amounts = np.asarray(pc.fill_null(slots["granted"], 0))[paid]
            values[:, 0] += _added_up(whose[paid], amounts, len(values))
        if entries is not None:
            of_entries, keys, amounts = entries
            column = indices(keys, pa.array(names, pa.string()))
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
        for one, more in ((self, other), (other, self)):
            if one.names == (CREDITS,) and not len(one.holders):
                return more
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
    projects, project = _places(slots["project"])
    shown = slots["machine"] if "machine" in slots.column_names else pa.nulls(len(slots), pa.string())
    machines, machine = _places(shown)
    pairs = project[paid] * len(machines) + machine[paid]
    distinct = pa.array(pairs).dictionary_encode()  # texts that are joined would take longer, one for each slot
    project, machine = np.divmod(np.asarray(distinct.dictionary), len(machines))
    holders = pc.binary_join_element_wise(projects.take(pa.array(project)), machines.take(pa.array(machine)), SEPARATOR)
    whose = np.full(len(slots), -1)
    whose[paid] = np.asarray(distinct.indices)
    return holders, whose


def _places(column: pa.ChunkedArray) -> tuple[pa.Array, Ints]:
    """The distinct texts of a column, and the place of each of its values among them; none is the empty text."""
    encoded, nothing = _encoded(whole(column)), pa.array([""])
    distinct = pc.unique(pa.concat_arrays([encoded.dictionary, nothing]))
    places = indices(encoded, distinct)
    return distinct, np.where(places < 0, indices(nothing, distinct), places)


def _encoded(values: pa.Array) -> pa.DictionaryArray:
    return values if pa.types.is_dictionary(values.type) else values.dictionary_encode()


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
    states = indices(slots["state"], pa.array(["claimed", "discarded", "expired"]))
    paid = states == 0
    if "granted" in slots.column_names:
        paid |= (states > 0) & np.asarray(pc.is_valid(slots["granted"]))
    return pa.array(paid)
