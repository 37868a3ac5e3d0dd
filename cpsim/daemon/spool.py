"""The daemon's spool: commands on disk that were answered OK and have not reached the server.

Commands leave in their order of arrival, one batch at a time. The spool records a batch before it is sent, and deletes
it once its outcome is known, in one commit with the outcomes of its commands. So a batch that a starting daemon finds
may or may not have been applied: it is `resumed`.

A malformed record becomes a dead letter, with its text and the reason, and the others are delivered. In a resumed batch
all records become dead letters: without the malformed one, the server's replies would name the wrong commands.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS
from cpdaemon.signing import bulk_batches
from cpdaemon.wire import MalformedFrame, parse
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.failed import (
    DAMAGED,
    DEAD_LETTER,
    REFUSED,
    SELECT_FAILED,
    UNNAMED,
    FailedCommand,
    counts_of,
    failed_command,
    insert_failed,
)
from cpsim.errors import CpsimError
from cpsim.store.log import Log, cut
from cpsim.store.schema import checksum, sum_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from cpdaemon.signing import Call
    from cpsim.clock import Clock
    from cpsim.store.log import Statement, Then

log = logging.getLogger(__name__)

KIND: Final = "spool"
TABLES: Final = """
CREATE TABLE IF NOT EXISTS batch (id TEXT NOT NULL, last INTEGER NOT NULL, named INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS failed
(position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, why TEXT NOT NULL, command TEXT NOT NULL, error TEXT NOT NULL,
 checksum BLOB);
CREATE TABLE IF NOT EXISTS tally (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trouble (error TEXT NOT NULL, since_us INTEGER);
CREATE TABLE IF NOT EXISTS owner (project TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sender (id TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS exported (id TEXT NOT NULL, at_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS imported (id TEXT PRIMARY KEY, at_us INTEGER NOT NULL) WITHOUT ROWID;
"""
SAVE_SENDER: Final = "INSERT INTO sender VALUES (?, ?) ON CONFLICT DO UPDATE SET sequence = excluded.sequence"
"""Saves the sender's id and sequence number: no two batches have the same number."""
MAX_COMMANDS: Final = 1_000_000
"""Commands in the spool, failed ones included; at this number, the daemon answers ER."""
RESERVE_BYTES: Final = 16 * 2**20
"""Room for a checkpoint of the write-ahead log into the spool's file, and more."""
MAX_BATCH: Final = 1_000
WHOLE_NUMBER: Final = re.compile("-?[0-9]+")
READ_RAW: Final = f"""
SELECT position, CAST(record AS BLOB), {sum_of("record")} FROM log
WHERE position > ? AND position <= ? ORDER BY position LIMIT ?
"""  # noqa: S608 - of constants
"""Reads records that `Log.read` cannot, because one of them is damaged or not UTF-8."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands of one bulk request, in order, and the batch id for a server that knows ids."""

    id: str
    last: int
    commands: list[tuple[int, str]]
    calls: list[Call]
    named: bool = True
    resumed: bool = False


class Spool:
    """An open spool.

    Args:
        path: the file; created if missing.
        max_commands: number of commands at which the spool is full.
        reserve_bytes: room on the disk that a file beside the spool reserves for delivery. Without that room, the spool
            is full too.
        clock: gives the time of its records.
        open_log: opens its log.

    Raises:
        CpsimError: the file is in use, damaged, not a spool, or cannot be created; or it was exported.
    """

    def __init__(
        self,
        path: Path,
        max_commands: int = MAX_COMMANDS,
        reserve_bytes: int = 0,
        *,
        clock: Clock = SYSTEM_CLOCK,
        open_log: Callable[..., Log] = Log,
    ) -> None:
        self.path = path
        self._log = open_log(path, KIND, TABLES, reserve_bytes=reserve_bytes, clock=clock)
        if exports := self._log.query("SELECT id FROM exported"):
            self._log.close()
            raise CpsimError(
                f"{path} was exported, and is delivered where export {exports[0][0]} was imported: name another file; "
                "--export writes the export again, and to import it into this spool puts it back into delivery"
            )
        self._max_commands = max_commands
        self._released = self._log.last
        self._sent: int = self._log.query("SELECT position FROM cut")[0][0]
        self.query = self._log.query
        """Returns the rows of a query over what is on disk; raises CpsimError."""
        self.failures = counts_of(self.query)
        """Number of failed commands by reason."""
        self._open: tuple[str, int, bool] | None = next(
            iter(self._log.query("SELECT id, last, named FROM batch")), None
        )
        senders = self._log.query("SELECT id, sequence FROM sender")
        self._sender, self._sequence = senders[0] if senders else (uuid.uuid4().hex, 0)
        self._had_room = True
        self._has_most = False
        self.released = threading.Condition()
        self.wakes_always = False
        self.parse: Callable[[bytes], Call] = parse
        """Parses the frames, as the daemon that stores them does."""

    @property
    def pending(self) -> int:
        """Number of commands that have not been delivered."""
        return self._log.last - self._sent

    @property
    def failed(self) -> int:
        """Number of entries for refused commands and dead letters."""
        return self.failures.total()

    @property
    def ready(self) -> int:
        """Number of commands that may be delivered now."""
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
    def is_gone(self) -> bool:
        """Whether its file was removed or replaced: what it holds is on disk again once it is closed."""
        return self._log.is_gone

    @property
    def is_full(self) -> bool:
        """Whether the spool should get no more commands."""
        if self.is_gone or not self._has_room():
            return True
        had_most, self._has_most = self._has_most, self.pending + self.failed >= self._max_commands
        if self._has_most and not had_most:
            log.error(
                "%s holds %d commands, the most it takes: further ones are answered ER", self.path, self._max_commands
            )
        elif had_most and not self._has_most:
            log.info("%s takes commands again", self.path)
        return self._has_most

    def set_project(self, project: str) -> None:
        """Bind the spool to one project.

        Raises:
            CpsimError: the spool holds commands of another project, or cannot be written.
        """
        held = self.pending + self.failed
        for (owner,) in self._log.query("SELECT project FROM owner"):
            if owner != project and held:
                raise CpsimError(
                    f"{self._log.path} holds {held:,} commands of project {owner!r}, not of {project!r}; "
                    f"name another file, or deliver them with a daemon of {owner!r}"
                )
        self._log.wait(("DELETE FROM owner", ()), ("INSERT INTO owner VALUES (?)", (project,)))

    def _has_room(self) -> bool:
        had_room, self._had_room = self._had_room, self._log.has_room()
        if had_room and not self._had_room:
            log.error("%s: the disk is full: commands are answered ER until it has room", self._log.path)
        elif self._had_room and not had_room:
            log.info("%s: the disk has room again", self._log.path)
        return self._had_room

    def put(self, frames: Sequence[str], amended: Mapping[int, str], then: Then) -> int:
        """Append frames, which stay until they are released, and replace earlier ones.

        Args:
            frames: the new ones.
            amended: replacements of earlier frames, by position; an empty one deletes.
            then: called from another thread, with None once all of this is on disk, or with the error if none of it is.

        Returns:
            The position of the last frame.
        """
        amendments = (_amend(at, frame) for at, frame in amended.items())
        return self._log.append(frames, *amendments, then=then)

    def release(self, position: int) -> None:
        """Release frames for delivery, up to a position; all of them are on disk."""
        with self.released:
            before = self.ready
            self._released = max(self._released, position)  # what was cleared may be released afterwards
            if before == 0 or self.ready >= MAX_BATCH or self.wakes_always:
                self.released.notify_all()

    def take(
        self, size: int = MAX_BATCH, *, in_order: bool = True, careful: bool = False, named: bool = True
    ) -> Batch | None:
        """Record the next commands as a batch, at most `size`, and return it; None if there are none.

        Until the batch is put back or settled, each call returns the same batch, `resumed`.

        Args:
            size: most commands of the batch.
            in_order: end the batch before a command that would overtake one of its slot, because a server applies a
                batch class by class.
            careful: put a command with a malformed number into a batch of its own, because the server in production
                aborts a batch there.
            named: whether the batch is sent under its id; recorded with it.

        Raises:
            CpsimError: the spool cannot be written.
        """
        while self._open is not None:
            id_, last, was_named = self._open
            records = self._read(last, last - self._sent)
            found = Batch(id_, last, [], [], named=bool(was_named), resumed=True)
            batch, dead = _filled(found, records, self._log.clock, self.parse)
            if not dead:
                return batch
            self._fail_resumed(batch, dead)
        while records := self._read(self._released, size):
            self._sequence += 1  # also if the write fails: no number is used twice
            new = Batch(batch_id_of(self._sender, self._sequence), records[-1][0], [], [], named)
            batch, dead = _filled(new, records, self._log.clock, self.parse)
            if dead:
                self._set_dead_letters(dead)
            if batch.calls:
                taken = fitting(batch.calls, in_order=in_order, careful=careful)
                if taken < len(batch.calls):
                    batch = replace(
                        batch,
                        last=batch.commands[taken - 1][0],
                        commands=batch.commands[:taken],
                        calls=batch.calls[:taken],
                    )
                self._log.wait(
                    ("INSERT INTO batch VALUES (?, ?, ?)", (batch.id, batch.last, named)),
                    (SAVE_SENDER, (self._sender, self._sequence)),
                )
                self._open = batch.id, batch.last, named
                return batch
            self._sent = batch.last
        self._sent = self._released
        return None

    def put_back(self) -> None:
        """Dissolve the current batch, which was certainly not applied; its commands stay.

        Raises:
            CpsimError: the spool cannot be written.
        """
        self._log.wait(("DELETE FROM batch", ()))
        self._open = None

    def settle(self, batch: Batch, failed: Sequence[FailedCommand], unnamed: int = 0) -> None:
        """Delete a batch and its commands; those that did not fail count as delivered.

        Args:
            batch: the current batch.
            failed: its failed commands.
            unnamed: how many refused commands one entry of `failed` stands for.

        Raises:
            CpsimError: the spool cannot be written.
        """
        more = max(0, unnamed - 1)
        refused = sum(row.why == REFUSED for row in failed) + more
        delivered = max(0, len(batch.calls) - len(failed) - more)
        self._log.wait(
            ("DELETE FROM batch", ()),
            *map(insert_failed, failed),
            *(_add(name, count) for name, count in (("delivered", delivered), (REFUSED, refused)) if count),
            *cut(batch.last),
        )
        self._open = None
        self._sent = batch.last
        self.failures.update(row.why for row in failed)

    def requeue(self, positions: Collection[int] | None) -> int:
        """Queue failed commands again, behind those already queued; return how many.

        Args:
            positions: their positions; None for all whose text is known.

        Raises:
            CpsimError: a position has no failed command or one that the server did not name, or the spool cannot be
                written.
        """
        rows = self._failed_at(positions)
        unknown = [row.position for row in rows if row.command.startswith(UNNAMED)]
        if unknown and positions is not None:
            raise CpsimError(f"{unknown[0]} stands for commands that the server did not name: delete it by --forget")
        damaged = [row.position for row in rows if row.command.startswith(DAMAGED)]
        if damaged and positions is not None:
            raise CpsimError(
                f"{damaged[0]} is not what was received, because {self._log.path} is damaged: note what --failed "
                "shows of it, and delete it by --forget"
            )
        rows = [row for row in rows if row.position not in {*unknown, *damaged}]
        self._remove_failed(rows, [row.command for row in rows])
        return len(rows)

    def forget(self, positions: Collection[int] | None) -> int:
        """Delete failed commands, all of them if `positions` is None; return how many.

        Raises:
            CpsimError: a position has no failed command, or the spool cannot be written.
        """
        rows = self._failed_at(positions)
        self._remove_failed(rows)
        return len(rows)

    def _failed_at(self, positions: Collection[int] | None) -> list[FailedCommand]:
        rows = list(map(failed_command, self._log.query(SELECT_FAILED)))
        if positions is None:
            return rows
        missing = set(positions) - {row.position for row in rows}
        if missing:
            raise CpsimError(f"no failed command has the number {min(missing)}; --failed lists the numbers")
        return [row for row in rows if row.position in positions]

    def _remove_failed(self, rows: Sequence[FailedCommand], back: Sequence[str] = ()) -> None:
        """Delete failed commands and queue frames, in one commit."""
        deletions = (("DELETE FROM failed WHERE position = ?", (row.position,)) for row in rows)
        self._log.wait(*deletions, records=back)
        self.failures.subtract(row.why for row in rows)

    def clear(self) -> None:
        """Delete all commands, failed ones included, and their counts; no batch may be under way.

        Raises:
            CpsimError: the spool cannot be written.
        """
        last = self._log.last
        tables = ("batch", "failed", "tally", "trouble")
        self._log.wait(*((f"DELETE FROM {table}", ()) for table in tables), *cut(last))  # noqa: S608 - ours
        with self.released:
            self._open = None
            self.failures.clear()
            self._sent = last
            self._released = max(self._released, last)

    def count_retry(self) -> None:
        """Count a failed attempt that will be retried."""
        self._log.append([], _add("retries", 1))

    def report_outage(self, error: str | None, since_us: int) -> None:
        """Write the error of the last attempt to the status, and when the outage began; None if it succeeded."""
        row = () if error is None else (("INSERT INTO trouble VALUES (?, ?)", (error, since_us)),)
        self._log.append([], ("DELETE FROM trouble", ()), *row)

    def wait(self) -> None:
        """Return once all earlier writes are on disk and their callbacks have run.

        Raises:
            CpsimError: they could not be written.
        """
        self._log.wait()

    def check(self) -> None:
        """Raise ThreadFailed if an unexpected error has ended the writer's thread."""
        self._log.check()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._log.close()

    def _read(self, up_to: int, limit: int) -> list[tuple[int, str]]:
        """Return the next undelivered records, with bytes that are not UTF-8 as surrogates."""
        try:
            return self._log.read(self._sent, up_to, limit)
        except CpsimError:
            rows = self._log.query(READ_RAW, (self._sent, up_to, limit))
            return [decoded(*row) for row in rows]

    def _set_dead_letters(self, dead: Sequence[FailedCommand]) -> None:
        """Move malformed records to the failed commands."""
        self._log.wait(
            *(_amend(row.position, "") for row in dead),
            *(insert_failed(row) for row in dead),
        )
        self.failures.update(row.why for row in dead)
        _log_dead_letters(dead)

    def _fail_resumed(self, batch: Batch, dead: Sequence[FailedCommand]) -> None:
        """Settle a resumed batch with malformed records: all its commands become dead letters."""
        error = "it was sent with a record that is malformed now: whether it was applied is unknown"
        unknown = [
            FailedCommand(position, dead[0].at_us, DEAD_LETTER, text, error) for position, text in batch.commands
        ]
        self.settle(batch, [*dead, *unknown])
        _log_dead_letters([*dead, *unknown])


def _filled(
    batch: Batch, records: Iterable[tuple[int, str]], clock: Clock, parse: Callable[[bytes], Call]
) -> tuple[Batch, list[FailedCommand]]:
    """Return a batch with the commands of records, and the malformed ones as dead letters."""
    commands: list[tuple[int, str]] = []
    calls: list[Call] = []
    dead: list[FailedCommand] = []
    for position, text in records:
        frame = text.encode(errors="surrogateescape")
        try:
            if text.startswith(DAMAGED):
                problem = f"record {position} of the spool is damaged: what was received is unknown"
                dead.append(FailedCommand(position, clock.now_us(), DEAD_LETTER, text, problem))
            elif frame:
                calls.append(parse(frame))
                commands.append((position, text))
        except MalformedFrame as error:
            shown = text if text.isprintable() else repr(frame)  # also malformed, if it is requeued
            problem = f"the record is malformed: {error}"
            dead.append(FailedCommand(position, clock.now_us(), DEAD_LETTER, shown, problem))
    return replace(batch, commands=commands, calls=calls), dead


def _log_dead_letters(dead: Sequence[FailedCommand]) -> None:
    log.error("%d records, listed by `cpsim daemon --failed`: %s: %s", len(dead), dead[0].command, dead[0].error)


def batch_id_of(sender: str, sequence: int) -> str:
    """Return a batch id, from which a server knows the order of a sender's batches: see `cpsim.server.batches`."""
    return f"{sender}-{sequence}"


def fitting(calls: Sequence[Call], *, in_order: bool, careful: bool) -> int:
    """Return how many of these calls may be sent in one batch: see `Spool.take`."""
    taken = len(next(bulk_batches(calls))) if in_order else len(calls)
    if careful:
        risk = next((place for place, call in enumerate(calls[:taken]) if _is_risky(call)), taken)
        taken = max(1, risk)
    return taken


def _is_risky(call: Call) -> bool:
    """Return whether a number in a command is malformed."""
    kind, arguments = call
    numbers = [value for name, value in arguments.items() if COMMANDS[kind].type_of(name) is int]
    return not all(WHOLE_NUMBER.fullmatch(str(value)) for value in numbers)


def text_of(call: Call) -> str:
    """Return the text of a command's frame."""
    kind, arguments = call
    return ",".join([kind, *(f"{name}={value}" for name, value in arguments.items())])


def _amend(position: int, frame: str) -> Statement:
    sql = "UPDATE log SET record = ?, checksum = ? WHERE position = ?"
    return (sql, (frame, checksum(position, frame), position))


def decoded(position: int, record: bytes, written: bytes | None) -> tuple[int, str]:
    """Return a record, with bytes that are not UTF-8 as surrogates; one that is damaged begins with `DAMAGED`."""
    is_damaged = written is not None and checksum(position, record) != written
    if is_damaged:
        return position, DAMAGED + record.decode(errors="backslashreplace")
    return position, record.decode(errors="surrogateescape")


def _add(name: str, count: int) -> Statement:
    return ("INSERT INTO tally VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count", (name, count))
