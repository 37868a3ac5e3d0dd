"""What was received: every command of every project, in the order in which it came to the accounts."""

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
from cpsim.server.ledger import shown

log = logging.getLogger(__name__)

Call = tuple[str, Mapping[str, object]]
Refusals = Sequence[tuple[int, str]]
"""Positions in a batch of commands that were refused, and why."""

Entry = tuple[int, str, Mapping[str, object], str | None]
"""Time in microseconds, kind, arguments, and why it was refused, if it was."""

Refused = tuple[int, str, str, str, str]
"""Time in microseconds, project, kind, slot id, and why."""

RECORD: Final = Struct("qqq")
SEGMENT_BYTES: Final = 2**20
"""Of text, after which the next segment begins: one that grows without end may have to be moved, while all wait."""
DEFAULT_LIMIT: Final = 1_000_000
"""Commands that are kept of each project. One takes some 50 bytes of memory where they come in bulk and 75 where they
come alone, measured with a slot id and two arguments: up to 75 megabytes for a project."""
MALFORMED_KEPT: Final = 1_000
"""Frames that are kept of those that a project's daemons could not take; the others are only counted."""
REFUSALS_KEPT: Final = 20
"""The latest refusals of a project that are at hand, whether or not the journal is full."""


_decode = msgspec.json.Decoder(list[tuple[str, dict[str, Any]]]).decode


class JournalFull(Exception):
    """More was received than the journal has room for, so it cannot say what was received."""


class _Segment:
    """Batches of commands, as bytes: an object for each would cost more than applying it does.

    They may be read while one is added, as far as `records` goes, which grows last.
    """

    def __init__(self) -> None:
        self.text = bytearray()
        """The commands of each as JSON, a list or a bulk document: as objects they would take four times the memory."""
        self.records = bytearray()
        """Of each the place of its first command, its time in microseconds, and where its text ends."""
        self.refusals: dict[int, Refusals] = {}
        """Of those of which some were refused."""

    def __len__(self) -> int:
        return len(self.records) // RECORD.size

    def record(self, index: int) -> tuple[int, int, int]:
        """The record of one."""
        place, at_us, end = RECORD.unpack_from(self.records, index * RECORD.size)
        return place, at_us, end

    def place(self, index: int) -> int:
        """The place of the first command of one."""
        return self.record(index)[0]

    def find(self, text: bytes, come: int) -> Iterator[int]:
        """Which of the first `come` have a text in them."""
        ends = memoryview(bytes(self.records)).cast("q")[2::3]
        index, found = -1, self.text.find(text)
        while found >= 0 and (index := bisect_right(ends, found, index + 1)) < come:
            yield index
            found = self.text.find(text, ends[index])

    def entries(self, index: int) -> Iterator[Entry]:
        """The commands of one."""
        _, _, begin = self.record(index - 1) if index else (0, 0, 0)
        _, at_us, end = self.record(index)
        document = self.text[begin:end]
        calls = _decode(document) if document.startswith(b"[") else _of_bulk(document)
        refused = dict(self.refusals.get(index, ()))
        for position, (kind, arguments) in enumerate(calls):
            yield at_us, kind, arguments, refused.get(position)


class CommandJournal:
    """Keeps what is received, up to a limit; it never gives up one command for another.

    What comes when a project's journal is full is applied but not kept, and from then on that journal cannot be
    read: it would not tell the whole. Forgetting it makes it readable again.

    Args:
        limit: how many commands of each project are kept.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._segments: defaultdict[str, list[_Segment]] = defaultdict(lambda: [_Segment()])
        self._room: defaultdict[str, int] = defaultdict(lambda: limit)
        self._refused: defaultdict[str, deque[Refused]] = defaultdict(lambda: deque(maxlen=REFUSALS_KEPT))
        self.overflows: dict[str, int] = {}
        """How many commands of a project were received, where that was more than is kept."""
        self._malformed: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self._malformed_count: defaultdict[str, int] = defaultdict(int)
        self._of_commands: Sequence[dict[str, Any]] = (self._refused, self._segments, self._room, self.overflows)
        self._kept = (*self._of_commands, self._malformed, self._malformed_count)

    def add_malformed(self, project_id: str, at_us: int, frame: bytes) -> None:
        """Count a frame that a project's daemon could not take, and keep it if it is among the first."""
        self._malformed_count[project_id] += 1
        if len(self._malformed[project_id]) < MALFORMED_KEPT:
            self._malformed[project_id].append((at_us, frame))

    def malformed(self, project_id: str) -> tuple[int, Sequence[tuple[int, bytes]]]:
        """How many frames a project's daemons could not take, and the first of them with their times."""
        return self._malformed_count.get(project_id, 0), tuple(self._malformed.get(project_id, ()))

    def has_room(self, project_id: str, count: int) -> bool:
        """Whether so many more commands of a project would be kept."""
        return count <= self._room[project_id]

    def overflow(self, project_id: str, received: int) -> None:
        """Take it that so many commands of a project were received, of which none can be read any more."""
        self.overflows[project_id] = received
        self._room[project_id] = -1
        self._segments.pop(project_id, None)

    def add(self, project_id: str, at_us: int, calls: Sequence[Any], written: bytes, refusals: Refusals) -> None:
        """Keep a batch of a project's commands, as JSON; what there is no room for is only counted.

        Args:
            project_id: whose they are.
            at_us: when they came, in microseconds.
            calls: the commands; those that were not refused may still be JSON.
            written: the commands as JSON: a list, or a bulk document. Need not be given where there is no room.
            refusals: what was refused of them.
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
                "cpsim: warning: the journal of project %r is full with %s commands, and cannot be read any more: "
                "journal_limit in a --config FILE may be higher",
                project_id,
                f"{self._limit:,}",
            )
        self.overflow(project_id, self.overflows.get(project_id, self._limit - room) + count)

    def latest_refusals(self, most: int) -> list[Refused]:
        """The latest refusals of all projects, the latest first."""
        latest = (refused for kept in list(self._refused.values()) for refused in reversed(list(kept)))
        return nlargest(most, latest, key=itemgetter(0))

    def about(self, project_id: str, slot_id: str) -> Iterator[Entry]:
        """What was received for a slot, and perhaps some of what was for others; soon found in a long journal.

        What is found is what has come by now, whenever it is read.

        Raises:
            JournalFull: more was received than is kept.
        """
        is_number = slot_id.removeprefix("-").isdecimal()  # then it may have come as one
        text = slot_id.encode() if is_number else msgspec.json.encode(slot_id)
        return (
            entry
            for segment, count in self._come(project_id)
            for index in segment.find(text, count)
            for entry in segment.entries(index)
        )

    def read(self, project_id: str, start: int = 0) -> Iterator[Entry]:
        """What was received for a project, from the `start`-th command on.

        Raises:
            JournalFull: that was more than is kept.
        """
        come = self._come(project_id)
        if not come:
            return iter(())
        first = bisect_right(come, start, key=lambda segment: segment[0].place(0)) - 1
        segment, count = come[first]
        index = bisect_right(range(count), start, key=segment.place) - 1
        parts = [(segment, range(index, count)), *((segment, range(count)) for segment, count in come[first + 1 :])]
        entries = (entry for segment, indices in parts for index in indices for entry in segment.entries(index))
        return islice(entries, start - segment.place(index), None)

    def _come(self, project_id: str) -> list[tuple[_Segment, int]]:
        """The segments that a project has by now, with how many batches each has."""
        received = self.overflows.get(project_id)
        if received is not None:
            raise JournalFull(
                f"the journal of project {project_id!r} is full: it had no room for all {received:,} "
                f"commands that came; give it a journal_limit above {self._limit:,} in a --config FILE, and reset the "
                "project if what came is not there then"
            )
        come = [(segment, len(segment)) for segment in self._segments.get(project_id, ())]
        return [(segment, count) for segment, count in come if count]

    def forget(self, project_id: str) -> None:
        """Begin anew with one project."""
        for kept in self._kept:
            kept.pop(project_id, None)

    def forget_all(self) -> None:
        """Begin anew with every project."""
        for kept in self._kept:
            kept.clear()

    def forget_received(self) -> None:
        """Likewise, but for the frames that could not be taken."""
        for kept in self._of_commands:
            kept.clear()


def _slot_of(call: Call) -> str:
    """The slot that a command names, whatever it has put there."""
    slot = call[1].get("slot", "")
    return slot if type(slot) is str else shown(slot)


def _of_bulk(document: bytearray) -> list[Call]:
    classes = msgspec.json.decode(document)
    return [(kind, arguments) for kind in KINDS for arguments in classes.get(kind, ())]
