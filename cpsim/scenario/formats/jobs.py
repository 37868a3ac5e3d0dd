"""Jobs as a job manager recorded them: what every format of job logs is read as, a column for each fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from cpsim.scenario.formats.appearances import Appearances
from cpsim.scenario.values import ScenarioError
from cpsim.system.external_sort import in_order
from cpsim.system.growing import Growing, changeable, made
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    from cpsim.scenario.formats.job_log import JobLog
    from cpsim.scenario.workload import Int32, Int64, UInt8

STATUSES: Final = ("completed", "failed", "cancelled", "unknown", "part", "unfinished")
"""What a record says of its job: how the job ended, that a part of it did, or that it has not ended."""
CODES: Final = {name: code for code, name in enumerate(STATUSES)}
NOWHERE: Final = -1
WRITTEN_BYTES: Final = 1 << 20
_RECORD: Final = np.dtype([("job", np.int32), ("at", np.int64), ("status", np.uint8), ("submit_us", np.int64)])
_NUMBER: Final = np.dtype([("number", np.int64), ("at", np.int64)])


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
        fields: those by which projects can be told.
        project: int32[jobs], each job's value of the field that tells it, an index into `projects`; empty if none does.
        projects: these values.
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

    ids: Sequence[str]
    numbers: Int64
    submit_us: Int64
    group: Int32
    users: tuple[str, ...] | int
    job: Int32
    end_us: Int64
    run_s: Int64
    status: UInt8
    node: Int32
    fields: tuple[str, ...] = ()
    project: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    projects: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    owner: Int32 | None = None
    owners: tuple[str, ...] = ()
    epoch_us: int | None = 0
    machine_count: int | None = None

    def outcomes(self) -> dict[str, str]:
        """The last status of each job, by its id."""
        last = np.full(len(self.ids), CODES["unfinished"], np.uint8)
        for where in stretches(len(self.job)):
            last[self.job[where]] = self.status[where]  # of several records, the last counts
        return {job: STATUSES[code] for job, code in zip(self.ids, last.tolist(), strict=True)}

    def some(self, chosen: Int64) -> Jobs:
        """Some of the jobs, with their records.

        Args:
            chosen: their rows, in order.
        """
        place = np.full(len(self.ids), NOWHERE, np.int32)
        place[chosen] = np.arange(len(chosen), dtype=np.int32)
        kept = places(len(self.job), lambda where: place[self.job[where]] != NOWHERE)
        columns: dict[str, Any] = {}
        for name in ("numbers", "submit_us", "group", "project"):
            columns[name] = taken_at(values, chosen) if len(values := getattr(self, name)) else values
        for name in ("end_us", "run_s", "status", "node"):
            columns[name] = taken_at(getattr(self, name), kept)
        columns["job"] = made(len(kept), np.int32, lambda where: place[self.job[kept[where]]])
        return replace(self, ids=Chosen(self.ids, chosen), **columns)


def places(count: int, are: Callable[[slice], npt.NDArray[np.bool_]]) -> Int64:
    """The places, of so many, of which something is true, as it says stretch by stretch."""
    found = Growing()
    for where in stretches(count):
        found.add(where.start + np.flatnonzero(are(where)))
    return found.array()


def taken_at(values: npt.NDArray[Any], chosen: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """The values at some places, or the rows."""
    found = made(len(chosen), values.dtype, lambda where: values[chosen[where]])
    return found.reshape(len(chosen), *values.shape[1:])


def repeats(numbers: Int64) -> Int64:
    """The places of numbers that repeat an earlier one, in order."""
    found, last = Growing(), np.zeros(0, _NUMBER)
    for piece in in_order(_numbered(numbers), "number"):
        again = np.append(len(last) and last["number"][0] == piece["number"][0], np.diff(piece["number"]) == 0)
        found.add(piece["at"][again.astype(bool)])
        last = piece[-1:].copy()
    return np.sort(found.array())


def _numbered(numbers: Int64) -> Iterator[npt.NDArray[Any]]:
    for where in stretches(len(numbers)):
        piece = np.empty(where.stop - where.start, _NUMBER)
        piece["number"], piece["at"] = numbers[where], np.arange(where.start, where.stop)
        yield piece


class Chosen(Sequence[str]):
    """Some of a sequence of texts; or the decimals of numbers.

    Args:
        texts: the texts; None for the numbers themselves.
        chosen: the places of those that count.
    """

    def __init__(self, texts: Sequence[str] | None, chosen: Int64) -> None:
        self._texts = texts
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, at: Any) -> Any:  # noqa: ANN401 - no slices
        place = int(self._chosen[at])
        return str(place) if self._texts is None else self._texts[place]


class _Texts(Sequence[str]):
    """Texts without ends of lines, one after the other in a temporary file."""

    def __init__(self) -> None:
        self._written, self._begins = Growing(np.uint8), Growing()
        self._size_bytes, self._pending = 0, bytearray()
        self._all = memoryview(b"")
        self._begin = np.empty(0, np.int64)

    def add(self, text: str) -> None:
        self._begins.append(self._size_bytes + len(self._pending))
        self._pending += text.encode("utf-8", "surrogatepass")
        if len(self._pending) >= WRITTEN_BYTES:
            self._write()

    def close(self) -> None:
        """Add no more, and read from now on."""
        self._write()
        self._begins.append(self._size_bytes)
        self._all, self._begin = self._written.array().data, self._begins.array()

    def _write(self) -> None:
        self._written.add(np.frombuffer(self._pending, np.uint8))
        self._size_bytes, self._pending = self._size_bytes + len(self._pending), bytearray()

    def __len__(self) -> int:
        return len(self._begin) - 1

    def __getitem__(self, at: Any) -> Any:  # noqa: ANN401 - no slices
        begin, end = self._begin[at : at + 2].tolist()
        return str(self._all[begin:end], "utf-8", "surrogatepass")


class Collector:
    """Makes `Jobs` of records as they come.

    Args:
        file: the log.
    """

    def __init__(self, file: JobLog) -> None:
        self._file = file
        self._ids, self._appearances, self._numbers, self._is_numbered = _Texts(), Appearances(), Growing(), True
        self._users, self._nodes, self._owners, self._projects = _Pool(), _Pool(), _Pool(), _Pool()
        self._owner_of: dict[int, int] = {}
        self._disputed: set[int] = set()
        self._fields: dict[str, None] = {}
        self._submit_us, self._end_us, self._run_s, self._status = Growing(), Growing(), Growing(), Growing(np.uint8)
        self._group, self._node, self._project = Growing(np.int32), Growing(np.int32), Growing(np.int32)

    def add(self, record: JobRecord) -> None:
        """Add a record.

        Raises:
            ValueError: it lacks what is needed, or a time of it cannot be.
        """
        if not record.job:
            raise ValueError("it has no id of a job: expected one")
        submit_us, end_us = self._times(record)
        ran_us = record.run_us
        if ran_us is None:
            ran_us = 0 if record.start_us is None else max(end_us - record.start_us, 0)
        run_s = int(ran_us * self._file.log.run_time_scale) // 1_000_000
        self._ids.add(record.job)
        self._appearances.add(record.job)
        self._is_numbered = (
            self._is_numbered and len(record.job) <= 15 and record.job.isascii() and record.job.isdigit()
        )
        self._numbers.append(int(record.job) if self._is_numbered else 0)
        self._submit_us.append(submit_us)
        self._group.append(self._users[record.user])
        self._fields.update(dict.fromkeys(record.fields))
        self._project.append(self._projects[record.fields.get(self._file.log.projects or "", "")])
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
        job, first = self._appearances.numbers()
        if not len(job):
            raise ScenarioError(f"{self._file.path}: no job in this log")
        self._ids.close()
        submit_us, status = self._merged(job, first)
        if self._disputed:
            self._file.note(f"{len(self._disputed):,} machines have several owners: the first one counts")
        owner = np.array([self._owner_of[node] for node in range(len(self._nodes.texts))], np.int32)
        return Jobs(
            ids=Chosen(self._ids, first),
            numbers=self._slot_numbers(first),
            submit_us=submit_us,
            group=taken_at(self._group.array(), first),
            users=tuple(self._users.texts),
            job=job,
            end_us=self._end_us.array(),
            run_s=self._run_s.array(),
            status=status,
            fields=tuple(self._fields),
            project=taken_at(self._project.array(), first),
            projects=tuple(self._projects.texts),
            node=self._node.array(),
            nodes=tuple(self._nodes.texts),
            owner=owner,
            owners=tuple(self._owners.texts),
        )

    def _slot_numbers(self, first: Int64) -> Int64:
        """The numbers that all jobs have for ids, if they are distinct; else those from 1 up."""
        if self._is_numbered:
            numbers: Int64 = taken_at(self._numbers.array(), first)
            if not len(repeats(numbers)):
                return numbers
        return made(len(first), np.int64, lambda where: np.arange(where.start + 1, where.stop + 1))

    def _merged(self, job: Int32, first: Int64) -> tuple[Int64, UInt8]:
        """When each job was submitted, and the status of each record, of which the earlier ones of a job are parts."""
        all_us, status = self._submit_us.array(), self._status.array()
        submit_us: Int64 = taken_at(all_us, first)
        if len(first) == len(job):
            return submit_us, status
        submit_us, merged = changeable(submit_us), changeable(status)
        last = np.zeros(0, _RECORD)
        for piece in in_order(_records(job, status, all_us), "job"):
            rows = np.concatenate([last, piece])
            before, after = rows[:-1], rows[1:]
            again = before["job"] == after["job"]
            merged[before["at"][again]] = CODES["part"]
            # what is known later of a job that has not ended replaces what was known
            again &= before["status"] != CODES["unfinished"]
            np.minimum.at(submit_us, after["job"][again], after["submit_us"][again])
            last = piece[-1:].copy()
        return submit_us, merged


def _records(job: Int32, status: UInt8, submit_us: Int64) -> Iterator[npt.NDArray[Any]]:
    for where in stretches(len(job)):
        piece = np.empty(where.stop - where.start, _RECORD)
        piece["job"], piece["status"], piece["submit_us"] = job[where], status[where], submit_us[where]
        piece["at"] = np.arange(where.start, where.stop)
        yield piece


class _Pool:
    """Texts that come again and again, as numbers."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts)) if text else NOWHERE
