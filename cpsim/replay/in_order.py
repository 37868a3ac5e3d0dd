"""Workloads put in the order in which they are sent, before that begins.

Jobs that end together began at any time, so the arguments of operations that follow one another are all over a
workload's files. What is read while operations are sent is to follow one another too: it takes no memory then, however
long the workload is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cpsim.scenario.workload import Arguments, Column, constant
from cpsim.system.growing import Growing
from cpsim.system.mapped import give_back, stretches, taken_anywhere

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.scenario.workload import Int32, Int64, Workload


def in_order(workload: Workload) -> tuple[Workload, Int64]:
    """The same operations with their arguments in their order, and the number of each one's slot."""
    numbers, row = Growing(np.int64), Growing(np.int32)
    tables = [_Table(table) for table in workload.arguments.values()]
    for where in stretches(len(workload)):
        kinds, rows = workload.kind[where], workload.row[where]
        numbers.add(taken_anywhere(workload.slot_numbers, workload.slot[where]))
        new_rows = np.empty(len(rows), np.int32)
        for code in np.unique(kinds).tolist():
            places = np.flatnonzero(kinds == code)
            new_rows[places] = tables[code].add(rows[places])
        row.add(new_rows)
    arguments = {kind: table.arguments() for kind, table in zip(workload.arguments, tables, strict=True)}
    give_back()
    return replace(workload, row=row.array(), arguments=arguments), numbers.array()


class _Table:
    """The arguments of a kind, whose rows are put in another order."""

    def __init__(self, table: Arguments) -> None:
        self._table, self._count = table, 0
        self._columns = {name: Growing(column.values.dtype) for name, column in table.fixed.items()}
        self._free = Growing(table.free.dtype)

    def add(self, rows: Int32) -> Int64:
        """Add rows; returns where they are."""
        for name, column in self._columns.items():
            values = self._table.fixed[name].values
            if not _is_constant(values):
                column.add(taken_anywhere(values, rows))
        if self._table.names:
            self._free.add(taken_anywhere(self._table.free, rows))
        first, self._count = self._count, self._count + len(rows)
        return np.arange(first, self._count)

    def arguments(self) -> Arguments:
        """All that were added."""
        fixed = {
            name: Column(constant(int(values[0]), self._count) if _is_constant(values) else of.array(), texts)
            for (name, (values, texts)), of in zip(self._table.fixed.items(), self._columns.values(), strict=True)
        }
        free = self._table.free
        if self._table.names:
            free = self._free.array().reshape(self._count, len(self._table.names))
        return replace(self._table, fixed=fixed, free=free)


def _is_constant(values: npt.NDArray[Any]) -> bool:
    return bool(len(values)) and 0 in values.strides
