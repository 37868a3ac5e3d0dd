"""The journal: every command of every project, in the order in which the accounts received it."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import islice
from operator import itemgetter
from struct import Struct
from typing import Any, Final

import msgspec

from cpdaemon.commands import KINDS
from cpsim.protocol.slots import shown

log = logging.getLogger(__name__)

Call = tuple[str, Mapping[str, object]]
Refusals = Sequence[tuple[int, str]]
"""Positions of refused commands in a batch, and the reasons."""

Entry = tuple[int, str, Mapping[str, object], str | None]
"""Time in microseconds, kind, arguments, and the reason of a refusal or None."""

RefusedCommand = tuple[int, str, str, str, str]
"""Time in microseconds, project, kind, slot id, and the reason."""

RECORD: Final = Struct("qqq")
SEGMENT_BYTES: Final = 2**20
"""Text of a segment before the next begins: a larger one may be moved in memory, while all wait."""
DEFAULT_LIMIT: Final = 1_000_000
"""Commands kept of each project. One takes some 50 bytes of memory in a bulk and 75 alone, measured with a slot id and
two arguments: up to 75 megabytes for a project."""
MALFORMED_KEPT: Final = 1_000
"""Malformed frames kept of a project; further ones are only counted."""
REFUSALS_KEPT: Final = 20
"""The latest refusals kept of a project, even if the journal is full."""


_decode = msgspec.json.Decoder(list[tuple[str, dict[str, Any]]]).decode


class JournalFull(Exception):
    """The journal was too small for the commands received, so it cannot be read."""


class _Segment:
    """Batches of commands, as bytes: an object for each command would cost more than applying it.

    They may be read while a batch is added, up to the end of `records`, which grows last.
    """

    def __init__(self) -> None:
        self.text = bytearray()
        """The commands of each batch as JSON, a list or a bulk document: objects take four times the memory."""
        self.records = bytearray()
        """For each batch, the number of its first command, its time in microseconds, and the end of its text."""
        self.refusals: dict[int, Refusals] = {}
        """The refusals of each batch that has some."""

    def __len__(self) -> int:
        return len(self.records) // RECORD.size

    def record(self, index: int) -> tuple[int, int, int]:
        """The record of a batch."""
        place, at_us, end = RECORD.unpack_from(self.records, index * RECORD.size)
        return place, at_us, end

    def place(self, index: int) -> int:
        """The number of a batch's first command."""
        return self.record(index)[0]

    def find(self, text: bytes, count: int) -> Iterator[int]:
        """Which of the first `count` batches contain a text."""
        ends = memoryview(bytes(self.records)).cast("q")[2::3]
        index, found = -1, self.text.find(text)
        while found >= 0 and (index := bisect_right(ends, found, index + 1)) < count:
            yield index
            found = self.text.find(text, ends[index])

    def entries(self, index: int) -> Iterator[Entry]:
        """The commands of a batch."""
        _, _, begin = self.record(index - 1) if index else (0, 0, 0)
        _, at_us, end = self.record(index)
        document = self.text[begin:end]
        calls = _decode(document) if document.startswith(b"[") else _of_bulk(document)
        refused = dict(self.refusals.get(index, ()))
        for position, (kind, arguments) in enumerate(calls):
            yield at_us, kind, arguments, refused.get(position)


class CommandJournal:
    """Keeps received commands, up to a limit; it never drops one command for another.

    When a project's journal is full, further commands are applied and not kept; from then on, the journal is incomplete
    and cannot be read. Forgetting it makes it readable again.

    Args:
        limit: commands kept of each project.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._segments: defaultdict[str, list[_Segment]] = defaultdict(lambda: [_Segment()])
        self._room: defaultdict[str, int] = defaultdict(lambda: limit)
        self._refused: defaultdict[str, deque[RefusedCommand]] = defaultdict(lambda: deque(maxlen=REFUSALS_KEPT))
        self.overflows: dict[str, int] = {}
        """Commands received of each project whose journal is full."""
        self._malformed: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self._malformed_count: defaultdict[str, int] = defaultdict(int)
        self.turned_away: deque[tuple[int, str]] = deque(maxlen=REFUSALS_KEPT)
        """The latest requests that were refused before anything was made of them, and their times in microseconds."""
        self._of_commands: Sequence[dict[str, Any]] = (self._refused, self._segments, self._room, self.overflows)
        self._kept = (*self._of_commands, self._malformed, self._malformed_count)

    def add_malformed(self, project_id: str, at_us: int, frame: bytes) -> None:
        """Count a malformed frame of a project, and keep it if it is among the first."""
        self._malformed_count[project_id] += 1
        if len(self._malformed[project_id]) < MALFORMED_KEPT:
            self._malformed[project_id].append((at_us, frame))

    def malformed(self, project_id: str) -> tuple[int, Sequence[tuple[int, bytes]]]:
        """The number of a project's malformed frames, and the first of them with their times."""
        return self._malformed_count.get(project_id, 0), tuple(self._malformed.get(project_id, ()))

    def has_room(self, project_id: str, count: int) -> bool:
        """Whether `count` more commands of a project would be kept."""
        return count <= self._room[project_id]

    def overflow(self, project_id: str, received: int) -> None:
        """Mark a project's journal as full, after so many received commands."""
        self.overflows[project_id] = received
        self._room[project_id] = -1
        self._segments.pop(project_id, None)

    def add(self, project_id: str, at_us: int, calls: Sequence[Any], written: bytes, refusals: Refusals) -> None:
        """Keep a batch of a project's commands, as JSON; commands without room are only counted.

        Args:
            project_id: the project.
            at_us: the time of the batch, in microseconds.
            calls: the commands; accepted ones may be undecoded JSON.
            written: the commands as JSON: a list, or a bulk document. Ignored if there is no room.
            refusals: the refused commands.
        """
        count = len(calls)
        if refusals:
            self._refused[project_id].extend(
                (at_us, project_id, calls[position][0], _slot_of(calls[position]), why)
                for position, why in refusals[-REFUSALS_KEPT:]
            )
        if not count:
            return
        room = self._room[project_id]
        if count <= room:
            self._room[project_id] = room - count
            segments = self._segments[project_id]
            segment = segments[-1]
            if refusals:
                segment.refusals[len(segment)] = refusals
            segment.text += written
            segment.records += RECORD.pack(self._limit - room, at_us, len(segment.text))
            if len(segment.text) >= SEGMENT_BYTES:
                segments.append(_Segment())
            return
        if project_id not in self.overflows:
            log.warning(
                "cpsim: warning: the journal of project %r is full with %s commands, and can no longer be read: "
                "set a higher journal_limit in a --config FILE",
                project_id,
                f"{self._limit:,}",
            )
        self.overflow(project_id, self.overflows.get(project_id, self._limit - room) + count)

    def latest_refusals(self, most: int) -> list[RefusedCommand]:
        """The latest refusals of all projects, the latest first."""
        latest = (refused for kept in list(self._refused.values()) for refused in reversed(list(kept)))
        return nlargest(most, latest, key=itemgetter(0))

    def about(self, project_id: str, slot_id: str) -> Iterator[Entry]:
        """The commands received for a slot until now, and perhaps some for other slots; fast in a long journal.

        Raises:
            JournalFull: more was received than is kept.
        """
        is_number = slot_id.removeprefix("-").isdecimal()  # then it may have been sent as a number
        text = slot_id.encode() if is_number else msgspec.json.encode(slot_id)
        return (
            entry
            for segment, count in self._received_segments(project_id)
            for index in segment.find(text, count)
            for entry in segment.entries(index)
        )

    def read(self, project_id: str, start: int = 0) -> Iterator[Entry]:
        """The commands received for a project, from the `start`-th on.

        Raises:
            JournalFull: more was received than is kept.
        """
        segments = self._received_segments(project_id)
        if not segments:
            return iter(())
        first = bisect_right(segments, start, key=lambda segment: segment[0].place(0)) - 1
        segment, count = segments[first]
        index = bisect_right(range(count), start, key=segment.place) - 1
        parts = [(segment, range(index, count)), *((segment, range(count)) for segment, count in segments[first + 1 :])]
        entries = (entry for segment, indices in parts for index in indices for entry in segment.entries(index))
        return islice(entries, start - segment.place(index), None)

    def _received_segments(self, project_id: str) -> list[tuple[_Segment, int]]:
        """The segments of a project now, with the number of batches in each."""
        received = self.overflows.get(project_id)
        if received is not None:
            raise JournalFull(
                f"the journal of project {project_id!r} is full: it had no room for all {received:,} commands "
                f"received; set a journal_limit above {self._limit:,} in a --config FILE, and reset the project if the "
                "journal is still full then"
            )
        segments = [(segment, len(segment)) for segment in self._segments.get(project_id, ())]
        return [(segment, count) for segment, count in segments if count]

    def forget(self, project_id: str) -> None:
        """Forget one project."""
        for kept in self._kept:
            kept.pop(project_id, None)

    def forget_all(self) -> None:
        """Forget every project."""
        self.turned_away.clear()
        for kept in self._kept:
            kept.clear()

    def forget_received(self) -> None:
        """Forget the commands of every project, and keep its malformed frames."""
        for kept in self._of_commands:
            kept.clear()


def _slot_of(call: Call) -> str:
    """The slot that a command names, or a description of another value."""
    slot = call[1].get("slot", "")
    return slot if type(slot) is str else shown(slot)


def _of_bulk(document: bytearray) -> list[Call]:
    classes = msgspec.json.decode(document)
    return [(kind, arguments) for kind in KINDS for arguments in classes.get(kind, ())]
