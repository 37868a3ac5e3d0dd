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
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.jobs import CODES, NOWHERE, Jobs
from cpsim.scenario.models import distributions as models
from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.scenario.formats.job_log import JobLog
    from cpsim.scenario.workload import Int64

Table = npt.NDArray[np.float64]
Rows = list[tuple[int, str]]
"""Lines with their numbers."""

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

    @staticmethod
    def recognises(head: bytes, /) -> bool:
        lines = head.decode("utf-8-sig", "replace").split("\n")
        first = next((line for line in lines if line.partition(";")[0].strip()), "")
        fields = first.partition(";")[0].split()
        return len(fields) >= len(FIELDS) and all(_NUMBER.fullmatch(fields[at]) for at in USED)

    def read(self) -> Jobs:
        """See `JobFormat`; by the column, as logs of the archive have millions of jobs."""
        log, rows = self._table()
        part = _is_part(log)
        used = ~(part & np.isin(log[:, JOB], log[~part, JOB]))
        log, rows = log[used], [row for row, kept in zip(rows, used.tolist(), strict=True) if kept]
        scale = self.file.log.run_time_scale
        log[:, RUN] = np.where(log[:, RUN] > 0, log[:, RUN] * scale, log[:, RUN])
        if len(log) and log[:, RUN].max() > _TIME[1]:
            raise ScenarioError(f"{self.file.path}: run_time_scale = {scale:g} makes run times longer than 1e11 s")
        log, rows, head, end_us = self._jobs(log, rows)
        first, job = np.unique(head, return_inverse=True)
        users, group = np.unique(log[first, USER], return_inverse=True)
        anonymous = int(users[0] < 0)  # the first group then has no user
        numbers = log[first, JOB].astype(np.int64)
        names = tuple(map(str, numbers.tolist()))
        status = np.array([CODES[MEANING[code]] for code in range(-1, 6)], np.uint8)
        self._note(len(used), log, first)
        return Jobs(
            ids=names,
            numbers=self._distinct(numbers),
            submit_us=_microseconds(log[first, SUBMIT]),
            group=(group.reshape(-1) - anonymous).astype(np.int32),
            users=len(users) - anonymous,
            job=job.reshape(-1).astype(np.int32),
            end_us=end_us,
            run_s=np.maximum(np.floor(log[:, RUN]), 0).astype(np.int64),
            status=status[log[:, STATUS].astype(np.int64) + 1],
            fields=self._fields([rows[row] for row in first.tolist()]),
            node=np.full(len(log), NOWHERE, np.int32),
            epoch_us=self._header["UnixStartTime"] * models.SECOND_US if "UnixStartTime" in self._header else None,
            machine_count=self._machine_count(),
        )

    def _table(self) -> tuple[Table, Rows]:
        """The fields that are used, of shape (lines, fields), and their lines."""
        rows: Rows = []
        for number, line in self.file.lines():
            text = line.partition(";")[0]
            if text.strip():
                rows.append((number, text))
            elif found := _HEADER.match(line):
                self._header.setdefault(found[1], int(found[2]))
        if not rows:
            raise ScenarioError(f"{self.file.path}: no job in this log: expected lines of {len(FIELDS)} numbers")
        short = any(len(line.split(None, len(FIELDS) - 1)) < len(FIELDS) for _, line in rows)
        try:
            log = None if short else _loaded(rows)
        except ValueError:
            log = None
        if log is None:
            every = rows
            rows = self._without(rows, lambda at: _unreadable(every[at][1]), range(len(rows)))
            log = _loaded(rows)
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
        left = [row for at, row in enumerate(rows) if at not in bad]
        if not left:
            raise ScenarioError(f"{self.file.path}: no job is left in this log: all its {len(rows):,} rows are bad")
        return left

    def _jobs(self, log: Table, rows: Rows) -> tuple[Table, Rows, Int64, Int64]:
        """The lines that count; for each the first line of its job, and when it ended in microseconds."""
        spent_us = _microseconds(np.maximum(log[:, WAIT], 0) + np.maximum(log[:, RUN], 0))
        end_us = _microseconds(log[:, SUBMIT]) + spent_us
        head = np.arange(len(log))
        latest: dict[float, int] = {}
        bad = np.zeros(len(log), np.bool_)
        for line in np.flatnonzero(_is_part(log)).tolist():
            job, status = log[line, JOB], log[line, STATUS]
            if job in latest:
                head[line] = head[latest[job]]
                if log[line, SUBMIT] < 0:
                    end_us[line] = end_us[latest[job]] + spent_us[line]
            elif log[line, SUBMIT] < 0:
                self.file.skip(f"line {rows[line][0]}", _mistake(SUBMIT, "-1", "a time on the first part of a job"))
                bad[line] = True
                continue
            latest[job] = line
            if status != PART:
                del latest[job]
        if not bad.any():
            return log, rows, head, end_us
        kept = np.flatnonzero(~bad)
        if not len(kept):
            raise ScenarioError(f"{self.file.path}: no job is left in this log: all its rows are bad")
        return log[kept], [rows[row] for row in kept.tolist()], np.searchsorted(kept, head[kept]), end_us[kept]

    def _distinct(self, numbers: Int64) -> Int64:
        """Job numbers, where one that repeats an earlier one is replaced by the next that is free."""
        repeats = np.ones(len(numbers), dtype=np.bool_)
        repeats[np.unique(numbers, return_index=True)[1]] = False
        if count := np.count_nonzero(repeats):
            following = int(numbers.max()) + 1
            numbers[repeats] = following + np.arange(count)
            self.file.note(
                f"{count:,} jobs repeat the number of an earlier one: they got the numbers from {following:,} on"
            )
        return numbers

    def _fields(self, first: Rows) -> dict[str, tuple[str, ...]]:
        """What each job's project can be told by, if it is."""
        asked = self.file.log.projects
        if asked is None or asked not in FIELDS:
            return {}
        at = FIELDS.index(asked)
        return {asked: tuple(line.split(None, at + 1)[at] for _, line in first)}

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
        if unknown := np.count_nonzero(log[:, STATUS] < 0):
            self.file.note(f"{unknown:,} jobs have the status -1, not known")


def _loaded(rows: Rows) -> Table:
    return np.loadtxt([line for _, line in rows], usecols=USED, comments=None, ndmin=2)


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


def _unreadable(line: str) -> str:
    """Why a line is not one of enough fields, with numbers where they count; "" if it is."""
    tokens = line.split()
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
