"""The durable log under the daemon's spool and the server's store: texts in order, in one SQLite file.

A writer thread commits as soon as its last commit has ended; all that was handed over meanwhile goes into the
next one. So a lone record waits for one commit, and a thousand at once share one. What is committed survives a
killed process and a power cut (write-ahead log, synchronous=FULL). One process at a time may open a file.

Whoever hands something over is told the outcome of the commit that has it, and of no other. A commit that failed is
not there after a restart either: SQLite may have written it whole to the write-ahead log and failed only then, and at
the next start would find it there; so another commit is written over it at once. Where that fails too, the outcome is
`InDoubt`.
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

MAX_WAITING: Final = 64 * 2**20
"""Characters that may wait for the next commit; whoever hands over more is held up until it has ended."""
BUSY_S: Final = 5.0
LEAST_FREE: Final = 2**20
"""Bytes of its disk without which a log can hardly be opened, or written for long."""
PRIVATE: Final = 0o600
"""What was sent is its senders' business: nobody else reads it."""
TABLES: Final = """
CREATE TABLE IF NOT EXISTS log (position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cut (position INTEGER NOT NULL);
INSERT INTO cut SELECT 0 WHERE NOT EXISTS (SELECT * FROM cut);
"""
INSERT: Final = "INSERT INTO log SELECT ? + key, ?, value FROM json_each(?)"
"""In one step for all records: each step gives Python's lock away, and must wait to have it back."""
NOTHING_NEW: Final = (
    ("UPDATE cut SET position = position + 1", ()),
    ("UPDATE cut SET position = position - 1", ()),
)
"""A commit of one page that changes nothing: SQLite does not write a row that stays as it is."""
ROOM_INSIDE: Final = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
"""Bytes of a file that hold nothing any more: what is written next goes there."""
READ: Final = """
SELECT json_group_array(json_array(position, record)) FROM
(SELECT position, record FROM log WHERE position > ? AND position <= ? ORDER BY position LIMIT ?)
"""


class InUse(CpsimError):
    """Another process has a log open."""


class InDoubt(CpsimError):
    """A commit failed, and may be there after a restart all the same.

    Args:
        problem: how it failed.
    """

    def __init__(self, problem: CpsimError) -> None:
        super().__init__(f"{problem}; what was to be written may be there after a restart, or not")
        self.problem = problem


@dataclass(slots=True)
class _Commit:
    """What one commit is to write, and who is told its outcome."""

    alone: bool
    last: int = 0
    """The position of its last record."""
    records: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    then: list[Then] = field(default_factory=list)


class Log:
    """An open log. Its methods may be called from any thread.

    Args:
        path: the file, or a symbolic link to it; made if it is not there.
        kind: what the log is for; its first four letters mark the file, and one of another kind is not opened.
        tables: SQL that makes the owner's own tables, where they are not there.
        reserve_bytes: room on the disk that is kept in a file beside it, and used when the disk has no other.
        in_sequence: once a commit that was not `alone` has failed, the ones after it fail too, until `resume`.

    Raises:
        CpsimError: the file is in use, damaged, or something else; or it cannot be made.

    Attributes:
        path: the file itself, beside which are the others that belong to it.
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
                path.touch(PRIVATE)
                self._reserve = Reserve(reserve_of(path), reserve_bytes) if reserve_bytes else None
            except OSError as error:
                raise CpsimError(f"cannot open {path}: {error.strerror}") from error
            try:
                self._writing = _open(path, kind, tables)
            except CpsimError as problem:  # on a full disk, there is not even room to read it
                if not self._give_up_reserve():
                    raise _with_room_told(problem, path) from problem
                self._writing = _open(path, kind, tables)
            undo.enter_context(closing(self._writing))
            last = "SELECT max(position) FROM (SELECT position FROM log UNION ALL SELECT position FROM cut)"
            with told(path):
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
        """Whether there is a reserve, if there should be, on the disk or in the file itself.

        On the disk it is made again where there is room for it.
        """
        if self._reserve is None or self._reserve.hold():
            return True
        try:
            return bool(self.query(ROOM_INSIDE)[0][0] >= self._reserve.size)
        except CpsimError:
            return False  # a disk that cannot be read has no room to write

    def append(
        self, records: Sequence[str], *statements: Statement, then: Then | None = None, alone: bool = False
    ) -> int:
        """Hand over what one commit is to write: records, in this order, and SQL to be run after them.

        Args:
            records: texts without NUL.
            statements: each with its parameters.
            then: called once the commit that has this has been written, with None, or once it has failed, with the
                problem, which is `InDoubt` if it may have been written; by the writer's thread, or at once if there is
                nothing to write.
            alone: nothing else is in this commit, and nothing else fails with it.

        Returns:
            The position of the last record.
        """
        size = sum(map(len, records))
        with self._changed:
            while records and self._waiting > MAX_WAITING:
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
        """Return once the last commit, with these records and this SQL in it, is on disk.

        Raises:
            CpsimError: it could not be written.
        """
        outcome: SimpleQueue[CpsimError | None] = SimpleQueue()
        self.append(records, *statements, then=outcome.put)
        if (problem := outcome.get()) is not None:
            raise problem

    def resume(self) -> None:
        """Write again after a commit has failed. What was handed over since is lost; nobody hands over more meanwhile.

        Raises:
            CpsimError: it cannot be written yet.
        """
        with suppress(CpsimError):
            self.wait()
        self._failure = None
        self.wait(*NOTHING_NEW)

    def read(self, after: int, up_to: int, limit: int) -> list[tuple[int, str]]:
        """The next records behind a position, each with its own; only what is on disk."""
        (text,) = self.query(READ, (after, up_to, limit))[0]
        return [(position, record) for position, record in json.loads(text)]

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query over what is on disk."""
        with self._read_lock, told(self.path):
            return self._reading.execute(sql, parameters).fetchall()

    def check(self) -> None:
        """Raise ThreadFailed if its writer has met an error that nobody expected."""
        self._thread.check()

    def close(self) -> None:
        """Write what is left, and let go of the file."""
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
                except Exception as error:  # noqa: BLE001 - the others are to hear of their commit
                    self._thread.fail(error)

    def _commit(self, first: int, records: list[str], statements: list[Statement]) -> CpsimError | None:
        """Write all or nothing, with the room of the reserve if the disk has no other."""
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
            with told(self.path):
                self._writing.execute("BEGIN IMMEDIATE")
                if records:
                    self._writing.execute(INSERT, (first, time.time_ns() // 1000, json.dumps(records)))
                for statement in statements:
                    self._writing.execute(*statement)
                is_written = True
                self._writing.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - a writer that dies leaves everybody waiting for ever
            problem = error if isinstance(error, CpsimError) else CpsimError(f"{self.path}: {error}")
            self._roll_back()
            if is_written and not _is_full(problem.__cause__) and not self._write_over():
                return InDoubt(problem)
            return problem
        return None

    def _write_over(self) -> bool:
        """Write over what a commit that failed may have left in the write-ahead log; whether that was possible."""
        try:
            self._writing.execute("BEGIN IMMEDIATE")
            for statement in NOTHING_NEW:
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
    """The connection that writes a log, once its file is found whole and has its tables."""
    with ExitStack() as undo:
        database = undo.enter_context(closing(connect(path, kind)))
        with told(path):
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(TABLES + tables)
            (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise CpsimError(f"{path} is damaged: {health}")
        undo.pop_all()
    return database


def _with_room_told(problem: CpsimError, path: Path) -> CpsimError:
    """A problem, which says so if there is hardly any room on the disk."""
    free = shutil.disk_usage(path.parent).free
    return (
        CpsimError(f"{problem}; its disk has only {free // 1024} KiB free: make room") if free < LEAST_FREE else problem
    )


def real_path(path: Path) -> Path:
    """The file that a path leads to, by which everybody who uses it is to name it; it need not be there yet.

    Raises:
        CpsimError: it leads nowhere, or to something else than a file with one name.
    """
    try:
        is_there = path.is_symlink() or path.exists()
        real = os.path.realpath(path if is_there else path.parent, strict=True)
        real = real if is_there else os.path.join(real, path.name)  # noqa: PTH118 - `real` is a text
        status = path.stat() if is_there else None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            target = path.readlink()
            raise CpsimError(f"{path} is a link to {target}, which is not there: make that, or name a file") from error
        raise CpsimError(f"cannot open {path}: {error.strerror}") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise CpsimError(f"{path} is a folder, or something else that is not a file: name a file")
    if status is not None and status.st_nlink > 1:
        raise CpsimError(
            f"{path} has {status.st_nlink} names (hard links), and no lock holds for all of them: "
            "copy it to a file of its own, or remove the other names"
        )
    return path if real == os.path.abspath(path) else Path(real)  # noqa: PTH100 - which resolves no links


def reserve_of(path: Path) -> Path:
    """The file that keeps room for a log."""
    return path.with_name(f"{path.name}.reserve")


def cut(position: int) -> tuple[Statement, ...]:
    """What forgets the records up to a position. Positions are never used again."""
    return (
        ("DELETE FROM log WHERE position <= ?", (position,)),
        ("UPDATE cut SET position = max(position, ?)", (position,)),
    )


def connect(path: Path, kind: str) -> sqlite3.Connection:
    """A connection to the file of a log, which need not be the one that writes it.

    Raises:
        CpsimError: the file is not a log of this kind, or is damaged.
    """
    application_id = int.from_bytes(kind.encode()[:4])
    with told(path), ExitStack() as undo:
        database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        undo.enter_context(closing(database))
        (found,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if found == 0 and tables == 0:
            database.execute(f"PRAGMA application_id = {application_id}")
        elif found != application_id:
            raise CpsimError(f"{path} is not a {kind} file; name another file, or one that does not exist yet")
        undo.pop_all()
    return database


def in_use(path: Path) -> bool:
    """Whether a process has the log open; raises CpsimError as `real_path` does."""
    try:
        os.close(_lock(real_path(path)))
    except InUse:
        return True
    return False


def _lock(path: Path) -> int:
    """Take the lock file beside a log; closing the descriptor that is returned, or dying, gives it back."""
    try:
        file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise CpsimError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise InUse(f"{path} is in use by another process; stop it, or name another file") from None
    return file


def _is_full(error: BaseException | None) -> bool:
    """Whether SQLite found no room for a page: then the last, which ends a commit, is not in the write-ahead log."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


@contextmanager
def told(path: Path) -> Iterator[None]:
    """SQLite's errors as problems that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise CpsimError(f"{path}: {error}") from error
