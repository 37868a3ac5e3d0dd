"""What a spool holds, looked at from outside, whether or not a daemon serves it."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any

from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.spool import (
    DEAD_LETTER,
    KIND,
    MAX_COMMANDS,
    REFUSED,
    RESERVE_BYTES,
    SELECT_FAILED,
    STORED,
    FailedCommand,
)
from cpsim.errors import CpsimError
from cpsim.store.file import ROOM_INSIDE, connect, in_use, named_errors, real_path, reserve_of
from cpsim.store.reserve import is_given_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Status:
    """Counts of a spool's commands by state, and its condition."""

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


def existing(path: Path) -> Path:
    """Return the real path of a spool; raises CpsimError if there is none."""
    real = real_path(path)
    if not real.exists():
        raise CpsimError(f"there is no spool {path}")
    return real


def read_status(path: Path) -> Status:
    """Return the status of a spool, whether or not a daemon runs.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    path = existing(path)
    with _reading(path) as rows:
        tally = dict(rows("SELECT name, count FROM tally"))
        ((queued, oldest_us),) = rows("SELECT count(*), min(at_us) FROM log")
        counts = "SELECT count(*), count(*) FILTER (WHERE why = ?) FROM failed"
        ((failed, dead_letters),) = rows(counts, STORED[DEAD_LETTER])
        trouble = "; ".join(error for (error,) in rows("SELECT error FROM trouble"))
        ((room_inside,),) = rows(ROOM_INSIDE)
    age_s = 0.0 if oldest_us is None else max(0.0, (SYSTEM_CLOCK.now_us() - oldest_us) / 1e6)
    running = in_use(path)
    return Status(
        running=running,
        queued=queued,
        oldest_s=round(age_s, 3),
        delivered=tally.get("delivered", 0),
        refused=tally.get(REFUSED, 0),
        dead_letters=dead_letters,
        retries=tally.get("retries", 0),
        full=queued + failed >= MAX_COMMANDS
        or (running and is_given_up(reserve_of(path)) and room_inside < RESERVE_BYTES),
        trouble=trouble,
    )


def read_failed(path: Path) -> list[FailedCommand]:
    """Return the refused commands and dead letters of a spool, in order of arrival.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    with _reading(existing(path)) as rows:
        return list(starmap(FailedCommand, rows(SELECT_FAILED)))


@contextmanager
def _reading(path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    with closing(connect(path, KIND)) as database, named_errors(path):
        yield lambda sql, *parameters: database.execute(sql, parameters).fetchall()
