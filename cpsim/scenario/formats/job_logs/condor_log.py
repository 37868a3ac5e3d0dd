"""HTCondor's log of job events: a line that begins with the event's number, more lines, and `...` at its end.

A job begins where it was submitted (000), runs from where it executes (001), and ends where it was terminated (005) or
aborted (009). Where it was evicted (004), its shadow failed (007) or was not reached again (024), it has run in part.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.job_log import wrong
from cpsim.scenario.formats.jobs import JobRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cpsim.scenario.formats.job_log import JobLog

HEAD: Final = re.compile(
    r"(\d{3}) \((\d+)\.(-?\d+)\.(-?\d+)\) (?:(\d\d)/(\d\d)|(\d{4}-\d\d-\d\d))[ T](\S+) ?(.*)", re.ASCII
)
"""The first line of an event; older versions print the month and the day, and no year."""
SUBMITTED, EXECUTING, EVICTED, TERMINATED, SHADOW_FAILED, ABORTED, HELD, NOT_RECONNECTED = 0, 1, 4, 5, 7, 9, 12, 24
PARTS: Final = {EVICTED, SHADOW_FAILED, HELD, NOT_RECONNECTED}
FIRST_YEAR: Final = 2000
"""The year of a log that has none; a leap year, so that each day is one."""
EXPECTED: Final = "an event, such as 005 (12.000.000) 2026-03-01 12:00:00 Job terminated."
HALF_A_YEAR: Final = 6


class Event(NamedTuple):
    """One event: its number, job, time as it is printed, and text."""

    number: int
    job: str
    when: str
    text: str


class _Alive:
    """What is known of a job that has not ended."""

    def __init__(self, submit_us: int | None) -> None:
        self.submit_us = submit_us
        self.start_us: int | None = None
        self.node = ""


class CondorLogFormat(JobFormat):
    what = "HTCondor's log of job events"

    def __init__(self, file: JobLog) -> None:
        super().__init__(file)
        self._alive: dict[str, _Alive] = {}
        self._year, self._month = FIRST_YEAR, 0
        self._unsubmitted = 0

    @staticmethod
    def recognises(head: bytes, /) -> bool:
        return HEAD.match(head[:200].decode("utf-8-sig", "replace")) is not None

    def rows(self) -> Iterator[tuple[str, Event]]:
        """See `JobFormat`: a row is an event."""
        head: re.Match[str] | None = None
        at, lines = 0, [""]
        for number, line in self.file.lines():
            if head is None and line.strip() and line.strip() != "...":
                head, at, lines = HEAD.fullmatch(line.rstrip()), number, [line]
                if head is None:
                    self.file.skip(f"line {number}", wrong("the line", line, EXPECTED))
            elif line.strip() == "..." and head is not None:
                yield f"line {at}", self._event(head, lines)
                head = None
            elif head is not None:
                lines.append(line)
        if head is not None:
            self.file.note(f"the event in line {at}, the last one, has no end: it was left out")
        if self._year > FIRST_YEAR or self._month:
            self.file.note(f"its times have no year: the first is taken as {FIRST_YEAR}")
        if self._unsubmitted:
            self.file.note(f"{self._unsubmitted:,} jobs have no event of their submission: they begin with their first")

    def _event(self, head: re.Match[str], lines: list[str]) -> Event:
        number, cluster, proc, _, month, day, date, clock, _ = head.groups()
        if month is not None:
            if int(month) < self._month - HALF_A_YEAR:
                self._year += 1
            self._month = int(month)
            date = f"{self._year}-{month}-{day}"
        return Event(int(number), f"{int(cluster)}.{int(proc)}", f"{date}T{clock}", "\n".join(lines))

    def record(self, row: Event, /) -> JobRecord | None:
        at_us = self.file.time_us("the time", row.when)
        if row.number == SUBMITTED:
            self._alive[row.job] = _Alive(at_us)
            return None
        job = self._alive.get(row.job)
        if job is None:
            if row.number not in {EXECUTING, TERMINATED, ABORTED, *PARTS}:
                return None
            self._unsubmitted += 1
            job = self._alive[row.job] = _Alive(at_us)
        if row.number == EXECUTING:
            job.start_us, job.node = at_us, self.file.text("the host", _host(row.text))
            return None
        if row.number in PARTS:
            started, job.start_us = job.start_us, None
            return None if started is None else JobRecord(row.job, "part", job.submit_us, started, at_us, node=job.node)
        if row.number not in {TERMINATED, ABORTED}:
            return None
        del self._alive[row.job]
        how = _ended(row.text) if row.number == TERMINATED else "cancelled"
        return JobRecord(row.job, how, job.submit_us, job.start_us, at_us, node=job.node)

    def rest(self) -> Iterable[JobRecord]:
        for name, job in self._alive.items():
            yield JobRecord(name, "unfinished", job.submit_us)


def _ended(text: str) -> str:
    """How a job was terminated."""
    value = re.search(r"return value (-?\d+)", text)
    if value is not None:
        return "completed" if int(value[1]) == 0 else "failed"
    if re.search(r"\(signal \d+\)|Abnormal termination", text):
        return "failed"
    return "unknown"


def _host(text: str) -> str:
    """Where a job executes: the slot, or else the host or its address."""
    for form in (r"SlotName: *(\S+)", r"[?&]alias=([^&>\s]+)", r"on host: <?([^>?\s]+)"):
        if found := re.search(form, text):
            return found[1]
    return ""
