"""The Standard Workload Format.

Format: version 2.2, D. Feitelson et al., Parallel Workloads Archive,
https://www.cs.huji.ac.il/labs/parallel/workload/swf.html

| status | |
|---|---|
| 1, 3 (the last part) | completed |
| 0, 4 (the last part) | failed |
| 5 | cancelled |
| -1 | not known |
| 2 | a part, to be continued |

The parts of a job (status 2 to 4) are one job; as the format asks of workload studies, they are left out when the log
also has the job's summary line. A job number that occurs again is another job, and gets a number of its own. Missing
times count as 0. Fields that do not count may hold anything, and a line may have more fields than the format.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.jobs import CODES, NOWHERE, Chosen, Jobs, places, repeats, taken_at
from cpsim.scenario.models import distributions as models
from cpsim.scenario.values import ScenarioError
from cpsim.system.growing import Growing, changeable, made
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cpsim.scenario.formats.job_log import JobLog
    from cpsim.scenario.workload import Int32, Int64

Table = npt.NDArray[np.float64]
Rows = list[tuple[int, str]]
"""Lines with their numbers."""

PIECE_LINES: Final = 1 << 14
MAX_MACHINES: Final = 10_000_000
FIELDS: Final = (
    "job number", "submit time", "wait time", "run time", "allocated processors", "average CPU time",
    "used memory", "requested processors", "requested time", "requested memory", "status", "user", "group",
    "executable", "queue", "partition", "preceding job", "think time",
)  # fmt: skip
USED: Final = (0, 1, 2, 3, 10, 11)
JOB, SUBMIT, WAIT, RUN, STATUS, USER = range(len(USED))
FAILED, COMPLETED, PART, LAST_COMPLETED, LAST_FAILED, CANCELLED = range(6)
MEANING: Final = {
    -1: "unknown", FAILED: "failed", LAST_FAILED: "failed", COMPLETED: "completed", LAST_COMPLETED: "completed",
    CANCELLED: "cancelled", PART: "part",
}  # fmt: skip

_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|nan|[-+]?inf", re.ASCII | re.IGNORECASE)
_HEADER: Final = re.compile(r"\s*;\s*(MaxNodes|MaxJobs|MaxRecords|UnixStartTime):\s*(\d{1,12})\b")
_TIME: Final = (-1, 1e11, "seconds from 0 to 1e11, or -1 if missing")
_LIMITS: Final = {
    JOB: (0, 2**53, "a whole number from 0 up"),
    SUBMIT: _TIME,
    WAIT: _TIME,
    RUN: _TIME,
    STATUS: (-1, 5, "a whole number from -1 to 5"),
    USER: (-1, 2**53, "a whole number from 0 up, or -1 if missing"),
}


class SwfFormat(JobFormat):
    what = "a job log in the Standard Workload Format (.swf, .swf.gz)"
    suffixes = (".swf",)

    def __init__(self, file: JobLog) -> None:
        super().__init__(file)
        self._header: dict[str, int] = {}
        self._projects: dict[str, int] = {}

    @staticmethod
    def recognises(head: bytes, /) -> bool:
        lines = head.decode("utf-8-sig", "replace").split("\n")
        first = next((line for line in lines if line.partition(";")[0].strip()), "")
        fields = first.partition(";")[0].split()
        return len(fields) >= len(FIELDS) and all(_NUMBER.fullmatch(fields[at]) for at in USED)

    def read(self) -> Jobs:
        """See `JobFormat`; by the column, as logs of the archive have millions of jobs."""
        log, lines, project = self._table()
        records = len(log)
        log, lines, project, has_parts = self._used(log, lines, project)
        log = self._scaled(log)
        end_us = made(len(log), np.int64, lambda at: _microseconds(log[at, SUBMIT]) + _spent_us(log[at]))
        head = made(len(log), np.int64, lambda at: np.arange(at.start, at.stop))
        if has_parts:
            head, end_us, kept = self._joined(log, lines, head, end_us)
            log, end_us = taken_at(log, kept), taken_at(end_us, kept)
            project = taken_at(project, kept) if len(project) else project
        first = places(len(log), lambda at: head[at] == np.arange(at.start, at.stop))
        users, group, anonymous = _users(log, first)
        numbers = made(len(first), np.int64, lambda at: log[first[at], JOB].astype(np.int64))
        status = np.array([CODES[MEANING[code]] for code in range(-1, 6)], np.uint8)
        self._note(records, log, first)
        has_project = self.file.log.projects in FIELDS
        return Jobs(
            ids=Chosen(None, numbers),
            numbers=self._distinct(numbers),
            submit_us=made(len(first), np.int64, lambda at: _microseconds(log[first[at], SUBMIT])),
            group=group,
            users=users - anonymous,
            job=made(len(log), np.int32, lambda at: np.searchsorted(first, head[at])),
            end_us=end_us,
            run_s=made(len(log), np.int64, lambda at: np.maximum(np.floor(log[at, RUN]), 0)),
            status=made(len(log), np.uint8, lambda at: status[log[at, STATUS].astype(np.int64) + 1]),
            fields=(str(self.file.log.projects),) if has_project else (),
            project=taken_at(project, first) if has_project else project,
            projects=tuple(self._projects),
            node=np.broadcast_to(np.int32(NOWHERE), len(log)),
            epoch_us=self._header["UnixStartTime"] * models.SECOND_US if "UnixStartTime" in self._header else None,
            machine_count=self._machine_count(),
        )

    def _table(self) -> tuple[Table, Int64, Int32]:
        """The fields that are used, of shape (lines, fields); the numbers of their lines, and their projects."""
        asked = FIELDS.index(self.file.log.projects) if self.file.log.projects in FIELDS else None
        log, lines, project = Growing(np.float64), Growing(), Growing(np.int32)
        rows = self._rows()
        count = left = 0
        while piece := list(islice(rows, PIECE_LINES)):
            count += len(piece)
            table, piece = self._good(piece)
            left += len(piece)
            log.add(table.reshape(-1))
            lines.add([number for number, _ in piece])
            if asked is not None:
                values = [line.split(None, asked + 1)[asked] for _, line in piece]
                project.add([self._projects.setdefault(value, len(self._projects)) for value in values])
        if not count:
            raise ScenarioError(f"{self.file.path}: no job in this log: expected lines of {len(FIELDS)} numbers")
        if not left:
            raise ScenarioError(f"{self.file.path}: no job is left in this log: all its {count:,} rows are bad")
        return log.array().reshape(-1, len(USED)), lines.array(), project.array()

    def _rows(self) -> Iterator[tuple[int, str]]:
        for number, line in self.file.lines():
            text = line.partition(";")[0]
            if text.strip():
                yield number, text
            elif found := _HEADER.match(line):
                self._header.setdefault(found[1], int(found[2]))

    def _good(self, rows: Rows) -> tuple[Table, Rows]:
        """The fields of those lines that are not bad, and these lines."""
        short = any(len(line.split(None, len(FIELDS) - 1)) < len(FIELDS) for _, line in rows)
        try:
            log = None if short else _loaded(rows)
        except ValueError:
            log = None
        if log is None:
            every = rows
            rows = self._without(rows, lambda at: _unreadable(every[at][1]), range(len(rows)))
            log = _loaded(rows) if rows else np.empty((0, len(USED)))
        bad = ~_are_good(log)
        if bad.any():
            every, numbers = rows, log
            rows = self._without(rows, lambda at: _beyond(numbers[at]), np.flatnonzero(bad).tolist())
            log = log[np.isin([row for row, _ in every], [row for row, _ in rows])]
        return log, rows

    def _without(self, rows: Rows, mistake: Callable[[int], str], places: Sequence[int]) -> Rows:
        """Rows without those that are bad, which are skipped if so many may be."""
        bad = set()
        for at in places:
            if reason := mistake(at):
                self.file.skip(f"line {rows[at][0]}", reason)
                bad.add(at)
        return [row for at, row in enumerate(rows) if at not in bad]

    def _used(self, log: Table, lines: Int64, project: Int32) -> tuple[Table, Int64, Int32, bool]:
        """What there is without the parts of jobs that have a summary line, and whether there are parts."""
        parts = places(len(log), lambda at: _is_part(log[at]))
        if not len(parts):
            return log, lines, project, False
        divided = np.unique(log[parts, JOB])
        summed = np.zeros(len(divided), np.bool_)
        for at in stretches(len(log)):
            summed |= np.isin(divided, log[at][~_is_part(log[at]), JOB])
        if not summed.any():
            return log, lines, project, True
        kept = places(len(log), lambda at: ~(_is_part(log[at]) & np.isin(log[at, JOB], divided[summed])))
        log, lines = taken_at(log, kept), taken_at(lines, kept)
        return log, lines, taken_at(project, kept) if len(project) else project, True

    def _scaled(self, log: Table) -> Table:
        """With the run times that the log is to have."""
        scale = self.file.log.run_time_scale
        if scale == 1:
            return log
        scaled: Table = changeable(log)
        for at in stretches(len(log)):
            run = scaled[at, RUN]
            scaled[at, RUN] = np.where(run > 0, run * scale, run)
            if scaled[at, RUN].max() > _TIME[1]:
                raise ScenarioError(f"{self.file.path}: run_time_scale = {scale:g} makes run times longer than 1e11 s")
        return scaled

    def _joined(self, log: Table, lines: Int64, head: Int64, end_us: Int64) -> tuple[Int64, Int64, Int64]:
        """For each line that counts the first line of its job; when each line ended; and the places of those lines."""
        head, end_us = changeable(head), changeable(end_us)
        latest: dict[float, int] = {}
        bad = np.zeros(len(log), np.bool_)
        for line in places(len(log), lambda at: _is_part(log[at])).tolist():
            job, status = log[line, JOB], log[line, STATUS]
            if job in latest:
                head[line] = head[latest[job]]
                if log[line, SUBMIT] < 0:
                    end_us[line] = end_us[latest[job]] + _spent_us(log[line : line + 1])[0]
            elif log[line, SUBMIT] < 0:
                self.file.skip(f"line {lines[line]}", _mistake(SUBMIT, "-1", "a time on the first part of a job"))
                bad[line] = True
                continue
            latest[job] = line
            if status != PART:
                del latest[job]
        kept = places(len(log), lambda at: ~bad[at])
        if not len(kept):
            raise ScenarioError(f"{self.file.path}: no job is left in this log: all its rows are bad")
        return made(len(kept), np.int64, lambda at: np.searchsorted(kept, head[kept[at]])), end_us, kept

    def _distinct(self, numbers: Int64) -> Int64:
        """Job numbers, where one that repeats an earlier one is replaced by the next that is free."""
        again = repeats(numbers)
        if not len(again):
            return numbers
        following = max(int(numbers[at].max()) for at in stretches(len(numbers))) + 1
        distinct: Int64 = changeable(numbers)
        distinct[again] = following + np.arange(len(again))
        self.file.note(
            f"{len(again):,} jobs repeat the number of an earlier one: they got the numbers from {following:,} on"
        )
        return distinct

    def _machine_count(self) -> int | None:
        count = self._header.get("MaxNodes", 0)
        return count if 1 <= count <= MAX_MACHINES else None

    def _note(self, records: int, log: Table, first: Int64) -> None:
        """Tell what is odd."""
        for name, count in (("MaxRecords", records), ("MaxJobs", len(first))):
            said = self._header.get(name)
            if said is not None and said != count:
                what = name.removeprefix("Max").lower()
                self.file.note(f"its header says {said:,} {what}, and there are {count:,}")
        if unknown := sum(np.count_nonzero(log[at, STATUS] < 0) for at in stretches(len(log))):
            self.file.note(f"{unknown:,} jobs have the status -1, not known")


def _loaded(rows: Rows) -> Table:
    return np.loadtxt([line for _, line in rows], usecols=USED, comments=None, ndmin=2)


def _users(log: Table, first: Int64) -> tuple[int, Int32, int]:
    """How many users there are, with nobody; whose each job is; and whether nobody is among them, as 0 or 1."""
    users = np.empty(0)
    for at in stretches(len(first)):
        users = np.union1d(users, log[first[at], USER])
    anonymous = int(users[0] < 0)  # the first group then has no user
    group: Int32 = made(len(first), np.int32, lambda at: np.searchsorted(users, log[first[at], USER]) - anonymous)
    return len(users), group, anonymous


def _spent_us(log: Table) -> Int64:
    """How long lines have waited and run."""
    return _microseconds(np.maximum(log[:, WAIT], 0) + np.maximum(log[:, RUN], 0))


def _is_part(log: Table) -> npt.NDArray[np.bool_]:
    return np.isin(log[:, STATUS], [PART, LAST_COMPLETED, LAST_FAILED])


def _are_good(log: Table) -> npt.NDArray[np.bool_]:
    """Which lines have no value that cannot be."""
    good = np.ones(len(log), np.bool_)
    for field in _LIMITS:
        good &= _is_within(log, field)
    return good


def _is_within(log: Table, field: int) -> npt.NDArray[np.bool_]:
    low, high, _ = _LIMITS[field]
    values = log[:, field]
    good: npt.NDArray[np.bool_] = (values >= low) & (values <= high)
    if field in {JOB, STATUS, USER}:
        good &= values == np.floor(values)
    if field == SUBMIT:
        good &= (values >= 0) | _is_part(log)
    return good


def _beyond(line: npt.NDArray[np.float64]) -> str:
    """What cannot be of a line's numbers; "" if all can."""
    for field, (_, _, allowed) in _LIMITS.items():
        if not _is_within(line[None], field)[0]:
            return _mistake(field, f"{line[field]:.12g}", allowed)
    return ""


_LINE_ENDS: Final = {"\r", "\n"}


def _unreadable(line: str) -> str:
    """Why a line is not one of enough fields, with numbers where they count; "" if it is."""
    tokens = line.split()
    if strange := {*line} & _LINE_ENDS:
        return f"{strange.pop()!r} is in the middle of the line"
    if len(tokens) < len(FIELDS):
        return f"{len(tokens)} fields: expected {len(FIELDS)}, from {FIELDS[0]} to {FIELDS[-1]}"
    for field, at in enumerate(USED):
        if not _NUMBER.fullmatch(tokens[at]):
            return _mistake(field, repr(tokens[at]), _LIMITS[field][2])
    return ""


def _mistake(field: int, shown: str, allowed: str) -> str:
    return f"{FIELDS[USED[field]]} (field {USED[field] + 1}) = {shown}: expected {allowed}"


def _microseconds(seconds: Table) -> Int64:
    return np.rint(seconds * models.SECOND_US).astype(np.int64)
