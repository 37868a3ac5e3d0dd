"""Job logs in the Standard Workload Format, read as workloads.

Format: version 2.2, D. Feitelson et al., Parallel Workloads Archive,
https://www.cs.huji.ac.il/labs/parallel/workload/swf.html

A job is a slot. It is allocated when the job was submitted and settled when it ended, after its wait and run
times; missing times count as 0. The first submission is time 0.

| status | outcome |
|---|---|
| 1 completed, 3 last part, completed; -1 not known | claim, credits=1 |
| 0 failed, 4 last part, failed | discard, reason `failed` |
| 5 cancelled | discard, reason `cancelled` |
| 2 part, to be continued | counters only |

A job that ran for a second or more sends counters at its end: `job/cpuusage` (run time in whole seconds), and
`job/success` or `job/failure` if it completed or failed. The parts of a job (status 2 to 4) are one slot; as the
format asks of workload studies, they are left out when the log also has the job's summary line. A job number
that occurs again is another job, and gets a number of its own.

There is a machine for each of the log's nodes (`MaxNodes`; else 1,000). They are dealt out among its users, and a
job runs on a machine of its own user: what a user's machines earn is what that user's jobs did. Jobs without a
user run on machines without one.

All this is what a log is by default; a scenario file with a `[log]` has it otherwise.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import identities
from cpsim.scenario.models.numbers import RunTime
from cpsim.scenario.schema import MOST_SITES, OUTCOMES, Log
from cpsim.scenario.source import safe_name
from cpsim.scenario.streams import uniforms
from cpsim.scenario.values import ScenarioError
from cpsim.scenario.workload import ABSENT, Blocks, Column, Int32, Int64, Workload

if TYPE_CHECKING:
    from pathlib import Path

Table = npt.NDArray[np.float64]

DEFAULT_MACHINES: Final = 1_000
GZIP_MAGIC: Final = b"\x1f\x8b"
MOST_BYTES: Final = 2**29
"""Of a log that is decompressed: some 7 million jobs; a small file can hold far more of nothing."""
MAX_MACHINES: Final = 10_000_000
FIELDS: Final = (
    "job number", "submit time", "wait time", "run time", "allocated processors", "average CPU time",
    "used memory", "requested processors", "requested time", "requested memory", "status", "user", "group",
    "executable", "queue", "partition", "preceding job", "think time",
)  # fmt: skip
JOB, SUBMIT, WAIT, RUN, STATUS, USER = 0, 1, 2, 3, 10, 11
STATUSES: Final = {"unknown": (-1,), "failed": (0, 4), "completed": (1, 3), "cancelled": (5,)}
FAILED, COMPLETED, PART, LAST_COMPLETED, LAST_FAILED, CANCELLED = range(6)

_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TIME: Final = (-1, 1e11, "seconds from 0 to 1e11, or -1 if missing")
_LIMITS: Final = {
    JOB: (0, 2**53, "a whole number from 0 up"),
    SUBMIT: _TIME,
    WAIT: _TIME,
    RUN: _TIME,
    STATUS: (-1, 5, "a whole number from -1 to 5"),
    USER: (-1, 2**53, "a whole number from 0 up, or -1 if missing"),
}


def load(path: Path, seed: int, mapping: Log | None = None) -> Workload:
    """Read a log (`.swf`, or compressed `.swf.gz`).

    Args:
        path: the file.
        seed: for the ids of machines and users, and which machine runs which job.
        mapping: how it becomes slots.

    Raises:
        ScenarioError: a line is wrong, there is no job, or the compressed file is damaged.
        OSError: the file cannot be read.
    """
    text = _read(path)
    log, line_numbers = _parse(text, path)
    part = _is_part(log)
    used = ~(part & np.isin(log[:, JOB], log[~part, JOB]))
    log = log[used]
    mapping = Log(file=str(path)) if mapping is None else mapping
    log[:, RUN] = np.where(log[:, RUN] > 0, log[:, RUN] * mapping.run_time_scale, log[:, RUN])
    if log[:, RUN].max() > _TIME[1]:
        raise ScenarioError(f"{path}: run_time_scale = {mapping.run_time_scale:g} makes run times longer than 1e11 s")
    head, end_us = _jobs(log, line_numbers[used], path)
    sites, site = _sites(log[np.unique(head)], mapping, path)
    made = _workload(log, head, end_us, mapping, machine_count=_machine_count(text), name=safe_name(path), seed=seed)
    return replace(made, sites=sites, site=site)


def _read(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix.lower() == ".gz" or content.startswith(GZIP_MAGIC):
        try:
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(MOST_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ScenarioError(f"{path}: damaged or cut short, it cannot be decompressed: {error}") from error
        if len(content) > MOST_BYTES:
            raise ScenarioError(
                f"{path}: over {MOST_BYTES // 2**20} MiB when it is decompressed: decompress it, if it is to be trusted"
            )
    return content.decode("utf-8", "replace")


def _machine_count(text: str) -> int:
    found = re.search(r"^;\s*MaxNodes:\s*(\d{1,8})\b", text, re.MULTILINE)
    return int(found[1]) if found and 1 <= int(found[1]) <= MAX_MACHINES else DEFAULT_MACHINES


def _is_part(log: Table) -> npt.NDArray[np.bool_]:
    return np.isin(log[:, STATUS], [PART, LAST_COMPLETED, LAST_FAILED])


def _parse(text: str, path: Path) -> tuple[Table, Int64]:
    """The log's lines of numbers, shape (lines, fields), and where they stand in the file."""
    rows = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.partition(";")[0].strip()]
    if not rows:
        raise ScenarioError(f"{path}: no job in this log: expected lines of {len(FIELDS)} numbers")
    line_numbers, lines = zip(*rows, strict=True)
    try:
        log = np.loadtxt(lines, comments=";", ndmin=2)
    except ValueError as error:
        raise _unreadable(rows, path, str(error)) from error
    if log.shape[1] != len(FIELDS):
        raise _unreadable(rows, path, "")
    for field, (low, high, allowed) in _LIMITS.items():
        values = log[:, field]
        good = (values >= low) & (values <= high)
        if field in {JOB, STATUS, USER}:
            good &= values == np.floor(values)
        if field == SUBMIT:
            good &= (values >= 0) | _is_part(log)
        if not good.all():
            row = int(np.argmin(good))
            raise _mistake(path, line_numbers[row], field, f"{values[row]:.12g}", allowed)
    return log, np.array(line_numbers)


def _unreadable(rows: list[tuple[int, str]], path: Path, reason: str) -> ScenarioError:
    """The first line that is not 18 numbers."""
    for number, line in rows:
        tokens = line.partition(";")[0].split()
        if len(tokens) != len(FIELDS):
            return ScenarioError(
                f"{path}, line {number}: {len(tokens)} fields: expected {len(FIELDS)}, from {FIELDS[0]} to {FIELDS[-1]}"
            )
        for field, token in enumerate(tokens):
            if not _NUMBER.fullmatch(token):
                allowed = _LIMITS[field][2] if field in _LIMITS else "a number, or -1 if missing"
                return _mistake(path, number, field, repr(token), allowed)
    return ScenarioError(f"{path}: {reason}")


def _mistake(path: Path, line_number: int, field: int, shown: str, allowed: str) -> ScenarioError:
    return ScenarioError(
        f"{path}, line {line_number}: {FIELDS[field]} (field {field + 1}) = {shown}: expected {allowed}"
    )


def _jobs(log: Table, line_numbers: Int64, path: Path) -> tuple[Int64, Int64]:
    """For each line the first line of its job, and when it ended in microseconds of the log's own time."""
    spent_us = _microseconds(np.maximum(log[:, WAIT], 0) + np.maximum(log[:, RUN], 0))
    end_us = _microseconds(log[:, SUBMIT]) + spent_us
    head = np.arange(len(log))
    latest: dict[float, int] = {}
    for line in np.flatnonzero(_is_part(log)).tolist():
        job, status = log[line, JOB], log[line, STATUS]
        if job in latest:
            head[line] = head[latest[job]]
            if log[line, SUBMIT] < 0:
                end_us[line] = end_us[latest[job]] + spent_us[line]
        elif log[line, SUBMIT] < 0:
            raise _mistake(path, int(line_numbers[line]), SUBMIT, "-1", "a time on the first part of a job")
        latest[job] = line
        if status != PART:
            del latest[job]
    return head, end_us


def _microseconds(seconds: Table) -> Int64:
    return np.rint(seconds * models.SECOND_US).astype(np.int64)


def _sites(first: Table, mapping: Log, path: Path) -> tuple[tuple[str, ...], Int32]:
    """A site for each project, and the site of each job."""
    if mapping.projects is None:
        return (), np.empty(0, dtype=np.int32)
    numbers, site = np.unique(first[:, FIELDS.index(mapping.projects)], return_inverse=True)
    if len(numbers) > MOST_SITES:
        raise ScenarioError(
            f'{path}: projects = "{mapping.projects}": the log has {len(numbers):,} of them, and {MOST_SITES} can be, '
            "each with a daemon of its own: choose another field"
        )
    if len(numbers) < 2:
        return (), np.empty(0, dtype=np.int32)
    names = (f"{number:.0f}" if number >= 0 else "unknown" for number in numbers.tolist())
    return tuple(f"{mapping.projects}-{name}" for name in names), site.astype(np.int32)


def _outcomes(status: Table, mapping: Log) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], Column]:
    """Which lines claim their slot, which discard it, and why the latter do."""
    words = {**OUTCOMES, **mapping.outcome}
    claims = [code for name, word in words.items() if word == "claim" for code in STATUSES[name]]
    reasons = tuple(dict.fromkeys(word for word in words.values() if word not in {"claim", "never"}))
    reason = np.full(len(status), -1, dtype=np.int32)
    for name, word in words.items():
        if word in reasons:
            reason[np.isin(status, STATUSES[name])] = reasons.index(word)
    return np.isin(status, claims), reason >= 0, Column(reason[reason >= 0], reasons)


def _workload(
    log: Table, head: Int64, end_us: Int64, mapping: Log, *, machine_count: int, name: str, seed: int
) -> Workload:
    first, inverse = np.unique(head, return_inverse=True)
    slot: Int32 = inverse.astype(np.int32)
    submit_us = _microseconds(log[first, SUBMIT])
    start_us = submit_us.min()
    last_us = submit_us.copy()
    np.maximum.at(last_us, slot, end_us)
    status, run_s = log[:, STATUS], np.floor(log[:, RUN]).astype(np.int64)
    ran = np.flatnonzero(run_s > 0)
    claims, discards, reasons = _outcomes(status, mapping)
    claimed, discarded = np.flatnonzero(claims), np.flatnonzero(discards)
    asked = np.maximum(run_s[claimed], 0) if isinstance(mapping.credits, RunTime) else mapping.credits
    succeeded = np.isin(status[ran], [-1, COMPLETED, LAST_COMPLETED])
    failed = np.isin(status[ran], [FAILED, LAST_FAILED])
    counted = {
        "job/cpuusage": run_s[ran],
        "job/success": np.where(succeeded, 1, ABSENT),
        "job/failure": np.where(failed, 1, ABSENT),
    }
    machine, owner, user_count = _machines(log[first, USER], mapping.machines or machine_count, seed)
    if mapping.machine == "any":
        machine = models.pick(uniforms(seed, "machine", len(first)), len(owner))
    machines = identities.machines(seed, len(owner))
    lasts_min = -((submit_us - last_us) // models.MINUTE_US) + 1_440
    blocks = Blocks()
    blocks.add("alloc", submit_us - start_us, np.arange(len(first), dtype=np.int32), {"expire": lasts_min})
    blocks.add("counters", end_us[ran] - start_us, slot[ran], counted)
    blocks.add("discard", end_us[discarded] - start_us, slot[discarded], {"reason": reasons})
    asking = {"machine": Column(machine[slot[claimed]], machines), "credits": asked}
    blocks.add("claim", end_us[claimed] - start_us, slot[claimed], asking)
    due_us, kind, slot_column, row = blocks.timeline()
    return Workload(
        name=name,
        seed=seed,
        duration_us=int(submit_us.max() - start_us),
        due_us=due_us,
        kind=kind,
        slot=slot_column,
        row=row,
        slot_numbers=_distinct(log[first, JOB].astype(np.int64)),
        arguments=blocks.arguments(),
        machines=machines,
        users=identities.users(seed, user_count),
        owner=owner,
    )


def _distinct(numbers: Int64) -> Int64:
    """Job numbers, where one that repeats an earlier one is replaced by the next that is free."""
    repeats = np.ones(len(numbers), dtype=np.bool_)
    repeats[np.unique(numbers, return_index=True)[1]] = False
    numbers[repeats] = numbers.max() + 1 + np.arange(np.count_nonzero(repeats))
    return numbers


def _machines(user_numbers: Table, machine_count: int, seed: int) -> tuple[Int32, Int32, int]:
    """Each job's machine, each machine's owner, and how many users there are."""
    known, group = np.unique(user_numbers, return_inverse=True)
    count = max(machine_count, len(known))
    anonymous = int(known[0] < 0)  # the first group then has no user
    owner = (np.arange(count) % len(known) - anonymous).astype(np.int32)
    own = (count - group + len(known) - 1) // len(known)
    drawn = np.floor(uniforms(seed, "machine", len(group)) * own)
    return (group + len(known) * drawn).astype(np.int32), owner, len(known) - anonymous
