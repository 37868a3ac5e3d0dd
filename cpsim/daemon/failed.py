"""Commands of a spool that were not delivered: refused ones, dead letters, and their table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from cpsim.store.schema import checksum, sum_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.store.log import Statement

REFUSED: Final = "refused"
DEAD_LETTER: Final = "dead letter"
STORED: Final = {REFUSED: "refused", DEAD_LETTER: "set aside"}
"""Values of the column `failed.why`, unchanged since version 0.1."""
SELECT_FAILED: Final = f"""
SELECT position, at_us, CAST(why AS BLOB), CAST(command AS BLOB), CAST(error AS BLOB), {sum_of("error")} FROM failed
ORDER BY position
"""  # noqa: S608 - of constants
CHECKED: Final = {"log": ["record"], "failed": ["why", "command", "error"]}
"""The texts of which each table's checksums are."""
UNNAMED: Final = "(some of "
"""Beginning of the text that stands for refused commands which the server did not name."""
DAMAGED: Final = "(damaged) "
"""Beginning of the text of a command that is not what was received, so that it is never one itself."""


class FailedCommand(NamedTuple):
    """A command that was not delivered: `refused` by the server, or a `dead letter`; the error says why.

    A dead letter is a command of which it is unknown whether it was applied, or a malformed record.
    """

    position: int
    at_us: int
    why: str
    command: str
    error: str


def counts_of(query: Callable[[str], list[tuple[bytes, int]]]) -> Counter[str]:
    """Return the number of failed commands by reason, from a query over a spool."""
    rows = query("SELECT CAST(why AS BLOB), count(*) FROM failed GROUP BY why")
    return Counter({_reason(why.decode(errors="replace")): count for why, count in rows})


def failed_command(row: tuple[int, int, bytes, bytes, bytes, bytes | None]) -> FailedCommand:
    """Return a failed command of `SELECT_FAILED`; one that is damaged says so in its command and its error."""
    position, at_us, why, command, error, written = row
    told, text, reason = (field.decode(errors="replace") for field in (why, command, error))
    if written is not None and checksum(position, b"\0".join((why, command, error))) != written:
        text, reason = DAMAGED + text, f"this entry of the spool is damaged; it says: {reason}"
    return FailedCommand(position, at_us, _reason(told), text, reason)


def _reason(stored: str) -> str:
    """Return the reason that a row states; the text itself if it is damaged."""
    return next((name for name, text in STORED.items() if text == stored), stored)


def insert_failed(row: FailedCommand) -> Statement:
    """Return the SQL that adds a failed command."""
    texts = STORED[row.why], row.command, row.error
    sum_ = checksum(row.position, "\0".join(texts))
    return ("INSERT INTO failed VALUES (?, ?, ?, ?, ?, ?)", (row.position, row.at_us, *texts, sum_))
