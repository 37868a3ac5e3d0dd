"""The views behind every figure, in a DuckDB over Parquet files, which may be larger than memory."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb

from cpdaemon.commands import COMMANDS
from cpsim.accounting.sources import ACCOUNT_COLUMNS, RECEIVED_COLUMNS, SLOT_COLUMNS

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from cpsim.accounting.sources import Source

MEMORY_MB: Final = 1_200
LEAST_MEMORY_MB: Final = 300
PROGRAM_MB: Final = 220
"""What the program and its libraries take of the memory."""
THREAD_MB: Final = 200
"""With less memory a thread, DuckDB runs out of it although it could spill."""
"""What the engine may take before it spills to disk; the process as a whole needs some 400 MB more."""

VIEWS: Final = """
CREATE OR REPLACE VIEW owners AS
SELECT project, id AS machine, user FROM accounts WHERE kind = 'machine' AND user IS NOT NULL;

CREATE OR REPLACE VIEW slots AS
SELECT project, slot, if(settled, state, 'allocated') AS state, if(settled, machine, NULL) AS machine,
    if(settled, user, NULL) AS user, if(settled, reason, NULL) AS reason, credits, min, max,
    if(settled, granted, NULL) AS granted, allocated_us, expires_us, if(settled, settled_us, NULL) AS settled_us,
    counters, meta
FROM (SELECT *, coalesce(settled_us < getvariable('until_us'), false) AS settled FROM ledger)
WHERE allocated_us < getvariable('until_us');

CREATE OR REPLACE VIEW claims AS
SELECT NULL::VARCHAR AS project, slot, "claim.machine" AS machine, "claim.credits" AS credits, true AS readable
FROM journal WHERE kind = 'claim' AND outcome <> 'refused'
UNION ALL
SELECT project, slot, "claim.machine", "claim.credits", readable
FROM received WHERE kind = 'claim' AND outcome <> 'refused';
"""

DUE: Final = "greatest(least(asked, max), min)"
"""What a claim within a range is worth; DuckDB's `least` and `greatest` leave out what is NULL."""

RULE: Final = f"""CASE
    WHEN credits IS NOT NULL THEN if(granted = credits, 'fixed at allocation', 'against the terms')
    WHEN granted < min OR granted > max THEN 'against the terms'
    WHEN min = max THEN 'the only amount allowed'
    WHEN asked IS NULL THEN CASE WHEN granted = max THEN 'at the maximum' WHEN granted = min THEN 'at the minimum'
        ELSE 'as asked, or default' END
    WHEN {DUE} <> granted THEN 'against the terms'
    WHEN asked < min THEN 'raised to the minimum'
    WHEN asked > max THEN 'limited to the maximum'
    WHEN defaulted THEN 'default of 1' ELSE 'as asked' END"""
"""What decided a grant, from a slot's terms and, where a journal tells it, what the claim asked for."""

ASKED: Final = """
SELECT project, slot, machine, bool_and(readable AND credits IS NULL) AS defaulted,
    if(bool_and(readable) AND min(coalesce(credits, 1)) = max(coalesce(credits, 1)), min(coalesce(credits, 1)), NULL)
        AS asked
FROM {claims} GROUP BY project, slot, machine"""
"""What each machine asked for each slot, where that is certain: a row per project, where it is known, slot and machine
of {claims}."""

SQL_TYPES: Final = {int: "BIGINT", str: "VARCHAR"}


def argument_columns() -> dict[str, str]:
    """The columns of arguments that a journal has, and their types in SQL."""
    columns: dict[str, str] = {}
    for kind, command in COMMANDS.items():
        columns |= {f"{kind}.{field.name}": SQL_TYPES[field.value] for field in command.fields}
        if command.free is not None:
            columns[kind] = f"MAP(VARCHAR, {SQL_TYPES[command.free]})"
    return columns


def read_from_text() -> dict[str, str]:
    """For each of these columns, how SQL reads it from the text `arguments` of an earlier journal."""
    columns = {}
    for kind, command in COMMANDS.items():
        for field in command.fields:
            text = f"nullif(split_part(split_part(',' || arguments, ',{field.name}=', 2), ',', 1), '')"
            columns[f"{kind}.{field.name}"] = f"if(kind = '{kind}', {text}, NULL)"
        if command.free is not None:
            value = f"TRY_CAST(split_part(pair, '=', 2) AS {SQL_TYPES[command.free]})"
            pairs = (
                f"[struct_pack(k := split_part(pair, '=', 1), v := {value}) FOR pair IN string_split(arguments, ',')]"
            )
            columns[kind] = f"if(kind = '{kind}', map_from_entries({pairs}), NULL)"
    return columns


@dataclass(frozen=True, slots=True)
class Books:
    """The files to open, and the part that counts; small enough to send to a worker.

    Attributes:
        slots, accounts, journal, received: Parquet files; see `Source`.
        since_us: grants before it are the opening balance.
        until_us: end of the period, excluded.
        earlier_us: the time of the ranks to compare with.
        bucket_us: the width of the shortest interval.
        projects: ids of the projects that count; empty for all.
        has_times: whether it is known when slots were allocated and settled.
    """

    slots: str | None
    accounts: str | None
    journal: str | None
    received: str | None
    since_us: int = 0
    until_us: int = 2**62
    earlier_us: int = 0
    bucket_us: int = 1
    projects: tuple[str, ...] = ()
    has_times: bool = True

    @classmethod
    def of(cls, source: Source) -> Self:
        """The books of a source."""
        files = (source.slots, source.accounts, source.journal, source.received)
        slots, accounts, journal, received = (None if file is None else str(file.resolve()) for file in files)
        return cls(slots, accounts, journal, received, has_times=source.has_times)

    def open(
        self, spill: Path | None, memory_mb: int = MEMORY_MB, part: tuple[str, int, int] | None = None
    ) -> duckdb.DuckDBPyConnection:
        """A connection with the views.

        Args:
            spill: folder for what does not fit into memory; None keeps all in memory.
            memory_mb: how much of it this process may use, of which a quarter of what the program leaves is for frames.
            part: a column of the slots, the number of this part and how many there are: only slots whose value in
                that column falls into the part are seen.
        """
        limit_mb = max(0, memory_mb - PROGRAM_MB) * 3 // 4
        config: dict[str, Any] = {
            "autoinstall_known_extensions": False,
            "memory_limit": f"{limit_mb}MB",
            "threads": max(1, min(os.cpu_count() or 1, limit_mb // THREAD_MB)),
            "preserve_insertion_order": False,
            "temp_directory": "" if spill is None else str(spill),
        }
        database = duckdb.connect(config=config)
        self.choose(database, part)
        return database

    def choose(self, database: duckdb.DuckDBPyConnection, part: tuple[str, int, int] | None = None) -> None:
        """Make the views of a connection, or make them anew."""
        conditions = []
        if self.projects:
            names = ", ".join(map(_literal, self.projects))
            conditions.append(f"project IN ({names})")
        kept = " AND ".join(conditions) or "true"
        if part is not None:
            column, number, parts = part
            conditions.append(f"hash({column}) % {parts} = {number}")
        chosen = " AND ".join(conditions) or "true"
        received = dict.fromkeys(RECEIVED_COLUMNS, "VARCHAR") | {"at_us": "BIGINT", "readable": "BOOLEAN"}
        received |= argument_columns()
        sent = dict.fromkeys(("slot", "kind", "outcome", "error"), "VARCHAR")
        sent |= dict.fromkeys(("sent_us", "answered_us"), "BIGINT") | argument_columns()
        for name, value in (("since_us", self.since_us), ("until_us", self.until_us), ("earlier_us", self.earlier_us)):
            database.execute(f"SET VARIABLE {name} = {value}::BIGINT")
        database.execute(f"SET VARIABLE bucket_us = {self.bucket_us}::BIGINT")
        database.execute(f"SET VARIABLE has_times = {self.has_times}")
        views = {
            "ledger": f"SELECT * FROM {_table(self.slots, SLOT_COLUMNS)} WHERE {chosen}",
            "accounts": f"SELECT * FROM {_table(self.accounts, ACCOUNT_COLUMNS)} WHERE {kept}",
            "journal": _journal(database, _table(self.journal, sent)),
            "received": f"SELECT * FROM {_table(self.received, received)} WHERE {kept}",
        }
        for name, query in views.items():
            database.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
        database.execute(VIEWS)


def _table(path: str | None, columns: dict[str, str]) -> str:
    """The table expression of a file, or of an empty table."""
    if path is not None:
        return f"read_parquet({_literal(glob.escape(path))})"
    nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns.items())
    return f"(SELECT {nothing} WHERE false)"


def _journal(database: duckdb.DuckDBPyConnection, table: str) -> str:
    """The rows of a journal with all columns of arguments; one of an earlier version has a text, or lacks some."""
    there = database.sql(f"SELECT * FROM {table}").columns
    how = read_from_text() if "arguments" in there else dict.fromkeys(argument_columns(), "NULL")
    missing = [
        f'TRY_CAST({how[name]} AS {of}) AS "{name}"' for name, of in argument_columns().items() if name not in there
    ]
    return f"SELECT {', '.join(['*', *missing])} FROM {table}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
