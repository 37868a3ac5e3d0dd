"""What a spool holds, looked at from outside, whether or not a daemon serves it."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.failed import DEAD_LETTER, REFUSED, SELECT_FAILED, STORED, FailedCommand, failed_command
from cpsim.daemon.spool import KIND, MAX_COMMANDS, RESERVE_BYTES, TABLES
from cpsim.errors import CpsimError
from cpsim.store.file import (
    ROOM_INSIDE,
    InUse,
    check_whole,
    connect,
    in_use,
    locked,
    named_errors,
    real_path,
    reserve_of,
)
from cpsim.store.reserve import is_given_up
from cpsim.store.schema import FORMAT, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cpsim.daemon.spool import Spool

OUTAGE_S: Final = 60.0
"""After so many seconds, an outage is a failure; until then, the daemon retries."""
SELECT_FIRST: Final = "SELECT at_us FROM log WHERE record <> '' ORDER BY position LIMIT 1"


@dataclass(frozen=True, slots=True)
class Status:
    """Counts of a spool's commands by state, and its condition: what `--status` shows, and metrics can."""

    running: bool
    queued: int
    oldest_s: float
    delivered: int
    refused: int
    dead_letters: int
    retries: int
    full: bool
    """Whether commands are answered ER, because the spool or the disk has no room."""
    trouble: str
    """Error of the last attempt to deliver; empty if it succeeded."""
    trouble_s: float
    """How long all attempts have failed, in seconds; 0 if the last one succeeded or no daemon runs."""
    exported: str = ""
    """Id of the export, if what the spool holds was exported, and is delivered elsewhere; else empty."""

    @property
    def failures(self) -> list[str]:
        """What does not work, a sentence for each part that a person should look at."""
        found: list[str] = []
        if self.exported:
            return found
        if self.full:
            found.append("commands are answered ER, because the spool or its disk is full: make room")
        if self.trouble_s >= OUTAGE_S:
            found.append(f"for {self.trouble_s / 60:.0f} min nothing was delivered, and {self.queued:,} commands wait")
        if self.dead_letters:
            found.append(
                f"dead letters: {self.dead_letters:,}; --failed lists them, --requeue or --forget settles each"
            )
        return found


def existing(path: Path) -> Path:
    """Return the real path of a spool; raises CpsimError if there is none."""
    real = real_path(path)
    if not real.exists():
        raise CpsimError(f"there is no spool {path}")
    return real


def read_status(path: Path) -> Status:
    """Return the status of a spool, whether or not a daemon runs; the time for it grows with the spool.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    path = existing(path)
    with _reading(path) as rows:
        ((queued, oldest_us),) = rows("SELECT count(*), min(at_us) FROM log WHERE record <> ''")
        counts = "SELECT count(*), count(*) FILTER (WHERE why = ?) FROM failed"
        ((failed, dead_letters),) = rows(counts, STORED[DEAD_LETTER])
        return _status(path, rows, (queued, failed, dead_letters), oldest_us, is_running=in_use(path))


def status_of(spool: Spool) -> Status:
    """Return the status of a spool that this process has open, from its counts and a few rows.

    Its `oldest_s` is the age of the first command in the queue: one that was imported behind it may be older.

    Raises:
        CpsimError: it cannot be read.
    """
    counts = spool.pending, spool.failed, spool.failures[DEAD_LETTER]
    first_us = next((at_us for (at_us,) in spool.query(SELECT_FIRST)), None)
    return _status(real_path(spool.path), spool.query, counts, first_us, is_running=True)


def _status(
    path: Path,
    rows: Callable[[str], list[tuple[Any, ...]]],
    counts: tuple[int, int, int],
    oldest_us: int | None,
    *,
    is_running: bool,
) -> Status:
    queued, failed, dead_letters = counts
    tally = dict(rows("SELECT name, count FROM tally"))
    ((trouble, since_us),) = rows("SELECT coalesce(max(error), ''), min(since_us) FROM trouble")
    ((room_inside,),) = rows(ROOM_INSIDE)
    ((exported,),) = rows("SELECT coalesce(max(id), '') FROM exported")
    return Status(
        running=is_running,
        queued=queued,
        oldest_s=_age_s(oldest_us),
        delivered=tally.get("delivered", 0),
        refused=tally.get(REFUSED, 0),
        dead_letters=dead_letters,
        retries=tally.get("retries", 0),
        full=queued + failed >= MAX_COMMANDS
        or (is_running and is_given_up(reserve_of(path)) and room_inside < RESERVE_BYTES),
        trouble=trouble,
        trouble_s=_age_s(since_us) if is_running else 0.0,
        exported=exported,
    )


def _age_s(since_us: int | None) -> float:
    """Return the seconds since a time, to the millisecond; 0 without one."""
    return 0.0 if since_us is None else round(max(0.0, (SYSTEM_CLOCK.now_us() - since_us) / 1e6), 3)


def read_failed(path: Path) -> list[FailedCommand]:
    """Return the refused commands and dead letters of a spool, in order of arrival.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    with _reading(existing(path)) as rows:
        return list(map(failed_command, rows(SELECT_FAILED)))


@contextmanager
def _reading(path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    with ExitStack() as undo:
        database = undo.enter_context(closing(connect(path, KIND)))
        undo.enter_context(named_errors(path))
        with suppress(InUse), locked(path):
            check_whole(database, path)
        if database.execute("PRAGMA user_version").fetchone() != (FORMAT,):
            copy = undo.enter_context(closing(sqlite3.connect(":memory:", isolation_level=None)))
            database.backup(copy)
            upgrade(copy, KIND, TABLES)  # the file itself stays as it is
            database = copy
        yield lambda sql, *parameters: database.execute(sql, parameters).fetchall()
