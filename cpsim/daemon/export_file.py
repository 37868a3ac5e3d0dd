"""The file in which commands move from one daemon's spool to another's: JSON lines, a header first; pure.

Each line is an object that ends with `crc32`: the CRC-32 of all bytes of the file before `, "crc32"`, in hexadecimal.
So a line that is changed, missing, doubled or in another place is found at that line, and the header says how many
lines follow. Failed commands come first, then those of a batch that is under way, then those that are queued.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from cpsim.config import tables
from cpsim.daemon.failed import DEAD_LETTER, REFUSED
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT: Final = "cpsim spool"
VERSION: Final = 1
QUEUED: Final = "queued"
UNDER_WAY: Final = "under way"
STATES: Final = (REFUSED, DEAD_LETTER, UNDER_WAY, QUEUED)

Id = Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="32 hexadecimal digits")]
Text = Annotated[str, Meta(pattern=r"^[^\0]+\Z", description="text without NUL")]
Count = Annotated[int, Meta(ge=0, description="a whole number from 0 up")]
State = Annotated[str, Meta(pattern=f"^({'|'.join(STATES)})$", description=" or ".join(STATES))]
Moment = Annotated[int, Meta(ge=0, le=2**63 - 1, description="microseconds since 1970")]


class UnderWay(Struct, frozen=True, forbid_unknown_fields=True):
    """The batch that was sent last and has no known outcome: its id, and whether the server knew ids."""

    batch: Text
    named: bool


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The first line.

    Attributes:
        id: the export's own.
        project: project of the commands; None if no daemon has used the spool.
        at_us: the time of the export, in microseconds since 1970.
        contains: ids of the exports that were imported into the spool before.
        lines: number of lines that follow.
        under_way: the batch under way, if there is one.
    """

    format: str
    version: Annotated[int, Meta(ge=1, description="a whole number from 1 up")]
    id: Id
    project: str | None
    at_us: Moment
    contains: list[Id]
    lines: Count
    under_way: UnderWay | None


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """A command: its state, the time at which it was received or failed, its text, and why it failed."""

    state: State
    at_us: Moment
    command: Text
    error: str = ""


@dataclass(frozen=True, slots=True)
class Export:
    """What a file holds."""

    header: Header
    entries: list[Entry]

    @property
    def failed(self) -> list[Entry]:
        """The refused commands and dead letters."""
        return self._of(REFUSED, DEAD_LETTER)

    @property
    def under_way(self) -> list[Entry]:
        """The commands of the batch under way."""
        return self._of(UNDER_WAY)

    @property
    def queued(self) -> list[Entry]:
        """The commands that were not sent."""
        return self._of(QUEUED)

    @property
    def counts(self) -> str:
        """The numbers of its commands, as a phrase."""
        waiting = len(self.under_way) + len(self.queued)
        return f"{waiting:,} queued commands, {len(self.failed):,} refused commands and dead letters"

    def _of(self, *states: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.state in states]


def lines_of(export: Export) -> Iterator[bytes]:
    """Yield the lines of a file."""
    sum_ = 0
    for each in (export.header, *export.entries):
        fields = {name: value for name, value in msgspec.to_builtins(each).items() if value or name != "error"}
        line = json.dumps(fields).encode()[:-1]
        whole = line + _ending(f"{zlib.crc32(line, sum_):08x}")
        sum_ = zlib.crc32(whole, sum_)
        yield whole


def read_export(lines: Iterable[bytes], name: str) -> Export:
    """Read a file, and check all of it.

    Args:
        lines: its lines, each with its newline.
        name: what messages call it.

    Raises:
        CpsimError: it is no such file, was written by a later version, or is damaged or not whole; the message names
            the line and the field.
    """
    header: Header | None = None
    entries: list[Entry] = []
    sum_, number = 0, 0
    for number, line in enumerate(lines, 1):
        try:
            fields = _decoded(line)
            if header is None:
                _check_format(fields)
            _check_sum(line, fields.pop("crc32", None), sum_)
            if header is None:
                header = tables.convert(fields, Header)
            else:
                entries.append(tables.convert(fields, Entry))
        except ValueError as error:
            raise CpsimError(f"{name}: line {number}: {error}") from error
        sum_ = zlib.crc32(line, sum_)
    if header is None:
        raise CpsimError(f"{name} is empty: expected what cpsim daemon --export writes")
    if number - 1 != header.lines:
        raise CpsimError(
            f"{name} is not whole: line 1: lines = {header.lines}, and {number - 1} lines follow: export again"
        )
    export = Export(header, entries)
    if bool(export.under_way) != (header.under_way is not None):
        raise CpsimError(f"{name}: line 1: under_way: expected a batch exactly if there are lines under way")
    return export


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON object, not {line[:40]!r}") from None
    return fields


def _check_format(fields: dict[str, Any]) -> None:
    """Check what a header says first; raises ValueError."""
    if fields.get("format") != FORMAT:
        raise ValueError(f"format = {json.dumps(fields.get('format'))}: expected {json.dumps(FORMAT)}")
    version = fields.get("version")
    if type(version) is int and version > VERSION:
        raise ValueError(f"version = {version}: written by a later version of cpsim; this one reads version {VERSION}")


def _check_sum(line: bytes, given: object, sum_: int) -> None:
    """Check the end of a line that comes after lines with this checksum; raises ValueError."""
    end = line.rfind(b', "crc32": ')
    computed = f"{zlib.crc32(line[:end], sum_):08x}"
    if line[end:] != _ending(computed):
        raise ValueError(
            f"crc32 = {json.dumps(given)}: expected {json.dumps(computed)} at the line's end: the line is not as "
            "it was exported, or is not where it was"
        )


def _ending(sum_: str) -> bytes:
    return f', "crc32": "{sum_}"}}\n'.encode()
