"""Parquet files, of which any may be damaged."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet
    from io import BytesIO
    from pathlib import Path


class DamagedParquet(CpsimError):
    """A file is not whole Parquet; the message names it."""


def read(file: Path | BytesIO, name: object = None, wanted: Callable[[str], bool] | None = None) -> pa.Table:
    """The table in a Parquet file, all of whose texts are texts.

    Args:
        file: the file, or its bytes.
        name: what errors call it; by default the path.
        wanted: whether a column of that name is read; by default all are.

    Raises:
        DamagedParquet: it is not whole Parquet.
        OSError: it cannot be opened.
    """
    with opened(file, name) as parquet:  # pyarrow's `read_table` would import pandas
        names = None if wanted is None else [name for name in parquet.schema_arrow.names if wanted(name)]
        return checked(parquet.read(columns=names))


def checked(table: pa.Table) -> pa.Table:
    """A table that was read; raises pyarrow.ArrowInvalid if a text in it is none, or another value is damaged."""
    table.validate(full=True)
    return table


@contextmanager
def opened(
    file: Path | BytesIO,
    name: object = None,
    metadata: pq.FileMetaData | None = None,
    encoded: AbstractSet[str] = frozenset(),
) -> Iterator[Any]:
    """Open a Parquet file, as a `pyarrow.parquet.ParquetFile`.

    Args:
        file: the file, or its bytes.
        name: what errors call it; by default the path.
        metadata: of the same file, if it was opened before.
        encoded: the paths of columns that are read dictionary-encoded, if it has them.

    Raises:
        DamagedParquet: it is not whole Parquet, which may show only when it is read.
        OSError: it cannot be opened.
    """
    try:
        paths = None
        if encoded:
            metadata = metadata or pq.read_metadata(file)
            places = range(len(metadata.schema))
            paths = [path for place in places if (path := metadata.schema.column(place).path) in encoded]
        with pq.ParquetFile(file, metadata=metadata, read_dictionary=paths) as parquet:
            yield parquet
    except MemoryError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = " ".join(str(error).split())
        raise DamagedParquet(f"{name or file} is damaged or cut short, not whole Parquet: {what}") from error
