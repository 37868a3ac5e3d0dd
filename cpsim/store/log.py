"""The durable log under the daemon's spool and the server's store: texts in order, in one SQLite file.

A writer thread commits as soon as its last commit has ended; all records appended during a commit share the next one.
So a single record waits for one commit, and a thousand at once share one. Committed records survive a killed process
and a power cut (write-ahead log, synchronous=FULL). One process at a time may open a file.

The caller of `append` gets the outcome of the commit with its records, and of no other. A failed commit must not appear
after a restart: SQLite may have written all of it to the write-ahead log before it failed, and would recover it. So the
writer overwrites it at once with another commit. If that fails too, the outcome is `InDoubt`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections import deque
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from cpsim.errors import CpsimError
from cpsim.store.reserve import Reserve
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Then = Callable[[CpsimError | None], object]
    Statement = tuple[str, Sequence[object]]

MAX_WAITING_CHARS: Final = 64 * 2**20
"""Characters that may wait for the next commit; at this limit, `append` blocks."""
BUSY_TIMEOUT_S: Final = 5.0
MIN_FREE_BYTES: Final = 2**20
"""Free bytes of the disk below which opening or writing a log is likely to fail."""
OWNER_ONLY: Final = 0o600
"""Mode of the file: commands are private to their senders."""
TABLES: Final = """
CREATE TABLE IF NOT EXISTS log (position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cut (position INTEGER NOT NULL);
INSERT INTO cut SELECT 0 WHERE NOT EXISTS (SELECT * FROM cut);
"""
INSERT: Final = "INSERT INTO log SELECT ? + key, ?, value FROM json_each(?)"
"""Inserts all records in one step: each step releases Python's lock, and waits to get it back."""
NO_CHANGE: Final = (
    ("UPDATE cut SET position = position + 1", ()),
    ("UPDATE cut SET position = position - 1", ()),
)
"""A commit that writes one page and changes nothing: SQLite does not write an unchanged row."""
ROOM_INSIDE: Final = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
"""Counts the free bytes inside a file, which later writes use."""
READ: Final = """
SELECT json_group_array(json_array(position, record)) FROM
(SELECT position, record FROM log WHERE position > ? AND position <= ? ORDER BY position LIMIT ?)
"""


class InUse(CpsimError):
    """Another process has a log open."""


class InDoubt(CpsimError):
    """A commit failed, and may nevertheless appear after a restart.

    Args:
        problem: the error of the commit.
    """

    def __init__(self, problem: CpsimError) -> None:
        super().__init__(f"{problem}; whether the change is there after a restart is unknown")
        self.problem = problem


@dataclass(slots=True)
class _Commit:
    """The records and statements of one commit, and the callbacks for its outcome."""

    alone: bool
    last: int = 0
    """The position of its last record."""
    records: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    then: list[Then] = field(default_factory=list)


class Log:
    """An open log. Its methods may be called from any thread.

    Args:
        path: the file, or a symbolic link to it; created if missing.
        kind: name of the format; its first four letters mark the file, and a file of another kind is refused.
        tables: SQL that creates the owner's own tables if missing.
        reserve_bytes: room on the disk that a file beside the log reserves for when the disk is full.
        in_sequence: after a failed commit that was not `alone`, later ones fail too, until `resume`.

    Raises:
        CpsimError: the file is in use, damaged, of another kind, or cannot be created.

    Attributes:
        path: the real file; its companion files are beside it.
    """

    def __init__(
        self, path: Path, kind: str, tables: str = "", *, reserve_bytes: int = 0, in_sequence: bool = False
    ) -> None:
        self.path = path = real_path(path)
        self._in_sequence = in_sequence
        self._failure: CpsimError | None = None
        with ExitStack() as undo:
            self._lock_file = _lock(path)
            undo.callback(os.close, self._lock_file)
            try:
                path.touch(OWNER_ONLY)
                self._reserve = Reserve(reserve_of(path), reserve_bytes) if reserve_bytes else None
            except OSError as error:
                raise CpsimError(f"cannot open {path}: {error.strerror}") from error
            try:
                self._writing = _open(path, kind, tables)
            except CpsimError as problem:  # a full disk may lack even the room to read the file
                if not self._give_up_reserve():
                    raise _with_free_space(problem, path) from problem
                self._writing = _open(path, kind, tables)
            undo.enter_context(closing(self._writing))
            last = "SELECT max(position) FROM (SELECT position FROM log UNION ALL SELECT position FROM cut)"
            with named_errors(path):
                self.last: int = self._writing.execute(last).fetchone()[0]
            self._reading = connect(path, kind)
            undo.pop_all()
        self._read_lock = threading.Lock()
        self._changed = threading.Condition()
        self._commits: deque[_Commit] = deque()
        self._waiting = 0
        self._busy = self._closing = False
        self._thread = Thread(self._write, f"cpsim-{kind}")
        self._thread.start()

    def has_room(self) -> bool:
        """Return whether the reserve is kept, on the disk or inside the file; True without a reserve.

        This recreates the reserve on the disk if there is room.
        """
        if self._reserve is None or self._reserve.hold():
            return True
        try:
            return bool(self.query(ROOM_INSIDE)[0][0] >= self._reserve.size)
        except CpsimError:
            return False  # an unreadable disk is not writable either

    def append(
        self, records: Sequence[str], *statements: Statement, then: Then | None = None, alone: bool = False
    ) -> int:
        """Queue records, in this order, and SQL to run after them, for one commit.

        Args:
            records: texts without NUL.
            statements: each with its parameters.
            then: called with None once the commit is on disk, or with its error, which is `InDoubt` if the commit may
                have been written; by the writer's thread, or at once if there is nothing to write.
            alone: make a separate commit, whose failure fails no other.

        Returns:
            The position of the last record.
        """
        size = sum(map(len, records))
        with self._changed:
            while records and self._waiting > MAX_WAITING_CHARS:
                self._changed.wait()
            self.last += len(records)
            self._waiting += size
            if self._busy or self._commits or records or statements:
                if alone or not self._commits or self._commits[-1].alone:
                    self._commits.append(_Commit(alone))
                commit = self._commits[-1]
                commit.last = self.last
                commit.records += records
                commit.statements += statements
                if then is not None:
                    commit.then.append(then)
                    then = None
                self._changed.notify_all()
            last = self.last
            failure = self._failure
        if then is not None:
            then(failure)
        return last

    def wait(self, *statements: Statement, records: Sequence[str] = ()) -> None:
        """Append records and SQL, and return once their commit is on disk.

        Raises:
            CpsimError: the commit failed.
        """
        outcome: SimpleQueue[CpsimError | None] = SimpleQueue()
        self.append(records, *statements, then=outcome.put)
        if (problem := outcome.get()) is not None:
            raise problem

    def resume(self) -> None:
        """Resume writing after a failed commit; later appends are lost. No other thread may append meanwhile.

        Raises:
            CpsimError: the log still cannot be written.
        """
        with suppress(CpsimError):
            self.wait()
        self._failure = None
        self.wait(*NO_CHANGE)

    def read(self, after: int, up_to: int, limit: int) -> list[tuple[int, str]]:
        """Return the next records on disk after a position, each with its own position."""
        (text,) = self.query(READ, (after, up_to, limit))[0]
        return [(position, record) for position, record in json.loads(text)]

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query over the data on disk."""
        with self._read_lock, named_errors(self.path):
            return self._reading.execute(sql, parameters).fetchall()

    def check(self) -> None:
        """Raise ThreadFailed if an unexpected error has ended the writer's thread."""
        self._thread.check()

    def close(self) -> None:
        """Write the rest and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        with self._read_lock:
            self._reading.close()
        self._writing.close()
        os.close(self._lock_file)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                while not (self._commits or self._closing):
                    self._changed.wait()
                if not self._commits:
                    return
                self._busy = True
                commit = self._commits.popleft()
                self._waiting -= sum(map(len, commit.records))
                first = commit.last - len(commit.records) + 1
                self._changed.notify_all()
            problem = self._failure or self._commit(first, commit.records, commit.statements)
            if self._in_sequence and not commit.alone:
                self._failure = problem.problem if isinstance(problem, InDoubt) else problem
            for callback in commit.then:
                try:
                    callback(problem)
                except Exception as error:  # noqa: BLE001 - the other callbacks must run
                    self._thread.fail(error)

    def _commit(self, first: int, records: list[str], statements: list[Statement]) -> CpsimError | None:
        """Write all or nothing; on a full disk, use the room of the reserve."""
        if not (records or statements):
            return None
        problem = self._attempt(first, records, statements)
        if problem is not None and self._give_up_reserve():
            again = self._attempt(first, records, statements)
            return problem if again is not None and isinstance(problem, InDoubt) else again
        return problem

    def _give_up_reserve(self) -> bool:
        return self._reserve is not None and self._reserve.give_up()

    def _attempt(self, first: int, records: list[str], statements: list[Statement]) -> CpsimError | None:
        """Write all or nothing."""
        is_written = False
        try:
            with named_errors(self.path):
                self._writing.execute("BEGIN IMMEDIATE")
                if records:
                    self._writing.execute(INSERT, (first, time.time_ns() // 1000, json.dumps(records)))
                for statement in statements:
                    self._writing.execute(*statement)
                is_written = True
                self._writing.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - if the writer died, all callers would wait for ever
            problem = error if isinstance(error, CpsimError) else CpsimError(f"{self.path}: {error}")
            self._roll_back()
            if is_written and not _is_full(problem.__cause__) and not self._overwrite():
                return InDoubt(problem)
            return problem
        return None

    def _overwrite(self) -> bool:
        """Overwrite a failed commit in the write-ahead log; return whether that succeeded."""
        try:
            self._writing.execute("BEGIN IMMEDIATE")
            for statement in NO_CHANGE:
                self._writing.execute(*statement)
            self._writing.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            return False
        return True

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._writing.in_transaction:
                self._writing.execute("ROLLBACK")


def _open(path: Path, kind: str, tables: str) -> sqlite3.Connection:
    """Return the writing connection of a log, after a check of the file and the creation of its tables."""
    with ExitStack() as undo:
        database = undo.enter_context(closing(connect(path, kind)))
        with named_errors(path):
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(TABLES + tables)
            (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise CpsimError(f"{path} is damaged: {health}")
        undo.pop_all()
    return database


def _with_free_space(problem: CpsimError, path: Path) -> CpsimError:
    """Return an error that mentions the disk if that is almost full."""
    free = shutil.disk_usage(path.parent).free
    return (
        CpsimError(f"{problem}; its disk has only {free // 1024} KiB free: make room")
        if free < MIN_FREE_BYTES
        else problem
    )


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


def cut(position: int) -> tuple[Statement, ...]:
    """Return the SQL that deletes the records up to a position. Positions are never reused."""
    return (
        ("DELETE FROM log WHERE position <= ?", (position,)),
        ("UPDATE cut SET position = max(position, ?)", (position,)),
    )


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


def _is_full(error: BaseException | None) -> bool:
    """Return whether SQLite found no room for a page: then the write-ahead log lacks the page that ends a commit."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as CpsimErrors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise CpsimError(f"{path}: {error}") from error
