"""The durable log under the daemon's spool and the server's store: texts in order, in one SQLite file.

A writer thread commits as soon as its last commit has ended; all that was handed over meanwhile goes into the
next one. So a lone record waits for one commit, and a thousand at once share one. What is committed survives a
killed process and a power cut (write-ahead log, synchronous=FULL). One process at a time may open a file.
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
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from cpsim.errors import Problem
from cpsim.reserve import Reserve
from cpsim.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Then = Callable[[Problem | None], object]
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
ROOM_INSIDE: Final = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
"""Bytes of a file that hold nothing any more: what is written next goes there."""
READ: Final = """
SELECT json_group_array(json_array(position, record)) FROM
(SELECT position, record FROM log WHERE position > ? AND position <= ? ORDER BY position LIMIT ?)
"""


class InUse(Problem):
    """Another process has a log open."""


class Log:
    """An open log. Its methods may be called from any thread.

    Args:
        path: the file, or a symbolic link to it; made if it is not there.
        kind: what the log is for; its first four letters mark the file, and one of another kind is not opened.
        tables: SQL that makes the owner's own tables, where they are not there.
        reserve_bytes: room on the disk that is kept in a file beside it, and used when the disk has no other.
        in_sequence: once a commit has failed, the ones after it fail too, until `resume`.

    Raises:
        Problem: the file is in use, damaged, or something else; or it cannot be made.

    Attributes:
        path: the file itself, beside which are the others that belong to it.
    """

    def __init__(
        self, path: Path, kind: str, tables: str = "", *, reserve_bytes: int = 0, in_sequence: bool = False
    ) -> None:
        self.path = path = real_path(path)
        self._in_sequence = in_sequence
        self._failure: Problem | None = None
        with ExitStack() as undo:
            self._lock_file = _lock(path)
            undo.callback(os.close, self._lock_file)
            try:
                path.touch(PRIVATE)
                self._reserve = Reserve(reserve_of(path), reserve_bytes) if reserve_bytes else None
            except OSError as error:
                raise Problem(f"cannot open {path}: {error.strerror}") from error
            try:
                self._writing = _open(path, kind, tables)
            except Problem as problem:  # on a full disk, there is not even room to read it
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
        self._records: list[str] = []
        self._statements: list[Statement] = []
        self._then: list[Then] = []
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
        except Problem:
            return False  # a disk that cannot be read has no room to write

    def append(self, records: Sequence[str], *statements: Statement, then: Then | None = None) -> int:
        """Hand over what one commit is to write: records, in this order, and SQL to be run after them.

        Args:
            records: texts without NUL.
            statements: each with its parameters.
            then: called once that and all before it has been written, with None, or once that has failed, with the
                problem; by the writer's thread, or at once if there is nothing to write.

        Returns:
            The position of the last record.
        """
        size = sum(map(len, records))
        with self._changed:
            while records and self._waiting > MAX_WAITING:
                self._changed.wait()
            self._records += records
            self._statements += statements
            self._waiting += size
            self.last += len(records)
            if self._busy or self._records or self._statements:
                if then is not None:
                    self._then.append(then)
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
            Problem: it could not be written.
        """
        outcome: SimpleQueue[Problem | None] = SimpleQueue()
        self.append(records, *statements, then=outcome.put)
        if (problem := outcome.get()) is not None:
            raise problem

    def resume(self) -> None:
        """Write again after a commit has failed. What was handed over since is lost; nobody hands over more meanwhile.

        Raises:
            Problem: it cannot be written yet.
        """
        with suppress(Problem):
            self.wait()
        self._failure = None
        self.wait(("UPDATE cut SET position = position", ()))

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
                while not (self._records or self._statements or self._then or self._closing):
                    self._changed.wait()
                if not (self._records or self._statements or self._then):
                    return
                self._busy = True
                records, self._records = self._records, []
                statements, self._statements = self._statements, []
                then, self._then = self._then, []
                self._waiting = 0
                first = self.last - len(records) + 1
                self._changed.notify_all()
            problem = self._failure or self._commit(first, records, statements)
            if self._in_sequence:
                self._failure = problem
            for callback in then:
                try:
                    callback(problem)
                except Exception as error:  # noqa: BLE001 - the others are to hear of their commit
                    self._thread.fail(error)

    def _commit(self, first: int, records: list[str], statements: list[Statement]) -> Problem | None:
        """Write all or nothing, with the room of the reserve if the disk has no other."""
        if not (records or statements):
            return None
        problem = self._attempt(first, records, statements)
        if problem is not None and self._give_up_reserve():
            problem = self._attempt(first, records, statements)
        return problem

    def _give_up_reserve(self) -> bool:
        return self._reserve is not None and self._reserve.give_up()

    def _attempt(self, first: int, records: list[str], statements: list[Statement]) -> Problem | None:
        """Write all or nothing."""
        try:
            with told(self.path):
                self._writing.execute("BEGIN IMMEDIATE")
                if records:
                    self._writing.execute(INSERT, (first, time.time_ns() // 1000, json.dumps(records)))
                for statement in statements:
                    self._writing.execute(*statement)
                self._writing.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - a writer that dies leaves everybody waiting for ever
            with suppress(sqlite3.Error):  # what is not rolled back makes the next attempt fail
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
            return error if isinstance(error, Problem) else Problem(f"{self.path}: {error}")
        return None


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
            raise Problem(f"{path} is damaged: {health}")
        undo.pop_all()
    return database


def _with_room_told(problem: Problem, path: Path) -> Problem:
    """A problem, which says so if there is hardly any room on the disk."""
    free = shutil.disk_usage(path.parent).free
    return Problem(f"{problem}; its disk has only {free // 1024} KiB free: make room") if free < LEAST_FREE else problem


def real_path(path: Path) -> Path:
    """The file that a path leads to, by which everybody who uses it is to name it; it need not be there yet.

    Raises:
        Problem: it leads nowhere, or to something else than a file with one name.
    """
    try:
        is_there = path.is_symlink() or path.exists()
        real = os.path.realpath(path if is_there else path.parent, strict=True)
        real = real if is_there else os.path.join(real, path.name)  # noqa: PTH118 - `real` is a text
        status = path.stat() if is_there else None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            target = path.readlink()
            raise Problem(f"{path} is a link to {target}, which is not there: make that, or name a file") from error
        raise Problem(f"cannot open {path}: {error.strerror}") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise Problem(f"{path} is a folder, or something else that is not a file: name a file")
    if status is not None and status.st_nlink > 1:
        raise Problem(
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
        Problem: the file is not a log of this kind, or is damaged.
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
            raise Problem(f"{path} is not a {kind} file; name another file, or one that does not exist yet")
        undo.pop_all()
    return database


def in_use(path: Path) -> bool:
    """Whether a process has the log open; raises Problem as `real_path` does."""
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
        raise Problem(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise InUse(f"{path} is in use by another process; stop it, or name another file") from None
    return file


@contextmanager
def told(path: Path) -> Iterator[None]:
    """SQLite's errors as problems that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise Problem(f"{path}: {error}") from error
