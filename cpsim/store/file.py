"""The SQLite file of a log: all that a log does with the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cpsim.errors import CpsimError
from cpsim.store.schema import FORMAT, mark_of, marks_of, upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUSY_TIMEOUT_S: Final = 5.0
OWNER_ONLY: Final = 0o600
"""Mode of the file: commands are private to their senders."""
WAL_HEADER_BYTES: Final = 32
"""What a write-ahead log begins with; it changes when SQLite has copied all of it into the file and begins it anew."""
TAKE_AS_WHOLE: Final = "UPDATE whole SET is_whole = 1"
ROOM_INSIDE: Final = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
"""Counts the free bytes inside a file, which later writes use."""


class InUse(CpsimError):
    """Another process has a log open."""


class LostLog(CpsimError):
    """A file lacks its write-ahead log."""


class LogFile:
    """A log's file: locked at once, and read and written once it is open. A simulation replaces it, to make it fail.

    Args:
        path: the file, under its one name; created if missing.
        kind: name of the format; its first four letters mark the file.

    Raises:
        CpsimError: the file is in use, or cannot be created.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._place = path, path.absolute()
        self._kind = kind
        with ExitStack() as undo:
            self._lock_file = _lock(path)
            undo.callback(_unlock, path, self._lock_file)
            try:
                path.touch(OWNER_ONLY)
            except OSError as error:
                raise CpsimError(f"cannot open {path}: {error.strerror}") from error
            self._databases = undo.enter_context(ExitStack())
            self._undo = undo.pop_all()

    def open(self, tables: str) -> None:
        """Check the file, and create what it lacks of the tables; `tables` is the owner's SQL: see `schema.upgrade`.

        Raises:
            CpsimError: the file is damaged or of another kind, lacks its write-ahead log, or cannot be written.
        """
        with ExitStack() as undo:
            self._writing = undo.enter_context(closing(connect(self._path, self._kind)))
            with named_errors(self._path):
                self._writing.execute("PRAGMA journal_mode = WAL")
                self._writing.execute("PRAGMA synchronous = FULL")
                check_whole(self._writing, self._path)
                (health,) = self._writing.execute("PRAGMA quick_check(1)").fetchone()
                if health != "ok":
                    raise CpsimError(f"{self._path} is damaged: {health}")
                upgrade(self._writing, self._kind, tables)
            try:
                self._wal = os.open(wal_of(self._path), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CpsimError(f"cannot open {wal_of(self._path)}: {error.strerror}") from error
            undo.callback(os.close, self._wal)
            self._wal_header = b""
            self.keep_mark()
            self._own = {
                self._place: (self._path, _identity(self._path)),
                wal_of(self._place): (wal_of(self._path), _identity(self._wal)),
                lock_of(self._place): (lock_of(self._path), _identity(self._lock_file)),
            }
            self._reading = undo.enter_context(closing(connect(self._path, self._kind)))
            undo.callback(self._end_mark)
            self._databases.callback(undo.pop_all().close)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Run one statement of the log's only writer; raises sqlite3.Error."""
        self._writing.execute(sql, parameters)

    def keep_mark(self) -> None:
        """Have the file say that its write-ahead log has more, whenever that was begun anew; never fails.

        The file alone then says that it is not whole, and together with the log that it is. A log that is copied into
        the file by whoever closes it last leaves a whole file; a log that was removed leaves one that is not.
        """
        if os.pread(self._wal, WAL_HEADER_BYTES, 0) == self._wal_header:
            return
        is_marked = False
        with suppress(sqlite3.Error, CpsimError), closing(connect(self._place, self._kind)) as reader:
            try:
                self._writing.execute("UPDATE whole SET is_whole = 0")
                reader.execute("BEGIN")
                is_whole(reader)  # while somebody reads the log, it is not begun anew: it never is without a commit
                _, pages, copied = self._writing.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                is_marked = pages == copied
            finally:
                is_marked = self._end_mark() and is_marked
        self._wal_header = os.pread(self._wal, WAL_HEADER_BYTES, 0) if is_marked else b""

    def _end_mark(self) -> bool:
        try:
            self._writing.execute("UPDATE whole SET is_whole = 1 WHERE is_whole = 0")
        except sqlite3.Error:
            return False
        return True

    def gone(self) -> str:
        """Return which of its files is not at its path any more, and why, as a clause; empty if all are there."""
        for place, (path, own) in self._own.items():
            try:
                if _identity(place) != own:
                    return f"{path} was replaced by another file"
            except (FileNotFoundError, NotADirectoryError):
                return f"{path} was removed"
            except OSError:
                continue  # whether it is there is unknown
        return ""

    def roll_back(self) -> None:
        """End a transaction that has failed, if one is open; raises sqlite3.Error."""
        if self._writing.in_transaction:
            self._writing.execute("ROLLBACK")

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query over what is committed; raises sqlite3.Error."""
        return self._reading.execute(sql, parameters).fetchall()

    def free_bytes(self) -> int:
        """Return the free bytes of the disk."""
        return shutil.disk_usage(self._place.parent).free

    def rescue(self) -> Path | None:
        """Close the file, if it is not at its path any more, and write what it holds there, or else beside it.

        Returns:
            The path of the new file; None if the file is where it was.

        Raises:
            CpsimError: the new file cannot be written; nothing is closed.
        """
        here = self._place
        if not self._is_moved(here):
            return None
        place = here.with_name(f"{here.name}.rescued")
        try:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY))
            with named_errors(place):
                self._writing.execute("VACUUM INTO ?", (str(place),))
            self._databases.close()
            if not self._is_moved(wal_of(here)):  # or it would be read with the next file of this name
                for end in ("-wal", "-shm"):
                    here.with_name(f"{here.name}{end}").unlink(missing_ok=True)
            if not here.exists() and not wal_of(here).exists():
                os.link(place, here)
                place.unlink()
                place = here
        except OSError as error:
            raise CpsimError(f"{place}: {error.strerror}") from error
        return place

    def _is_moved(self, path: Path) -> bool:
        try:
            return _identity(path) != self._own[path][1]
        except OSError:
            return True

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


def lock_of(path: Path) -> Path:
    """Return the path of a log's lock."""
    return path.with_name(f"{path.name}.lock")


def wal_of(path: Path) -> Path:
    """Return the path of a log's write-ahead log."""
    return path.with_name(f"{path.name}-wal")


def _identity(file: Path | str | int) -> tuple[int, int]:
    """Return the device and the inode of a file, by which it is known whatever its path is."""
    status = os.stat(file)  # noqa: PTH116 - of a descriptor, too
    return status.st_dev, status.st_ino


def is_whole(database: sqlite3.Connection) -> bool:
    """Return whether a file says that nothing of it is missing, as do all of earlier versions."""
    (has_table,) = database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'whole'").fetchone()
    return not has_table or database.execute("SELECT is_whole FROM whole").fetchone() == (1,)


def check_whole(database: sqlite3.Connection, path: Path) -> None:
    """Check that a file has its write-ahead log, if that has more than the file; no process may have the log open.

    Raises:
        LostLog: the write-ahead log is missing or damaged. A damaged one is kept under another name.
    """
    _, pages, _ = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    if is_whole(database):
        return
    if pages:  # it crashed between the two marks
        database.execute(TAKE_AS_WHOLE)
        return
    wal, kept = wal_of(path), path.with_name(f"{path.name}-wal.damaged")
    if wal.stat().st_size:
        wal.replace(kept)  # SQLite removes what it cannot read
        what = f"{wal} is damaged from its beginning on, and is now {kept}"
    else:
        what = f"{wal} is missing or empty"
    raise LostLog(
        f"{path} was not closed in order, and {what}: what was written last is lost without it. Put it back from a "
        f"copy of the same moment as {path.name}; or go on with what {path.name} holds by itself: "
        f"sqlite3 {path} '{TAKE_AS_WHOLE}'"
    )


def connect(path: Path, kind: str) -> sqlite3.Connection:
    """Return a connection to a log's file, for writing or reading.

    Raises:
        CpsimError: the file is not a log of this kind, or is damaged.
    """
    with named_errors(path), ExitStack() as undo:
        place = f"{path.absolute().as_uri()}?mode=rw"  # or SQLite would create a file that was removed
        database = sqlite3.connect(
            place, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True
        )
        undo.enter_context(closing(database))
        (found,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if found == 0 and tables == 0:
            database.execute(f"PRAGMA application_id = {mark_of(kind)}")
        elif found not in marks_of(kind):
            raise CpsimError(f"{path} is not a {kind} file; name another file, existing or new")
        elif version > FORMAT:
            raise CpsimError(
                f"{path} was written by a later version of cpsim, in format {version}, and is left as it is: this "
                f"version reads formats up to {FORMAT}; open it with that version, or name another file"
            )
        undo.pop_all()
    return database


def in_use(path: Path) -> bool:
    """Return whether a process has the log open; raises CpsimError as `real_path` does."""
    try:
        real = real_path(path)
        _unlock(real, _lock(real))
    except InUse:
        return True
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from opening a log while the context lasts; raises InUse if a process has it open."""
    file = _lock(path)
    try:
        yield
    finally:
        _unlock(path, file)


def _lock(path: Path) -> int:
    """Lock the lock file beside a log; return its descriptor, whose closing releases the lock, as does a crash."""
    while True:
        try:
            file = os.open(lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
        except OSError as error:
            raise CpsimError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise InUse(f"{path} is in use by another process; stop it, or name another file") from None
        if _is_at(lock_of(path), file):
            return file
        os.close(file)  # whoever had it has removed it since


def _unlock(path: Path, file: int) -> None:
    """Remove the lock file and release the lock."""
    if _is_at(lock_of(path), file):
        with suppress(OSError):
            lock_of(path).unlink()
    os.close(file)


def _is_at(path: Path, file: int) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return _identity(path) == _identity(file)
    except OSError:
        return False


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as CpsimErrors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise CpsimError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:  # SQLite quotes what it cannot read
        raise CpsimError(f"{path}: the file is damaged: {error.object!r}") from error
