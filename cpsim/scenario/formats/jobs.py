"""Jobs as a job manager recorded them: what every format of job logs is read as, a column for each fact."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.scenario.formats.job_log import JobLog
    from cpsim.scenario.workload import Int32, Int64, UInt8

STATUSES: Final = ("completed", "failed", "cancelled", "unknown", "part", "unfinished")
"""What a record says of its job: how the job ended, that a part of it did, or that it has not ended."""
CODES: Final = {name: code for code, name in enumerate(STATUSES)}
NOWHERE: Final = -1


class JobRecord(NamedTuple):
    """One record of a job.

    Attributes:
        job: the job's id.
        status: one of STATUSES. Of several records of a job that have ended, the earlier ones are parts.
        submit_us: microseconds since 1970, as are the others; None if it is not known.
        start_us, end_us: when it ran.
        run_us: how long it ran, if that is not from start to end.
        user: who submitted it; "" if it is not known, as the others.
        node: where it ran.
        owner: whose that machine is.
        fields: what else projects can be told by.
    """

    job: str
    status: str
    submit_us: int | None = None
    start_us: int | None = None
    end_us: int | None = None
    run_us: int | None = None
    user: str = ""
    node: str = ""
    owner: str = ""
    fields: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Jobs:
    """The jobs of a log, a row per job, and their records, a row per end of a job or of a part of one.

    Attributes:
        ids: of each job, as the log has it.
        numbers: int64[jobs], distinct: the numbers of their slots.
        submit_us: int64[jobs], microseconds since `epoch_us`.
        group: int32[jobs], whose it is, an index into the users; NOWHERE if it is nobody's.
        users: who has jobs: their names, or how many they are, if the log only numbers them.
        fields: for each field by which projects can be told, each job's value of it.
        job: int32[records], the job of each record.
        end_us: int64[records], when it ended.
        run_s: int64[records], for how many whole seconds it ran.
        status: uint8[records], an index into STATUSES.
        node: int32[records], where it ran, an index into `nodes`; NOWHERE if that is not known.
        nodes: their ids.
        owner: int32[nodes], whose each is, an index into `owners`; NOWHERE if nobody's.
        owners: the ids of those who have machines.
        epoch_us: the moment that the log's times count from, in microseconds since 1970; None if it is not known.
        machine_count: how many nodes the log says there are; None if it does not.
    """

    ids: tuple[str, ...]
    numbers: Int64
    submit_us: Int64
    group: Int32
    users: tuple[str, ...] | int
    job: Int32
    end_us: Int64
    run_s: Int64
    status: UInt8
    fields: Mapping[str, tuple[str, ...]]
    node: Int32
    nodes: tuple[str, ...] = ()
    owner: Int32 | None = None
    owners: tuple[str, ...] = ()
    epoch_us: int | None = 0
    machine_count: int | None = None

    def outcomes(self) -> dict[str, str]:
        """The last status of each job, by its id."""
        last = np.full(len(self.ids), CODES["unfinished"], np.uint8)
        last[self.job] = self.status  # of several records, the last counts
        return {job: STATUSES[code] for job, code in zip(self.ids, last.tolist(), strict=True)}

    def some(self, chosen: Int64) -> Jobs:
        """Some of the jobs, with their records.

        Args:
            chosen: their rows, in order.
        """
        place = np.full(len(self.ids), NOWHERE, np.int32)
        place[chosen] = np.arange(len(chosen), dtype=np.int32)
        job = place[self.job]
        kept = job != NOWHERE
        return replace(
            self,
            ids=tuple(self.ids[row] for row in chosen.tolist()),
            numbers=self.numbers[chosen],
            submit_us=self.submit_us[chosen],
            group=self.group[chosen],
            fields={name: tuple(values[row] for row in chosen.tolist()) for name, values in self.fields.items()},
            job=job[kept],
            **{name: getattr(self, name)[kept] for name in ("end_us", "run_s", "status", "node")},
        )


class Collector:
    """Makes `Jobs` of records as they come.

    Args:
        file: the log.
    """

    def __init__(self, file: JobLog) -> None:
        self._file = file
        self._rows: dict[str, int] = {}
        self._submit_us, self._group = array("q"), array("i")
        self._users, self._nodes, self._owners = _Pool(), _Pool(), _Pool()
        self._owner_of: dict[int, int] = {}
        self._fields: dict[str, list[str]] = {}
        self._job, self._node, self._status = array("i"), array("i"), array("B")
        self._end_us, self._run_s = array("q"), array("q")
        self._latest: dict[int, int] = {}
        self._disputed: set[int] = set()

    def add(self, record: JobRecord) -> None:
        """Add a record.

        Raises:
            ValueError: it lacks what is needed, or a time of it cannot be.
        """
        if not record.job:
            raise ValueError("it has no id of a job: expected one")
        submit_us, end_us = self._times(record)
        row = self._rows.setdefault(record.job, len(self._rows))
        if row == len(self._submit_us):
            self._submit_us.append(submit_us)
            self._group.append(self._users[record.user])
            for name, value in record.fields.items():
                values = self._fields.setdefault(name, [])
                values.extend([""] * (row - len(values)))  # of jobs that lack it
                values.append(value)
        elif (before := self._latest.get(row)) is not None and self._status[before] != CODES["unfinished"]:
            self._status[before] = CODES["part"]
            self._submit_us[row] = min(self._submit_us[row], submit_us)
        elif before is not None:  # what is known of it later replaces what was known
            self._status[before] = CODES["part"]
        ran_us = record.run_us
        if ran_us is None:
            ran_us = 0 if record.start_us is None else max(end_us - record.start_us, 0)
        run_s = int(ran_us * self._file.log.run_time_scale) // 1_000_000
        self._latest[row] = len(self._job)
        self._job.append(row)
        self._status.append(CODES[record.status])
        self._end_us.append(end_us + round(ran_us * (self._file.log.run_time_scale - 1)))
        self._run_s.append(0 if record.status == "unfinished" else run_s)
        node = self._nodes[record.node]
        self._node.append(node)
        if node == NOWHERE:
            return
        owner = self._owners[record.owner]
        known = self._owner_of.get(node, NOWHERE)
        self._owner_of[node] = owner if known == NOWHERE else known
        if NOWHERE not in {owner, known} and owner != known:
            self._disputed.add(node)

    def _times(self, record: JobRecord) -> tuple[int, int]:
        """When a record's job was submitted, and when the record ended."""
        ended = record.status != "unfinished"
        submit_us, end_us = record.submit_us, record.end_us
        if end_us is None and record.start_us is not None and record.run_us is not None:
            end_us = record.start_us + record.run_us
        if not self._file.needs_times:
            return submit_us or 0, end_us or 0
        if submit_us is None:
            raise ValueError(f"job {record.job} has no time of submission: expected one")
        if ended and end_us is None:
            raise ValueError(f"job {record.job} is {record.status}, and has no time of its end: expected one")
        if not ended or end_us is None:
            return submit_us, submit_us
        if end_us < submit_us:
            raise ValueError(f"job {record.job} ended before it was submitted: expected times in order")
        return submit_us, end_us

    def jobs(self) -> Jobs:
        """All that was added.

        Raises:
            ScenarioError: nothing was.
        """
        if not self._rows:
            raise ScenarioError(f"{self._file.path}: no job in this log")
        ids = tuple(self._rows)
        numbered = all(len(job) <= 15 and job.isascii() and job.isdigit() for job in ids)
        numbers = np.array([int(job) for job in ids] if numbered else range(1, len(ids) + 1), np.int64)
        if len(np.unique(numbers)) < len(numbers):
            numbers = np.arange(1, len(ids) + 1)
        if self._disputed:
            self._file.note(f"{len(self._disputed):,} machines have several owners: the first one counts")
        for values in self._fields.values():
            values.extend([""] * (len(ids) - len(values)))
        owner = np.array([self._owner_of[node] for node in range(len(self._nodes.texts))], np.int32)
        return Jobs(
            ids=ids,
            numbers=numbers,
            submit_us=np.frombuffer(self._submit_us, np.int64),
            group=np.frombuffer(self._group, np.int32),
            users=tuple(self._users.texts),
            job=np.frombuffer(self._job, np.int32),
            end_us=np.frombuffer(self._end_us, np.int64),
            run_s=np.frombuffer(self._run_s, np.int64),
            status=np.frombuffer(self._status, np.uint8),
            fields={name: tuple(values) for name, values in self._fields.items()},
            node=np.frombuffer(self._node, np.int32),
            nodes=tuple(self._nodes.texts),
            owner=owner,
            owners=tuple(self._owners.texts),
        )


class _Pool:
    """Texts that come again and again, as numbers."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts)) if text else NOWHERE
