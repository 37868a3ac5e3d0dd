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
        machines = pc.fill_null(slots["machine"], "") if "machine" in shown else ""
        joined = pc.binary_join_element_wise(slots["project"], machines, SEPARATOR)
        holders = whole(joined).filter(pa.array(paid)).dictionary_encode()
        whose = np.full(len(slots), -1)
        whose[paid] = np.asarray(holders.indices)
        names, entries = [CREDITS], None
        if "counters" in shown:
            offsets, keys, amounts = map_entries(slots["counters"])
            keys = keys.dictionary_encode()
            names += [name for name in keys.dictionary.to_pylist() if name != CREDITS]
            entries = np.repeat(whose, np.diff(offsets)), keys, amounts
        values = np.zeros((len(holders.dictionary), len(names)), np.int64)
        if "granted" in shown:
            np.add.at(values[:, 0], whose[paid], np.asarray(pc.fill_null(slots["granted"], 0))[paid])
        if entries is not None:
            of_entries, keys, amounts = entries
            column = indices(keys.dictionary, pa.array(names, pa.string()))[np.asarray(keys.indices)]
            given = of_entries >= 0
            place = of_entries[given] * len(names) + column[given]
            np.add.at(values.reshape(-1), place, np.asarray(pc.fill_null(amounts, 0))[given])
        return cls(holders.dictionary, tuple(names), values)

    def merged(self, other: Granted) -> Granted:
        """The sums of both."""
        holders = pc.unique(pa.concat_arrays([self.holders, other.holders]))
        names = tuple(dict.fromkeys([*self.names, *other.names]))
        return Granted(holders, names, self.values_of(holders, names) + other.values_of(holders, names))

    def values_of(self, holders: pa.Array, names: Sequence[str]) -> Ints:
        """The sums in another order of holders and names, which has all that are here: int64[holders, names]."""
        values = np.zeros((len(holders), len(names)), np.int64)
        if len(self.holders):
            values[np.ix_(indices(self.holders, holders), [names.index(name) for name in self.names])] = self.values
        return values


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
