"""A copy of a log's file as of one moment, whether or not a process has it open."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError
from cpsim.store.file import TAKE_AS_WHOLE, InUse, check_whole, connect, locked, named_errors, real_path
from cpsim.store.schema import checksum, sum_of, upgrade
from cpsim.system.new_file import new_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def back_up(path: Path, copy: Path, kind: str, tables: str, texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Copy a log to a new file, which is whole by itself, and compare its records with their checksums.

    Args:
        path: the log's file.
        copy: the new file.
        kind: name of the format.
        tables: the owner's SQL: see `upgrade`.
        texts: for each table whose rows have checksums, the columns of the texts that they are of.

    Returns:
        The damaged records, such as "record 4 of log". The copy has them as the log has them.

    Raises:
        CpsimError: there is no such log, it cannot be read, or lacks its write-ahead log; or the copy exists, or cannot
            be written. Then there is no copy.
    """
    real = real_path(path)
    if not real.exists():
        raise CpsimError(f"there is no {kind} {path}")
    with (
        new_file(copy) as partial,
        named_errors(copy),
        closing(sqlite3.connect(partial, isolation_level=None)) as target,
    ):
        with named_errors(path), closing(connect(real, kind)) as source:
            with suppress(InUse), locked(real):
                check_whole(source, real)
            source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # a file alone, without a write-ahead log
        upgrade(target, kind, tables)
        target.execute(TAKE_AS_WHOLE)  # what a process has written behind its mark is in the copy
        (health,) = target.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise CpsimError(f"{path} is damaged: {health}")
        return [damaged for table, text in texts.items() for damaged in _damaged(target, table, text)]


def _damaged(database: sqlite3.Connection, table: str, texts: Sequence[str]) -> list[str]:
    text = " || char(0) || ".join(texts)
    rows = database.execute(f"SELECT rowid, CAST({text} AS BLOB), {sum_of(texts[-1])} FROM {table}")  # noqa: S608
    return [
        f"record {number} of {table}"
        for number, record, written in rows
        if written is not None and checksum(number, record) != written
    ]
