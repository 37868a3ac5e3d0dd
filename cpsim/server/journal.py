"""What was received: every command of every project, in the order in which it came to the accounts."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

Call = tuple[str, Mapping[str, object]]
Refusals = Sequence[tuple[int, str]]
"""Positions in a batch of commands that were refused, and why."""

Batch = tuple[int, int, Sequence[Call], Refusals]
"""Place of its first command, time in microseconds, commands, refusals."""

Entry = tuple[int, str, Mapping[str, object], str | None]
"""Time in microseconds, kind, arguments, and why it was refused, if it was."""

DEFAULT_LIMIT: Final = 1_000_000
"""Commands that are kept of each project. One takes 300 bytes of memory where they come in batches and 500 where they
come alone, measured with a slot id and two arguments: up to half a gigabyte for a project."""
MALFORMED_KEPT: Final = 1_000
"""Frames that are kept of those that a project's daemons could not take; the others are only counted."""


class JournalFull(Exception):  # noqa: N818 - an answer, not a fault
    """More was received than the journal has room for, so it cannot say what was received."""


class Journal:
    """Keeps what is received, up to a limit; it never gives up one command for another.

    What comes when a project's journal is full is applied but not kept, and from then on that journal cannot be
    read: it would not tell the whole. Forgetting it makes it readable again.

    Args:
        limit: how many commands of each project are kept.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._batches: defaultdict[str, list[Batch]] = defaultdict(list)
        self._received: defaultdict[str, int] = defaultdict(int)
        self._malformed: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self._malformed_count: defaultdict[str, int] = defaultdict(int)
        self._kept: Sequence[dict[str, Any]] = (
            self._batches,
            self._received,
            self._malformed,
            self._malformed_count,
        )

    def add_malformed(self, project_id: str, at_us: int, frame: bytes) -> None:
        """Count a frame that a project's daemon could not take, and keep it if it is among the first."""
        self._malformed_count[project_id] += 1
        if len(self._malformed[project_id]) < MALFORMED_KEPT:
            self._malformed[project_id].append((at_us, frame))

    def malformed(self, project_id: str) -> tuple[int, Sequence[tuple[int, bytes]]]:
        """How many frames a project's daemons could not take, and the first of them with their times."""
        return self._malformed_count.get(project_id, 0), tuple(self._malformed.get(project_id, ()))

    def add(self, project_id: str, at_us: int, calls: Sequence[Call], refusals: Refusals) -> None:
        """Keep a batch of a project's commands."""
        place = self._received[project_id]
        self._received[project_id] = end = place + len(calls)
        if end > self._limit:
            calls = calls[: max(0, self._limit - place)]
        if calls:
            self._batches[project_id].append((place, at_us, tuple(calls), refusals or ()))

    def read(self, project_id: str, start: int = 0) -> Iterator[Entry]:
        """What was received for a project, from the `start`-th command on.

        Raises:
            JournalFull: that was more than is kept.
        """
        received = self._received.get(project_id, 0)
        if received > self._limit:
            raise JournalFull(
                f"the journal of project {project_id!r} is full: {received:,} commands came, and it keeps "
                f"{self._limit:,}; reset the project to begin anew, or serve with a higher journal limit"
            )
        return _entries(self._batches.get(project_id, ()), start)

    def forget(self, project_id: str) -> None:
        """Begin anew with one project."""
        for kept in self._kept:
            kept.pop(project_id, None)

    def forget_all(self) -> None:
        """Begin anew with every project."""
        for kept in self._kept:
            kept.clear()


def _entries(batches: Sequence[Batch], start: int) -> Iterator[Entry]:
    first = max(0, bisect_right(batches, start, key=itemgetter(0)) - 1)
    for index in range(first, len(batches)):
        place, at_us, calls, refusals = batches[index]
        refused = dict(refusals)
        for position in range(max(0, start - place), len(calls)):
            yield at_us, *calls[position], refused.get(position)
