"""A table of jobs, CSV or Parquet, a row per job; `[log] columns` says which column is what."""

from __future__ import annotations

import csv
from datetime import UTC
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_args

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.job_log import wrong
from cpsim.scenario.formats.jobs import JobRecord
from cpsim.scenario.formats.slurm import STATES
from cpsim.scenario.schema import ColumnName, FieldName, Status, TimeColumn
from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.scenario.formats.job_log import JobLog

PARQUET_MAGIC: Final = b"PAR1"
WORDS: Final = {
    **{word: word for word in get_args(Status)},
    **{state.lower(): word for state, word in STATES.items()},
    "claimed": "completed",
    "discarded": "failed",
    "allocated": "unfinished",
    "expired": "unfinished",
}
"""What a text in a column of statuses means, in whatever case, unless `[log] statuses` says it.

States of slots are among them, for a table of what they should be."""


class TableFormat(JobFormat):
    what = "a table of jobs (.csv, .parquet)"
    suffixes = (".csv", ".tsv", ".parquet")
    doubted: ClassVar[bool] = True

    def __init__(self, file: JobLog) -> None:
        super().__init__(file)
        given = file.log.columns
        self._columns = {
            key: column.name if isinstance(column := given.get(key, key), TimeColumn) else column
            for key in get_args(ColumnName)
        }
        self._units: dict[str, str] = {
            key: column.unit if isinstance(column, TimeColumn) else "s" for key, column in given.items()
        }
        self._has: set[str] = set()

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """See `JobFormat`: a row is its values by the name of their column."""
        yield from self._parquet() if self.file.head().startswith(PARQUET_MAGIC) else self._csv()

    def _csv(self) -> Iterator[tuple[str, dict[str, Any]]]:
        delimiter = "\t" if self.file.path.name.lower().endswith(".tsv") else self.file.log.delimiter
        reader = csv.reader((line + "\n" for _, line in self.file.lines()), delimiter=delimiter)
        names: list[str] | None = None
        try:
            for values in reader:
                if not values:
                    continue
                if names is None:
                    names = [name.strip() for name in values]
                    self._check(names)
                elif len(values) != len(names):
                    self.file.skip(
                        f"line {reader.line_num}", f"{len(values)} fields: expected {len(names)}, as in the first line"
                    )
                else:
                    yield f"line {reader.line_num}", dict(zip(names, values, strict=True))
        except csv.Error as error:
            raise ScenarioError(f"{self.file.path}, line {reader.line_num}: not CSV: {error}") from error

    def _parquet(self) -> Iterator[tuple[str, dict[str, Any]]]:
        import pyarrow as pa  # noqa: PLC0415 - slow to import, and only tables need it

        from cpsim.system.parquet import opened  # noqa: PLC0415

        try:
            with opened(self.file.path) as file:
                schema = file.schema_arrow
                self._check(schema.names)
                wanted = [name for name in dict.fromkeys(self._columns.values()) if name in schema.names]
                row = 0
                for batch in file.iter_batches(columns=wanted):
                    columns = []
                    for name in wanted:
                        column = batch.column(name)
                        if pa.types.is_timestamp(column.type):  # to_pylist has no room for nanoseconds
                            column = column.cast(pa.timestamp("us", column.type.tz and str(UTC)), safe=False)
                        elif pa.types.is_duration(column.type):
                            column = column.cast(pa.duration("us"), safe=False)
                        columns.append(column.to_pylist())
                    for values in zip(*columns, strict=True):
                        row += 1
                        yield f"row {row}", dict(zip(wanted, values, strict=True))
        except pa.ArrowException as error:
            raise ScenarioError(f"{self.file.path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error

    def _check(self, names: list[str]) -> None:
        """Check that the columns are there."""
        asked = [str(self._columns[key]) for key in self.file.log.columns]
        missing = [name for name in asked if name not in names]
        self._has = {key for key, name in self._columns.items() if name in names}
        if missing:
            raise ScenarioError(
                f"{self.file.path}: no column {', '.join(missing)}, as [log] columns has it: it has {', '.join(names)}"
            )
        lacks = [key for key in ("job", *(["submit"] if self.file.needs_times else [])) if key not in self._has]
        if not self._has & {"status", "exit_code"}:
            lacks.append("status (or exit_code)")
        if self.file.needs_times and not self._has & {"end", "run_time"}:
            lacks.append("end (or run_time)")
        if lacks:
            raise ScenarioError(
                f"{self.file.path}: no column {', '.join(lacks)}: it has {', '.join(names)}: say in [log] which is "
                f'which, such as columns = {{ {lacks[0].partition(" ")[0]} = "{names[0]}" }}'
            )

    def record(self, row: dict[str, Any], /) -> JobRecord:
        submit_us, start_us, end_us = (self._time(row, key) for key in ("submit", "start", "end"))
        name, value = self._columns["run_time"], self._value(row, "run_time")
        run_us = self.file.duration_us(name, value, self._units.get("run_time", "s"))
        status = self._status(row)
        if end_us is None and start_us is None and run_us is not None and submit_us is not None:
            start_us = submit_us
        ids = {
            key: self.file.text(self._columns[key], self._value(row, key))
            for key in ("job", "user", "machine", "owner")
        }
        return JobRecord(
            job=ids["job"],
            status=status,
            submit_us=submit_us,
            start_us=start_us,
            end_us=end_us,
            run_us=run_us,
            user=ids["user"],
            node=ids["machine"],
            owner=ids["owner"],
            fields={key: str(self._value(row, key) or "") for key in get_args(FieldName) if key in self._has},
        )

    def _value(self, row: dict[str, Any], key: str) -> Any:  # noqa: ANN401 - whatever the table holds
        return row.get(self._columns[key])

    def _time(self, row: dict[str, Any], key: str) -> int | None:
        return self.file.time_us(self._columns[key], self._value(row, key), self._units.get(key, "s"))

    def _status(self, row: dict[str, Any]) -> str:
        if "status" in self._has:
            column, value = self._columns["status"], self._value(row, "status")
            text = "" if value is None else str(value).strip()
            word = self.file.log.statuses.get(text) or WORDS.get(text.partition(" ")[0].lower())
            if word is None:
                known = ", ".join([*self.file.log.statuses, *get_args(Status)])
                raise wrong(column, value, f"one of {known}, or what [log] statuses says of it")
            return word
        column, value = self._columns["exit_code"], self._value(row, "exit_code")
        text = "" if value is None else str(value).strip()
        if not text:
            return "unfinished"
        codes = text.split(":")  # Slurm has the code and the signal
        if len(codes) > 2 or not all(code.lstrip("-").isdigit() and code.isascii() for code in codes):
            raise wrong(column, value, "a whole number, 0 where the job completed")
        return "completed" if not any(map(int, codes)) else "failed"
