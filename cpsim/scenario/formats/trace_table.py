"""The file of a trace: some of its columns, piece by piece."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TIMES_US: Final = {"scenario_us": 1.0, "due_us": 1.0, "sent_us": 1.0, "time_s": 1e6, "time": 0.0}
"""Columns of times, and how many microseconds one of their units is; 0 where a time is a date. The first that there is
counts."""
OWNERS: Final = b"cpsim.owners"
"""The key of a journal's schema metadata that says whose each machine is, a JSON object."""
PIECE_ROWS: Final = 1 << 14
_MISSING: Final = frozenset({"", "NULL", "null", "NA", "N/A", "n/a", "#N/A", "nan", "NaN", None})
"""Texts that stand for no number in a CSV."""


def column_names(path: Path) -> list[str]:
    """The names of a table's columns; none where they cannot be read.

    Raises:
        OSError: the file cannot be read.
    """
    from cpsim.system.parquet import DamagedParquet, opened  # noqa: PLC0415 - slow to import, and only traces need it

    if path.suffix.lower() == ".parquet":
        try:
            with opened(path) as parquet:
                return list(parquet.schema_arrow.names)
        except DamagedParquet:
            return []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return next(csv.reader([file.readline()]), [])
        except csv.Error:
            return []


class TraceTable:
    """A table in a file, of which some columns are read in pieces.

    Args:
        path: the file.

    Attributes:
        names: of its columns.
        owners: whose each machine is, as far as its metadata says it.

    Raises:
        ScenarioError: it is no such table; reading may raise it too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_parquet = path.suffix.lower() == ".parquet"
        with self._opened() as file:
            schema = file.schema_arrow if self._is_parquet else file.schema
            self.names: list[str] = schema.names
        self.owners: dict[str, str] = json.loads((schema.metadata or {}).get(OWNERS, b"{}"))

    def pieces(self, names: list[str]) -> Iterator[Any]:
        """Some columns of its rows, piece by piece; those of CSV are texts."""
        import pyarrow as pa  # noqa: PLC0415 - slow to import, and only traces need it

        from cpsim.system.parquet import checked  # noqa: PLC0415

        with self._opened(names) as file:
            for batch in file.iter_batches(PIECE_ROWS, columns=names) if self._is_parquet else file:
                yield checked(pa.Table.from_batches([batch]))

    def values(self, piece: Any, name: str) -> list[Any]:  # noqa: ANN401 - pyarrow has no types
        """The values of a piece in a column of times, None for one that is missing."""
        values: list[Any] = piece[name].to_pylist()
        if self._is_parquet or not TIMES_US[name]:
            return values
        return [None if value in _MISSING else value for value in values]

    def time_column(self) -> str | None:
        """The first column of times in which there is one; None if there is none."""
        known = [column for column in TIMES_US if column in self.names]
        for column in known:
            for piece in self.pieces([column]):
                if any(value is not None for value in self.values(piece, column)):
                    return column
        is_empty = not any(len(piece) for piece in self.pieces(known))
        return known[0] if known and is_empty else None

    @contextmanager
    def _opened(self, names: Sequence[str] = ()) -> Iterator[Any]:
        import pyarrow as pa  # noqa: PLC0415 - slow to import, and only traces need it
        import pyarrow.csv  # noqa: PLC0415

        from cpsim.system.parquet import DamagedParquet, opened  # noqa: PLC0415

        lines = pyarrow.csv.ParseOptions(newlines_in_values=True)  # as a malformed frame may have them
        texts = pyarrow.csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
        try:
            if self._is_parquet:
                with opened(self._path) as file:
                    yield file
            else:
                with pyarrow.csv.open_csv(self._path, parse_options=lines, convert_options=texts) as file:
                    yield file
        except UnicodeDecodeError as error:
            raise ScenarioError(f"{self._path}: the names of its columns are not UTF-8: save it as UTF-8") from error
        except (pa.ArrowException, DamagedParquet) as error:
            what = self._path.suffix[1:].upper()
            raise ScenarioError(f"{self._path}: cannot be read as {what}: {error}") from error
