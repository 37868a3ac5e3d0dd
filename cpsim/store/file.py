"""The SQLite file of a log: all that a log does with the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUSY_TIMEOUT_S: Final = 5.0
OWNER_ONLY: Final = 0o600
"""Mode of the file: commands are private to their senders."""
TABLES: Final = """
CREATE TABLE IF NOT EXISTS log (position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cut (position INTEGER NOT NULL);
INSERT INTO cut SELECT 0 WHERE NOT EXISTS (SELECT * FROM cut);
"""
ROOM_INSIDE: Final = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
"""Counts the free bytes inside a file, which later writes use."""


class InUse(CpsimError):
    """Another process has a log open."""


class LogFile:
    """A log's file: locked at once, and read and written once it is open. A simulation replaces it, to make it fail.

    Args:
        path: the file, under its one name; created if missing.
        kind: name of the format; its first four letters mark the file.

    Raises:
        CpsimError: the file is in use, or cannot be created.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind
        with ExitStack() as undo:
            self._lock_file = _lock(path)
            undo.callback(os.close, self._lock_file)
            try:
                path.touch(OWNER_ONLY)
            except OSError as error:
                raise CpsimError(f"cannot open {path}: {error.strerror}") from error
            self._undo = undo.pop_all()

    def open(self, tables: str) -> None:
        """Check the file and create its tables; `tables` is the owner's SQL for tables that are missing.

        Raises:
            CpsimError: the file is damaged or of another kind, or cannot be written.
        """
        with ExitStack() as undo:
            self._writing = undo.enter_context(closing(connect(self._path, self._kind)))
            with named_errors(self._path):
                self._writing.execute("PRAGMA journal_mode = WAL")
                self._writing.execute("PRAGMA synchronous = FULL")
                self._writing.executescript(TABLES + tables)
                (health,) = self._writing.execute("PRAGMA quick_check(1)").fetchone()
            if health != "ok":
                raise CpsimError(f"{self._path} is damaged: {health}")
            self._reading = undo.enter_context(closing(connect(self._path, self._kind)))
            self._undo.callback(undo.pop_all().close)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Run one statement of the log's only writer; raises sqlite3.Error."""
        self._writing.execute(sql, parameters)

    def roll_back(self) -> None:
        """End a transaction that has failed, if one is open; raises sqlite3.Error."""
        if self._writing.in_transaction:
            self._writing.execute("ROLLBACK")

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query over what is committed; raises sqlite3.Error."""
        return self._reading.execute(sql, parameters).fetchall()

    def free_bytes(self) -> int:
        """Return the free bytes of the disk."""
        return shutil.disk_usage(self._path.parent).free

    def close(self) -> None:
        """Close the file and release its lock."""
        self._undo.close()


def real_path(path: Path) -> Path:
    """Return the file behind symbolic links, under its one name for all users; it need not exist.

    Raises:
        CpsimError: the path is a dangling link, not a file, or a file with several hard links.
    """
    try:
        is_there = path.is_symlink() or path.exists()
        real = os.path.realpath(path if is_there else path.parent, strict=True)
        real = real if is_there else os.path.join(real, path.name)  # noqa: PTH118 - `real` is a text
        status = path.stat() if is_there else None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            target = path.readlink()
            raise CpsimError(
                f"{path} is a link to {target}, which does not exist: create that, or name a file"
            ) from error
        raise CpsimError(f"cannot open {path}: {error.strerror}") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise CpsimError(f"{path} is a folder or another thing that is not a file: name a file")
    if status is not None and status.st_nlink > 1:
        raise CpsimError(
            f"{path} has {status.st_nlink} names (hard links), and no lock covers all of them: "
            "copy it to a new file, or remove the other names"
        )
    return path if real == os.path.abspath(path) else Path(real)  # noqa: PTH100 - which resolves no links


def reserve_of(path: Path) -> Path:
    """Return the path of a log's reserve."""
    return path.with_name(f"{path.name}.reserve")


def connect(path: Path, kind: str) -> sqlite3.Connection:
    """Return a connection to a log's file, for writing or reading.

    Raises:
        CpsimError: the file is not a log of this kind, or is damaged.
    """
    application_id = int.from_bytes(kind.encode()[:4])
    with named_errors(path), ExitStack() as undo:
        database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        undo.enter_context(closing(database))
        (found,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if found == 0 and tables == 0:
            database.execute(f"PRAGMA application_id = {application_id}")
        elif found != application_id:
            raise CpsimError(f"{path} is not a {kind} file; name another file, existing or new")
        undo.pop_all()
    return database


def in_use(path: Path) -> bool:
    """Return whether a process has the log open; raises CpsimError as `real_path` does."""
    try:
        os.close(_lock(real_path(path)))
    except InUse:
        return True
    return False


def _lock(path: Path) -> int:
    """Lock the lock file beside a log; return its descriptor, whose closing releases the lock, as does a crash."""
    try:
        file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
    except OSError as error:
        raise CpsimError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise InUse(f"{path} is in use by another process; stop it, or name another file") from None
    return file


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as CpsimErrors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise CpsimError(f"{path}: {error}") from error
