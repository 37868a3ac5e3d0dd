"""The durable log under the daemon's spool and the server's store: texts in order, in one SQLite file.

A writer thread commits as soon as its last commit has ended; all records appended during a commit share the next one.
So a single record waits for one commit, and a thousand at once share one. Committed records survive a killed process
and a power cut (write-ahead log, synchronous=FULL). One process at a time may open a file.

The caller of `append` gets the outcome of the commit with its records, and of no other. A failed commit must not appear
after a restart: SQLite may have written all of it to the write-ahead log before it failed, and would recover it. So the
writer overwrites it at once with another commit. If that fails too, the outcome is `InDoubt`.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError, reason
from cpsim.store.file import ROOM_INSIDE, LogFile, LostLog, named_errors, real_path, reserve_of
from cpsim.store.reserve import Reserve
from cpsim.store.schema import checksum, checksums
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cpsim.clock import Clock

    Then = Callable[[CpsimError | None], object]
    Statement = tuple[str, Sequence[object]]

log = logging.getLogger(__name__)

MAX_WAITING_CHARS: Final = 64 * 2**20
"""Characters that may wait for the next commit; at this limit, `append` blocks."""
MIN_FREE_BYTES: Final = 2**20
"""Free bytes of the disk below which opening or writing a log is likely to fail."""
LOOK_S: Final = 0.25
"""How often a log looks whether its file is still there, in seconds."""
INSERT: Final = "INSERT INTO log SELECT ? + key, ?, value, substr(?, 4 * key + 1, 4) FROM json_each(?)"
"""Inserts all records in one step: each step releases Python's lock, and waits to get it back."""
NO_CHANGE: Final = (
    ("UPDATE cut SET position = position + 1", ()),
    ("UPDATE cut SET position = position - 1", ()),
)
"""A commit that writes one page and changes nothing: SQLite does not write an unchanged row."""
READ: Final = """
SELECT json_group_array(json_array(position, record, hex(checksum))) FROM
(SELECT position, record, checksum FROM log WHERE position > ? AND position <= ? ORDER BY position LIMIT ?)
"""


class InDoubt(CpsimError):
    """A commit failed, and may nevertheless appear after a restart.

    Args:
        problem: the error of the commit.
    """

    def __init__(self, problem: CpsimError) -> None:
        super().__init__(f"{problem}; whether the change is there after a restart is unknown")
        self.problem = problem


class DamagedRecord(CpsimError):
    """A record is not what was written.

    Args:
        path: the log's file.
        position: of the record.
    """

    def __init__(self, path: Path, position: int) -> None:
        super().__init__(f"{path}: record {position} is damaged: its checksum does not match")
        self.position = position


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
    """An open log. Its methods may be called from any thread; `step` by one only.

    Args:
        path: the file, or a symbolic link to it; created if missing.
        kind: name of the format; its first four letters mark the file, and a file of another kind is refused.
        tables: SQL that creates the owner's own tables if missing.
        reserve_bytes: room on the disk that a file beside the log reserves for when the disk is full.
        in_sequence: after a failed commit that was not `alone`, later ones fail too, until `resume`.
        clock: gives the time of each record.
        file: opens the file.
        threaded: a thread makes the commits; without it, `step` does, and whoever waits for a commit makes it.

    Raises:
        CpsimError: the file is in use, damaged, of another kind, or cannot be created.

    Attributes:
        path: the real file; its companion files are beside it.
        last: the position of the last record.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        tables: str = "",
        *,
        reserve_bytes: int = 0,
        in_sequence: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        file: Callable[[Path, str], LogFile] = LogFile,
        threaded: bool = True,
    ) -> None:
        self.path = path = real_path(path)
        self.clock = clock
        self._in_sequence = in_sequence
        self._threaded = threaded
        self._failure: CpsimError | None = None
        self._gone: CpsimError | None = None
        self._looked_s = clock.monotonic()
        self._read_lock = threading.Lock()
        self._changed = threading.Condition()
        self._commits: deque[_Commit] = deque()
        self._waiting = 0
        self._busy = self._closing = False
        self._file = file(path, kind)
        with ExitStack() as undo:
            undo.callback(self._file.close)
            try:
                reserve = reserve_of(path), reserve_bytes, self._file.free_bytes
                self._reserve = Reserve(*reserve) if reserve_bytes else None
            except OSError as error:
                raise CpsimError(f"cannot open {path}: {error.strerror}") from error
            try:
                self._file.open(tables)
            except LostLog:
                raise
            except CpsimError as problem:  # a full disk may lack even the room to read the file
                if not self._give_up_reserve():
                    raise _with_free_space(problem, self._file.free_bytes()) from problem
                self._file.open(tables)
            last = "SELECT max(position) FROM (SELECT position FROM log UNION ALL SELECT position FROM cut)"
            self.last: int = self.query(last)[0][0]
            undo.pop_all()
        self._thread = Thread(self._write, f"cpsim-{kind}")
        if threaded:
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

    @property
    def is_gone(self) -> bool:
        """Whether its file was removed or replaced, so that it takes no more records."""
        return self._gone is not None

    def free_bytes(self) -> int:
        """Return the free bytes of the disk."""
        return self._file.free_bytes()

    def append(
        self, records: Sequence[str], *statements: Statement, then: Then | None = None, alone: bool = False
    ) -> int:
        """Queue records, in this order, and SQL to run after them, for one commit.

        Args:
            records: texts without NUL.
            statements: each with its parameters.
            then: called with None once the commit is on disk, or with its error, which is `InDoubt` if the commit may
                have been written; by the writer's thread, or at once if there is nothing to write or the log is closed.
            alone: make a separate commit, whose failure fails no other.

        Returns:
            The position of the last record.
        """
        size = sum(map(len, records))
        with self._changed:
            while records and self._waiting > MAX_WAITING_CHARS:
                if self._threaded:
                    self._changed.wait()
                else:
                    self.step()
            is_open = not self._closing
            if is_open:
                self.last += len(records)
                self._waiting += size
            if is_open and (self._busy or self._commits or records or statements):
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
            failure = self._failure if is_open else CpsimError(f"{self.path} is closed")
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
        self.run_until(lambda: not outcome.empty())
        if (problem := outcome.get()) is not None:
            raise problem

    def resume(self) -> None:
        """Resume writing after a failed commit; later appends are lost. No other thread may append meanwhile.

        Raises:
            CpsimError: the log still cannot be written.
        """
        if self._gone is not None:
            raise self._gone
        with suppress(CpsimError):
            self.wait()
        self._failure = None
        self.wait(*NO_CHANGE)

    def read(self, after: int, up_to: int, limit: int) -> list[tuple[int, str]]:
        """Return the next records on disk after a position, each with its own position.

        Raises:
            DamagedRecord: one of them is not what was written.
            CpsimError: they cannot be read.
        """
        (text,) = self.query(READ, (after, up_to, limit))[0]
        found = []
        for position, record, written in json.loads(text):
            if written and checksum(position, record).hex().upper() != written:
                raise DamagedRecord(self.path, position)
            found.append((position, record))
        return found

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query over the data on disk."""
        with self._read_lock, named_errors(self.path):
            return self._file.query(sql, parameters)

    def check(self) -> None:
        """Raise ThreadFailed if an unexpected error has ended the writer's thread."""
        self._thread.check()

    def step(self) -> bool:
        """Make the next commit, and call back whoever waits for it; return False if there is nothing to write."""
        with self._changed:
            if not self._commits:
                return False
            self._busy = True
            commit = self._commits.popleft()
            self._waiting -= sum(map(len, commit.records))
            self._changed.notify_all()
        first = commit.last - len(commit.records) + 1
        problem = self._failure or (self._gone if commit.records else None)
        if problem is None:
            problem = self._commit(first, commit.records, commit.statements)
            self._look()
            if problem is None and commit.records and self._gone is not None:
                problem = InDoubt(self._gone)
        if self._in_sequence and not commit.alone:
            self._failure = problem.problem if isinstance(problem, InDoubt) else problem
        for callback in commit.then:
            try:
                callback(problem)
            except Exception as error:  # noqa: BLE001 - the other callbacks must run
                self._thread.fail(error)
        self._busy = False
        return True

    def run_until(self, done: Callable[[], bool]) -> None:
        """Make commits until a condition holds, unless a thread makes them."""
        while not (self._threaded or done()) and self.step():
            pass

    def close(self) -> None:
        """Write the rest and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._threaded:
            self._thread.join()
        while self.step():
            pass
        with self._read_lock:
            if self._gone is not None:
                self._rescue()
            self._file.close()

    def _write(self) -> None:
        while self.step() or self._await_commit():
            pass

    def _await_commit(self) -> bool:
        """Wait until there is something to write; return False if the log is closed instead."""
        while True:
            self._look()
            with self._changed:
                if not (self._commits or self._closing):
                    self.clock.wait(self._changed, LOOK_S)
                if self._commits or self._closing:
                    return bool(self._commits)

    def _look(self) -> None:
        """Take no more records once the file was removed or replaced: nothing would be there after a restart."""
        now_s = self.clock.monotonic()
        if self._gone is not None or now_s < self._looked_s + LOOK_S:
            return
        self._looked_s = now_s
        if what := self._file.gone():
            self._gone = CpsimError(f"{what} while it was in use: nothing more is acknowledged")
            self._thread.fail(self._gone)

    def _rescue(self) -> None:
        try:
            place = self._file.rescue()
        except CpsimError as problem:
            log.critical("%s: what it held could not be written anew, and is lost: %s", self.path, problem)
            return
        if place is not None:
            log.error("%s: what it held was written anew, to %s", self.path, place)

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
                self._file.execute("BEGIN IMMEDIATE")
                if records:
                    at_us, sums = self.clock.now_us(), checksums(first, records)
                    self._file.execute(INSERT, (first, at_us, sums, msgspec.json.encode(records).decode()))
                for statement in statements:
                    self._file.execute(*statement)
                is_written = True
                self._file.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - if the writer died, all callers would wait for ever
            problem = error if isinstance(error, CpsimError) else CpsimError(f"{self.path}: {reason(error)}")
            self._roll_back()
            if is_written and not _is_full(problem.__cause__) and not self._overwrite():
                return InDoubt(problem)
            return problem
        with suppress(Exception):  # what is committed is committed; the next commit marks again
            self._file.keep_mark()
        return None

    def _overwrite(self) -> bool:
        """Overwrite a failed commit in the write-ahead log; return whether that succeeded."""
        try:
            self._file.execute("BEGIN IMMEDIATE")
            for statement in NO_CHANGE:
                self._file.execute(*statement)
            self._file.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            return False
        return True

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            self._file.roll_back()


def _with_free_space(problem: CpsimError, free_bytes: int) -> CpsimError:
    """Return an error that mentions the disk if that is almost full."""
    if free_bytes < MIN_FREE_BYTES:
        return CpsimError(f"{problem}; its disk has only {free_bytes // 1024} KiB free: make room")
    return problem


def cut(position: int) -> tuple[Statement, ...]:
    """Return the SQL that deletes the records up to a position. Positions are never reused."""
    return (
        ("DELETE FROM log WHERE position <= ?", (position,)),
        ("UPDATE cut SET position = max(position, ?)", (position,)),
    )


def _is_full(error: BaseException | None) -> bool:
    """Return whether SQLite found no room for a page: then the write-ahead log lacks the page that ends a commit."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
