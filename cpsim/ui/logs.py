"""Lines on standard error and in log files: as text, for systemd's journal, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Final

from cpsim.ui.printable import printable

FORMATS: Final = ("text", "json")
LOG: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""A record of a logger, as text; the journal has times and levels of its own."""
JOURNAL: Final = "%(name)s: %(message)s"
PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels, and what the journal calls them, from sd-daemon(3); below, it is 7."""


class _Text(logging.Formatter):
    """Escapes control characters in texts of clients and servers."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable(super().format(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - its name there
        """Return the local time of a record, with its offset."""
        del datefmt
        return datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(" ", "milliseconds")


class _Message(_Text):
    """Lines of the command line itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return f"cpsim: {'warning: ' if record.levelno == logging.WARNING else ''}{super().format(record)}"


class _Journal(_Text):
    """Has each line begin with its priority, as the journal reads it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        priority = next((number for level, number in PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class _Json(logging.Formatter):
    """Makes a JSON document of a record, in one line of ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the document: time, level, logger, message, and the traceback of an exception."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


class Lines:
    """The lines of this process.

    Attributes:
        format: one of `FORMATS`. Text on standard error is for the journal if that is there.
    """

    def __init__(self) -> None:
        self.format = FORMATS[0]

    def formatter(self, *, in_file: bool = False) -> logging.Formatter:
        """Return the format of a log's records, in a file or on standard error."""
        return self._formatter(_Text(LOG), in_file=in_file)

    def message_formatter(self) -> logging.Formatter:
        """Return the format of the command line's own messages."""
        return self._formatter(_Message())

    def error(self, message: str) -> None:
        """Write an error of the command line to standard error."""
        self.report(logging.ERROR, message)

    def warning(self, message: str) -> None:
        """Write a warning of the command line to standard error."""
        self.report(logging.WARNING, message)

    def report(self, level: int, message: str) -> None:
        """Write a message of the command line itself to standard error."""
        name = logging.getLevelName(level)
        record = logging.makeLogRecord({"name": "cpsim", "levelno": level, "levelname": name, "msg": message})
        print(self.message_formatter().format(record), file=sys.stderr, flush=True)

    def _formatter(self, text: logging.Formatter, *, in_file: bool = False) -> logging.Formatter:
        if self.format == "json":
            return _Json()
        return _Journal(JOURNAL) if not in_file and _is_journal() else text


def _is_journal() -> bool:
    """Return whether systemd has connected standard error to its journal."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


LINES: Final = Lines()
