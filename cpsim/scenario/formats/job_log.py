"""The file of a job log: its lines, what of them is skipped, and what was odd."""

from __future__ import annotations

import gzip
import re
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, cast

from cpsim.config.zones import find_zone
from cpsim.errors import UsageError
from cpsim.scenario.formats.times import duration_us, time_us
from cpsim.scenario.values import TEXT_PATTERN, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cpsim.scenario.schema import Log

GZIP_MAGIC: Final = b"\x1f\x8b"
MOST_BYTES: Final = 2**29
"""Of a log that is decompressed: some 7 million jobs; a small file can hold far more of nothing."""
HEAD_BYTES: Final = 65_536
TEXT_BYTES: Final = 200
"""Of the longest id of a job, a user or a machine, so that a command about it fits into a frame."""
_TEXT: Final = re.compile(TEXT_PATTERN)


class JobLog:
    """A job log that is read.

    Args:
        path: the file; compressed with gzip, if it begins so.
        log: how it is read.
        needs_times: whether records need times.

    Attributes:
        notes: sentences on what was odd.

    Raises:
        ScenarioError: there is no such time zone.
    """

    def __init__(self, path: Path, log: Log, *, needs_times: bool = True) -> None:
        self.path = path
        self.log = log
        self.needs_times = needs_times
        self.notes: list[str] = []
        self._skipped = 0
        self._first = ""
        try:
            self.zone = find_zone(log.timezone)
        except UsageError as error:
            raise ScenarioError(f"{path}: {error}") from error

    def note(self, sentence: str) -> None:
        """Tell what was odd."""
        self.notes.append(sentence)

    def skip(self, place: str, reason: object) -> None:
        """Skip a bad row, if so many may be.

        Raises:
            ScenarioError: too many were.
        """
        message = f"{self.path}, {place}: {reason}"
        if self._skipped >= self.log.skip_bad:
            more = f"; {self._skipped:,} bad rows before it were skipped, and no more may be" if self._skipped else ""
            raise ScenarioError(message + more)
        self._skipped += 1
        self._first = self._first or message

    def ended(self) -> None:
        """Note how many rows were skipped."""
        if self._skipped:
            self.note(f"{self._skipped:,} bad rows were skipped; the first: {self._first}")

    def head(self) -> bytes:
        """The first bytes, decompressed."""
        with self._opened() as file:
            return file.read(HEAD_BYTES)

    def content(self) -> bytes:
        """All of it, decompressed."""
        with self._opened() as file:
            content = file.read(MOST_BYTES + 1 if isinstance(file, gzip.GzipFile) else -1)
            self._check_size(file, len(content))
            return content

    def lines(self) -> Iterator[tuple[int, str]]:
        """The numbers of the lines and their texts, without ends of lines or a byte-order mark."""
        size = 0
        with self._opened() as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), 1):
                size += len(line)
                self._check_size(file, size)
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
                yield number, text.rstrip("\r\n")

    def _check_size(self, file: IO[bytes], size: int) -> None:
        if size > MOST_BYTES and isinstance(file, gzip.GzipFile):
            raise ScenarioError(
                f"{self.path}: over {MOST_BYTES // 2**20} MiB when it is decompressed: decompress it, if it is to be "
                "trusted"
            )

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with self.path.open("rb") as plain:
            packed = plain.read(2) == GZIP_MAGIC or self.path.suffix.lower() == ".gz"
            plain.seek(0)
            if not packed:
                yield plain
                return
            try:
                with gzip.open(plain) as file:
                    yield cast("IO[bytes]", file)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ScenarioError(f"{self.path}: damaged or cut short, it cannot be decompressed: {error}") from error

    def time_us(self, column: str, value: object, unit: str = "s") -> int | None:
        """A time of a row, in microseconds since 1970; None if it is missing. Raises ValueError, naming the column."""
        try:
            return time_us(value, self.zone, unit)
        except ValueError as error:
            raise ValueError(f"{column} = {_shown(value)}: {error}") from None

    def duration_us(self, column: str, value: object, unit: str = "s") -> int | None:
        """A duration of a row, in microseconds; None if it is missing. Raises ValueError, naming the column."""
        try:
            return duration_us(value, unit)
        except ValueError as error:
            raise ValueError(f"{column} = {_shown(value)}: {error}") from None

    def text(self, column: str, value: object) -> str:
        """An id of a row; "" if it is missing. Raises ValueError, naming the column, if no command can have it."""
        found = "" if value is None else str(value).strip()
        if found and (not _TEXT.fullmatch(found) or len(found.encode()) > TEXT_BYTES):
            raise ValueError(
                f"{column} = {_shown(value)}: expected a text without , = or control characters, of at most "
                f"{TEXT_BYTES} bytes"
            )
        return found


def wrong(column: str, value: object, expected: str) -> ValueError:
    """What is wrong with a value of a row."""
    return ValueError(f"{column} = {_shown(value)}: expected {expected}")


def _shown(value: object) -> str:
    text = "nothing" if value is None or value == "" else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
