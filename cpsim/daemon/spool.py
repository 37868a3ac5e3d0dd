"""The daemon's spool: the commands that were answered OK and have not reached the server, on disk.

Commands leave in the order in which they came, one batch at a time. A batch is written down before it is sent
and struck out once its outcome is known, in one commit with what became of its commands. So one that is found
at the start may or may not have been applied: its `resumed` says so.

A record that is no command becomes a dead letter, with its text and the reason, and the others go on. In a resumed
batch all of them do: without it, the replies of the server would be laid to the wrong commands.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cpdaemon.signing import bulk_batches
from cpdaemon.wire import MalformedFrame, parse
from cpsim.errors import CpsimError
from cpsim.protocol.quirks import numbers_in
from cpsim.store.log import ROOM_INSIDE, Log, connect, cut, in_use, real_path, reserve_of, told
from cpsim.store.reserve import is_given_up

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cpdaemon.signing import Call
    from cpsim.store.log import Statement, Then

log = logging.getLogger(__name__)

KIND: Final = "spool"
TABLES: Final = """
CREATE TABLE IF NOT EXISTS batch (id TEXT NOT NULL, last INTEGER NOT NULL, named INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS failed
(position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, why TEXT NOT NULL, command TEXT NOT NULL, error TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tally (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trouble (error TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS owner (project TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sender (id TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID;
"""
SENT: Final = "INSERT INTO sender VALUES (?, ?) ON CONFLICT DO UPDATE SET sequence = excluded.sequence"
"""Under which id, and how often: no two batches have the same number."""
MAX_COMMANDS: Final = 1_000_000
"""Commands in the spool, those set aside included; when it holds more, the daemon answers ER."""
RESERVE_BYTES: Final = 16 * 2**20
"""As much as may be written to the spool's file at once, when it has caught up with its write-ahead log, and more."""
MAX_BATCH: Final = 1_000
WHOLE_NUMBER: Final = re.compile("-?[0-9]+")
REFUSED: Final = "refused"
SET_ASIDE: Final = "set aside"
READ_BYTES: Final = """
SELECT position, CAST(record AS BLOB) FROM log WHERE position > ? AND position <= ? ORDER BY position LIMIT ?
"""
"""Of records that `Log.read` cannot read, because one of them is not UTF-8."""
UNNAMED: Final = "(some of "
"""How the text begins that stands for refused commands which the server did not name."""


class DeadLetter(NamedTuple):
    """A dead letter: a command that was `refused` by the server, or `set aside`, as the error says.

    It is set aside when nobody knows whether it was applied, or when the record in the spool is no command.
    """

    position: int
    at_us: int
    why: str
    command: str
    error: str


@dataclass(frozen=True, slots=True)
class Status:
    """What a spool holds, and what became of the commands that have left it."""

    running: bool
    queued: int
    oldest_s: float
    delivered: int
    refused: int
    set_aside: int
    retries: int
    full: bool
    """Whether commands are answered ER, because the spool, or the disk, has no room for more."""
    trouble: str
    """Why the last attempt to deliver failed; empty, if it did not."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The commands that are sent together, first to last, and the id under which they are, if the server knows ids."""

    id: str
    last: int
    commands: list[tuple[int, str]]
    calls: list[Call]
    named: bool = True
    resumed: bool = False


class Spool:
    """An open spool.

    Args:
        path: the file; made if it is not there.
        max_commands: when it holds so many, it is full.
        reserve_bytes: room on the disk that is kept to deliver with, in a file beside it. Without that room, the spool
            is full too.

    Raises:
        CpsimError: the file is in use, damaged, or something else; or it cannot be made.
    """

    def __init__(self, path: Path, max_commands: int = MAX_COMMANDS, reserve_bytes: int = 0) -> None:
        self._log = Log(path, KIND, TABLES, reserve_bytes=reserve_bytes)
        self._max_commands = max_commands
        self._released = self._log.last
        self._sent: int = self._log.query("SELECT position FROM cut")[0][0]
        self._failed: int = self._log.query("SELECT count(*) FROM failed")[0][0]
        self._open: tuple[str, int, bool] | None = next(
            iter(self._log.query("SELECT id, last, named FROM batch")), None
        )
        senders = self._log.query("SELECT id, sequence FROM sender")
        self._sender, self._sequence = senders[0] if senders else (uuid.uuid4().hex, 0)
        self._had_room = True
        self.released = threading.Condition()

    @property
    def pending(self) -> int:
        """How many commands have not been delivered."""
        return self._log.last - self._sent

    @property
    def failed(self) -> int:
        """How many entries there are for commands that were refused or set aside."""
        return self._failed

    @property
    def ready(self) -> int:
        """How many commands may be delivered now."""
        return self._released - self._sent

    @property
    def released_to(self) -> int:
        """The position up to which commands may be delivered."""
        return self._released

    @property
    def delivered_to(self) -> int:
        """The position up to which commands have been delivered."""
        return self._sent

    @property
    def is_full(self) -> bool:
        """Whether no more commands should be put."""
        return not self._has_room() or self._log.last - self._sent + self._failed >= self._max_commands

    def belong_to(self, project: str) -> None:
        """Keep commands of one project alone.

        Raises:
            CpsimError: there are some of another; or it cannot be written.
        """
        held = self.pending + self._failed
        for (owner,) in self._log.query("SELECT project FROM owner"):
            if owner != project and held:
                raise CpsimError(
                    f"{self._log.path} holds {held:,} commands of project {owner!r}, not of {project!r}; "
                    f"name another file, or have a daemon of {owner!r} deliver them"
                )
        self._log.wait(("DELETE FROM owner", ()), ("INSERT INTO owner VALUES (?)", (project,)))

    def _has_room(self) -> bool:
        had_room, self._had_room = self._had_room, self._log.has_room()
        if had_room and not self._had_room:
            log.error("%s: the disk is full: until it has room, commands are answered ER", self._log.path)
        elif self._had_room and not had_room:
            log.info("%s: the disk has room again", self._log.path)
        return self._had_room

    def put(self, frames: Sequence[str], amended: Mapping[int, str], then: Then) -> int:
        """Take frames, which stay until they are released; put others, or nothing, in the place of earlier ones.

        Args:
            frames: the new ones.
            amended: by their positions, those that have changed since.
            then: called once all of it is on disk, or with the problem, if none of it is; from another thread.

        Returns:
            The position of the last frame.
        """
        amendments = (("UPDATE log SET record = ? WHERE position = ?", (frame, at)) for at, frame in amended.items())
        return self._log.append(frames, *amendments, then=then)

    def release(self, position: int) -> None:
        """Let what was put be delivered, up to a position; all of it is on disk."""
        with self.released:
            before = self.ready
            self._released = position
            if before == 0 or self.ready >= MAX_BATCH:
                self.released.notify_all()

    def take(
        self, size: int = MAX_BATCH, *, in_order: bool = True, careful: bool = False, named: bool = True
    ) -> Batch | None:
        """The next commands to be sent, at most so many, written down as a batch; None if there are none.

        It is the same batch, now resumed, until it is put back or settled. A server applies a batch class by class:
        `in_order` ends it before a command that would overtake one of its slot. A `careful` batch has no command beside
        others at which a server may break it off, as the one in production does at a number that is none. Whether it is
        `named` when it is sent is written down too.

        Raises:
            CpsimError: it cannot be written down.
        """
        while self._open is not None:
            id_, last, was_named = self._open
            records = self._read(last, last - self._sent)
            batch, dead = _batch(id_, last, records, named=bool(was_named), resumed=True)
            if not dead:
                return batch
            self._bury(batch, dead)
        while records := self._read(self._released, size):
            self._sequence += 1  # also where it cannot be written down: no number is used again
            batch, dead = _batch(numbered(self._sender, self._sequence), records[-1][0], records, named=named)
            if dead:
                self._bury_each(dead)
            if batch.calls:
                taken = together(batch.calls, in_order=in_order, careful=careful)
                if taken < len(batch.calls):
                    batch = replace(
                        batch,
                        last=batch.commands[taken - 1][0],
                        commands=batch.commands[:taken],
                        calls=batch.calls[:taken],
                    )
                self._log.wait(
                    ("INSERT INTO batch VALUES (?, ?, ?)", (batch.id, batch.last, named)),
                    (SENT, (self._sender, self._sequence)),
                )
                self._open = batch.id, batch.last, named
                return batch
            self._sent = batch.last
        self._sent = self._released
        return None

    def put_back(self) -> None:
        """Strike out the batch that was taken: it certainly was not applied, and its commands stay.

        Raises:
            CpsimError: that cannot be written.
        """
        self._log.wait(("DELETE FROM batch", ()))
        self._open = None

    def settle(self, batch: Batch, failed: Sequence[DeadLetter], unnamed: int = 0) -> None:
        """Strike out a batch and its commands; those that did not fail were delivered.

        Args:
            batch: the one that was taken.
            failed: what is to be kept of it for a person to see.
            unnamed: for how many refused commands one of these stands.

        Raises:
            CpsimError: that cannot be written.
        """
        more = max(0, unnamed - 1)
        refused = sum(row.why == REFUSED for row in failed) + more
        delivered = max(0, len(batch.calls) - len(failed) - more)
        self._log.wait(
            ("DELETE FROM batch", ()),
            *map(_insert_failed, failed),
            *(_add(name, count) for name, count in (("delivered", delivered), (REFUSED, refused)) if count),
            *cut(batch.last),
        )
        self._open = None
        self._sent = batch.last
        self._failed += len(failed)

    def requeue(self, positions: Collection[int] | None) -> int:
        """Put failed commands back, behind those that wait; returns how many.

        Args:
            positions: which; None for all whose text is known.

        Raises:
            CpsimError: there is none at a position, or nobody knows which it was; or it cannot be written.
        """
        rows = self._failed_at(positions)
        unknown = [row.position for row in rows if row.command.startswith(UNNAMED)]
        if unknown and positions is not None:
            raise CpsimError(f"{unknown[0]} stands for commands that the server did not name: it can only be forgotten")
        rows = [row for row in rows if row.position not in unknown]
        self._strike(rows, [row.command for row in rows])
        return len(rows)

    def forget(self, positions: Collection[int] | None) -> int:
        """Strike failed commands, or all of them, from the list; returns how many.

        Raises:
            CpsimError: there is none at a position, or it cannot be written.
        """
        rows = self._failed_at(positions)
        self._strike(rows)
        return len(rows)

    def _failed_at(self, positions: Collection[int] | None) -> list[DeadLetter]:
        rows = list(starmap(DeadLetter, self._log.query("SELECT * FROM failed ORDER BY position")))
        if positions is None:
            return rows
        missing = set(positions) - {row.position for row in rows}
        if missing:
            raise CpsimError(f"no failed command has the number {min(missing)}; --failed lists those that there are")
        return [row for row in rows if row.position in positions]

    def _strike(self, rows: Sequence[DeadLetter], back: Sequence[str] = ()) -> None:
        """Take commands from the list of those that failed and put frames into the spool, in one commit."""
        deletions = (("DELETE FROM failed WHERE position = ?", (row.position,)) for row in rows)
        self._log.wait(*deletions, records=back)
        self._failed -= len(rows)

    def retried(self) -> None:
        """Count an attempt that failed, and that another will follow."""
        self._log.append([], _add("retries", 1))

    def complain(self, error: str | None) -> None:
        """Have the status say why an attempt failed, or that one did not."""
        said = () if error is None else (("INSERT INTO trouble VALUES (?)", (error,)),)
        self._log.append([], ("DELETE FROM trouble", ()), *said)

    def wait(self) -> None:
        """Return once what was put before is on disk, and whoever put it has been told.

        Raises:
            CpsimError: it could not be written.
        """
        self._log.wait()

    def check(self) -> None:
        """Raise ThreadFailed if its writer has met an error that nobody expected."""
        self._log.check()

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._log.close()

    def _read(self, up_to: int, limit: int) -> list[tuple[int, str]]:
        """The next records that have not been delivered; bytes that are not UTF-8 stand as surrogates."""
        try:
            return self._log.read(self._sent, up_to, limit)
        except CpsimError:
            rows = self._log.query(READ_BYTES, (self._sent, up_to, limit))
            return [(position, record.decode(errors="surrogateescape")) for position, record in rows]

    def _bury_each(self, dead: Sequence[DeadLetter]) -> None:
        """Move records out of the way of the others, to the list of those that failed."""
        self._log.wait(
            *(("UPDATE log SET record = '' WHERE position = ?", (row.position,)) for row in dead),
            *(_insert_failed(row) for row in dead),
        )
        self._failed += len(dead)
        _log_dead(dead)

    def _bury(self, batch: Batch, dead: Sequence[DeadLetter]) -> None:
        """Strike out a resumed batch in which there are records that are no commands."""
        error = "it was sent with a record that is no command any more: nobody knows whether it was applied"
        doubtful = [DeadLetter(position, dead[0].at_us, SET_ASIDE, text, error) for position, text in batch.commands]
        self.settle(batch, [*dead, *doubtful])
        _log_dead([*dead, *doubtful])


def _batch(
    id_: str, last: int, records: Iterable[tuple[int, str]], *, named: bool, resumed: bool = False
) -> tuple[Batch, list[DeadLetter]]:
    """A batch of records, and those that are no commands."""
    commands: list[tuple[int, str]] = []
    calls: list[Call] = []
    dead: list[DeadLetter] = []
    for position, text in records:
        frame = text.encode(errors="surrogateescape")
        try:
            if frame:
                calls.append(parse(frame))
                commands.append((position, text))
        except MalformedFrame as error:
            shown = text if text.isprintable() else repr(frame)  # which is no command either, if it is requeued
            dead.append(
                DeadLetter(position, time.time_ns() // 1000, SET_ASIDE, shown, f"the record is no command: {error}")
            )
    return Batch(id_, last, commands, calls, named, resumed), dead


def _log_dead(dead: Sequence[DeadLetter]) -> None:
    log.error("%d records, listed by `cpsim daemon --failed`: %s: %s", len(dead), dead[0].command, dead[0].error)


def numbered(sender: str, sequence: int) -> str:
    """The id of a batch, by which a server knows what was sent before it: see `cpsim.server.batches`."""
    return f"{sender}-{sequence}"


def together(calls: Sequence[Call], *, in_order: bool, careful: bool) -> int:
    """How many of these calls may be sent in one batch: see `Spool.take`."""
    taken = len(next(bulk_batches(calls))) if in_order else len(calls)
    if careful:
        risk = next((place for place, call in enumerate(calls[:taken]) if _is_risky(call)), taken)
        taken = max(1, risk)
    return taken


def _is_risky(call: Call) -> bool:
    """Whether a number in a command is none."""
    return not all(WHOLE_NUMBER.fullmatch(str(value)) for value in numbers_in(*call))


def text_of(call: Call) -> str:
    """A command as a frame has it."""
    kind, arguments = call
    return ",".join([kind, *(f"{name}={value}" for name, value in arguments.items())])


def _insert_failed(row: DeadLetter) -> Statement:
    return ("INSERT INTO failed VALUES (?, ?, ?, ?, ?)", row)


def _add(name: str, count: int) -> Statement:
    return ("INSERT INTO tally VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count", (name, count))


def existing(path: Path) -> Path:
    """The file of a spool; raises CpsimError if there is none."""
    real = real_path(path)
    if not real.exists():
        raise CpsimError(f"there is no spool {path}")
    return real


def read_status(path: Path) -> Status:
    """The state of a spool, whether or not a daemon is running on it.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    path = existing(path)
    with _looking_into(path) as rows:
        tally = dict(rows("SELECT name, count FROM tally"))
        ((queued, oldest_us),) = rows("SELECT count(*), min(at_us) FROM log")
        ((failed, set_aside),) = rows("SELECT count(*), count(*) FILTER (WHERE why = ?) FROM failed", SET_ASIDE)
        trouble = "; ".join(error for (error,) in rows("SELECT error FROM trouble"))
        ((room_inside,),) = rows(ROOM_INSIDE)
    age_s = 0.0 if oldest_us is None else max(0.0, time.time() - oldest_us / 1e6)
    running = in_use(path)
    return Status(
        running=running,
        queued=queued,
        oldest_s=round(age_s, 3),
        delivered=tally.get("delivered", 0),
        refused=tally.get(REFUSED, 0),
        set_aside=set_aside,
        retries=tally.get("retries", 0),
        full=queued + failed >= MAX_COMMANDS
        or (running and is_given_up(reserve_of(path)) and room_inside < RESERVE_BYTES),
        trouble=trouble,
    )


def read_failed(path: Path) -> list[DeadLetter]:
    """The commands of a spool that were refused or set aside, in the order in which they came.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    with _looking_into(existing(path)) as rows:
        return list(starmap(DeadLetter, rows("SELECT * FROM failed ORDER BY position")))


@contextmanager
def _looking_into(path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    with closing(connect(path, KIND)) as database, told(path):
        yield lambda sql, *parameters: database.execute(sql, parameters).fetchall()
