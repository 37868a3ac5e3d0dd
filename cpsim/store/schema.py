"""The tables of a log's file, and how files of earlier versions get those of this one."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from contextlib import closing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT: Final = 2
"""Number of the format, in the file's `user_version`; files from before it was written down have 0."""
TABLES: Final = """
CREATE TABLE IF NOT EXISTS log
(position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, record TEXT NOT NULL, checksum BLOB);
CREATE TABLE IF NOT EXISTS cut (position INTEGER NOT NULL);
INSERT INTO cut SELECT 0 WHERE NOT EXISTS (SELECT * FROM cut);
CREATE TABLE IF NOT EXISTS whole (is_whole INTEGER NOT NULL);
INSERT INTO whole SELECT 1 WHERE NOT EXISTS (SELECT * FROM whole);
"""
FORMER_MARKS: Final = {"spool": b"CPsp", "store": b"CPst"}
"""What marked the files of each kind before the first letters of the kind's name did."""
COLUMNS: Final = """
SELECT tables.name, columns.name, columns.type, columns."notnull", columns.dflt_value
FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'
"""


def mark_of(kind: str) -> int:
    """Return the number that marks the files of a kind: its first four letters."""
    return int.from_bytes(kind.encode()[:4])


def marks_of(kind: str) -> set[int]:
    """Return the numbers that mark the files of a kind, those of earlier versions included."""
    former = {int.from_bytes(FORMER_MARKS[kind])} if kind in FORMER_MARKS else set()
    return {mark_of(kind)} | former


def upgrade(database: sqlite3.Connection, kind: str, tables: str) -> None:
    """Create the tables and columns that are missing, in one transaction; whatever is there stays.

    Args:
        database: the file, new or of any version up to this one.
        kind: name of the format.
        tables: the owner's SQL, which creates tables only if they are missing.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    tables = TABLES + tables
    with closing(sqlite3.connect(":memory:")) as wanted:
        wanted.executescript(tables)
        columns = wanted.execute(COLUMNS).fetchall()
    try:
        database.executescript(f"BEGIN IMMEDIATE; {tables}")
        there = {column[:2] for column in database.execute(COLUMNS)}
        for table, name, type_, is_required, default in columns:
            if (table, name) not in there:
                rest = f"NOT NULL DEFAULT {default}" if is_required else ""
                database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {type_} {rest}")
        for pragma, value in (("application_id", mark_of(kind)), ("user_version", FORMAT)):
            if database.execute(f"PRAGMA {pragma}").fetchone() != (value,):
                database.execute(f"PRAGMA {pragma} = {value}")
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def sum_of(text: str) -> str:
    """Return the SQL of the checksum of a row, whose last text is in a column; one that nothing matches if it is none.

    A bit in the head of a row can take a column from it. The checksum is then read as the text before it, and as NULL
    itself, as in rows of earlier versions.
    """
    return f"CASE typeof({text}) WHEN 'text' THEN checksum ELSE x'00' END"


def checksum(position: int, record: str | bytes) -> bytes:
    """Return the checksum of a record: the CRC-32 of its UTF-8, continued from the low 32 bits of its position."""
    encoded = record if isinstance(record, bytes) else record.encode()
    return zlib.crc32(encoded, position).to_bytes(4)


def checksums(first: int, records: Sequence[str]) -> bytes:
    """Return the checksums of records that follow one another, one after the other."""
    positions = range(first, first + len(records))
    return struct.pack(f">{len(records)}I", *map(zlib.crc32, map(str.encode, records), positions))
