"""Tables in temporary files that are mapped."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from cpsim.system.mapped import let_go, mapped, writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

ROWS: Final = 65_536
"""Rows of a piece."""


class MappedRows:
    """Rows that are written to a temporary file piece by piece, and read from there as one table.

    A context manager, after which it takes no more; what was read stays as long as somebody has it.

    Args:
        schema: of all pieces.

    Raises:
        NoRoom: the file cannot be written, from the beginning of the context on.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def __enter__(self) -> Self:
        with writing():
            self._file = tempfile.TemporaryFile(buffering=1 << 20)
            self._writer = pa.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it cannot be written, which was said
            self._file.close()

    def add(self, piece: pa.Table) -> None:
        """Write a piece; raises NoRoom."""
        with writing():
            self._writer.write_table(piece)

    def table(self) -> pa.Table:
        """All rows, see `batches`."""
        written = self.batches()
        batches = []
        for number in range(written.num_record_batches):
            batches.append(written.get_batch(number))
            let_go()  # Arrow looks at what is in it
        return pa.Table.from_batches(batches, written.schema)

    def batches(self) -> pa.ipc.RecordBatchFileReader:
        """The rows in the batches in which they came; it takes no more. Raises NoRoom."""
        with writing():
            self._writer.close()
            return pa.ipc.open_file(pa.py_buffer(mapped(self._file)))

    def unmapped_batches(self) -> pa.ipc.RecordBatchFileReader:
        """The same, each read when it is taken: of small ones all over a file, a map takes in what is between."""
        with writing():
            self._writer.close()
            self._file.flush()
            return pa.ipc.open_file(pa.OSFile(f"/dev/fd/{self._file.fileno()}"))


def pieces(table: pa.Table, rows: int = ROWS) -> Iterator[pa.Table]:
    """The rows of a table, so many at a time; what was read of files meanwhile takes no memory from the next on."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
        let_go()


def together(tables: Iterable[pa.Table], rows: int = ROWS) -> Iterator[pa.Table]:
    """The rows of small tables, so many at a time or more: each array of a column takes some hundred bytes."""
    small: list[pa.Table] = []
    for table in tables:
        small.append(table)
        if sum(map(len, small)) >= rows:
            yield pa.concat_tables(small).combine_chunks()
            small = []
    if small:
        yield pa.concat_tables(small).combine_chunks()
