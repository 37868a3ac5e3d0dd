"""The workload of a job log.

A job is a slot. It is allocated when the job was submitted and settled when it ended. The first submission is time 0.
How a job ended decides how its slot is settled, see `cpsim.scenario.schema.OUTCOMES`; a job that has not ended is not.

A job that ran for a second or more sends counters at its end, and at the end of each part: `job/cpuusage` (run time in
whole seconds), and `job/success` or `job/failure` if it completed or failed. What is not known counts as completed.

There is a machine for each of the log's nodes, where it says how many (else 1,000). They are dealt out among its users,
and a job runs on a machine of its own user: what a user's machines earn is what that user's jobs did. Jobs without a
user run on machines without one.

All this is what a log is by default; a scenario file with a `[log]` has it otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.config.zones import find_zone
from cpsim.scenario.blocks import Blocks
from cpsim.scenario.formats import job_logs
from cpsim.scenario.formats.jobs import CODES, NOWHERE
from cpsim.scenario.formats.times import EXPECTED_TIME, time_us
from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import identities
from cpsim.scenario.models.numbers import RunTime
from cpsim.scenario.schema import MOST_SITES, OUTCOMES, Log
from cpsim.scenario.streams import uniforms
from cpsim.scenario.values import Duration, ScenarioError
from cpsim.scenario.workload import ABSENT, Column, Int32, Workload, numbers_of_ids

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from cpsim.scenario.formats.jobs import Jobs

    Flags = npt.NDArray[np.bool_]

DEFAULT_MACHINES: Final = 1_000
UNNAMED: Final = "unknown"
"""The machine of a job of which the log does not say where it ran, where it says that of others."""


def load(log: Log, path: Path, seed: int, name: str) -> Workload:
    """The workload of a job log.

    Args:
        log: how it becomes slots.
        path: the log.
        seed: for the ids of machines and users, and which machine runs which job.
        name: begins the slots' ids.

    Raises:
        ScenarioError: a row is wrong, there is no job, or the compressed file is damaged.
        OSError: the file cannot be read.
    """
    jobs, notes = job_logs.read(path, log)
    jobs = part_of(jobs, log, path)
    sites, site = _sites(jobs, log, path)
    unsettled = np.ones(len(jobs.ids), np.bool_)
    unsettled[jobs.job[jobs.status < CODES["part"]]] = False
    if count := np.count_nonzero(unsettled):
        notes.append(f"{count:,} jobs have not ended in this log, and never settle")
    unknown = np.count_nonzero(jobs.status == CODES["unknown"])
    if unknown and {**OUTCOMES, **log.outcome}["unknown"] == "claim":
        notes.append(
            f"{unknown:,} ends of jobs that are not known are taken as completed: see outcome.unknown in [log]"
        )
    return _workload(jobs, log, notes, sites=sites, site=site, name=name, seed=seed)


def part_of(jobs: Jobs, log: Log, path: Path) -> Jobs:
    """The part of a log that is wanted."""
    if log.since is None and log.until is None and log.jobs is None:
        return jobs
    chosen = np.argsort(jobs.submit_us, kind="stable")
    submit_us = jobs.submit_us[chosen]
    bounds = [
        None if text is None else _moment_us(f'{path}: {name} = "{text}"', text, log, jobs)
        for name, text in (("since", log.since), ("until", log.until))
    ]
    since_us, until_us = bounds
    wanted = np.ones(len(chosen), np.bool_)
    if since_us is not None:
        wanted &= submit_us >= since_us
    if until_us is not None:
        wanted &= submit_us < until_us
    chosen = np.sort(chosen[wanted][: log.jobs])
    if not len(chosen):
        asked = ", ".join(
            f"{name} = {value}" for name in ("since", "until", "jobs") if (value := getattr(log, name)) is not None
        )
        raise ScenarioError(f"{path}: none of its {len(jobs.ids):,} jobs is left with {asked}")
    return jobs.some(chosen)


def _moment_us(place: str, text: str, log: Log, jobs: Jobs) -> int:
    """A time of the log, on its own scale: a duration since the first submission, or a date and a time."""
    if re.fullmatch(r"\d+(\.\d+)? ?[a-z]+", text):
        try:
            return int(jobs.submit_us.min()) + Duration(text)
        except ValueError as error:
            raise ScenarioError(f"{place}: {error}") from None
    day = f"{text}T00:00:00" if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else text
    try:
        moment_us = time_us(day, find_zone(log.timezone))
    except ValueError:
        moment_us = None
    if moment_us is None:
        raise ScenarioError(f"{place}: expected {EXPECTED_TIME}, or a duration since the first job, such as 36h or 10d")
    if jobs.epoch_us is None:
        raise ScenarioError(
            f"{place}: this log does not say when it begins (no UnixStartTime): expected a duration "
            "since the first job, such as 36h or 10d"
        )
    return moment_us - jobs.epoch_us


def _sites(jobs: Jobs, log: Log, path: Path) -> tuple[tuple[str, ...], Int32]:
    """A site for each project, and the site of each job."""
    nowhere = np.empty(0, dtype=np.int32)
    if log.projects is None:
        return (), nowhere
    if log.projects not in jobs.fields:
        known = ", ".join(jobs.fields) or "none"
        raise ScenarioError(
            f'{path}: projects = "{log.projects}": this log does not say it; of such fields it has {known}'
        )
    values = jobs.fields[log.projects]
    names = sorted(set(values), key=_in_order)
    if len(names) > MOST_SITES:
        raise ScenarioError(
            f'{path}: projects = "{log.projects}": the log has {len(names):,} of them, and {MOST_SITES} can be, '
            "each with a daemon of its own: choose another field"
        )
    if len(names) < 2:
        return (), nowhere
    place = {name: index for index, name in enumerate(names)}
    sites = tuple(f"{log.projects}-{UNNAMED if name in {'', '-1'} else name}" for name in names)
    return sites, np.array([place[value] for value in values], np.int32)


def _in_order(text: str) -> tuple[float, str]:
    """The key of an order in which numbers come by their size, before texts."""
    return (float(text), "") if re.fullmatch(r"-?\d{1,15}", text) else (float("inf"), text)


def _outcomes(status: npt.NDArray[np.uint8], log: Log) -> tuple[Flags, Flags, Column]:
    """Which records claim their slot, which discard it, and why the latter do."""
    words = {**OUTCOMES, **log.outcome}
    claims = [CODES[name] for name, word in words.items() if word == "claim"]
    reasons = tuple(dict.fromkeys(word for word in words.values() if word not in {"claim", "never"}))
    reason = np.full(len(status), -1, dtype=np.int32)
    for name, word in words.items():
        if word in reasons:
            reason[status == CODES[name]] = reasons.index(word)
    return np.isin(status, claims), reason >= 0, Column(reason[reason >= 0], reasons)


def _workload(
    jobs: Jobs, log: Log, notes: list[str], *, sites: tuple[str, ...], site: Int32, name: str, seed: int
) -> Workload:
    slot, status = jobs.job, jobs.status
    start_us = jobs.submit_us.min()
    last_us = jobs.submit_us.copy()
    np.maximum.at(last_us, slot, jobs.end_us)
    ran = np.flatnonzero(jobs.run_s > 0)
    claims, discards, reasons = _outcomes(status, log)
    claimed, discarded = np.flatnonzero(claims), np.flatnonzero(discards)
    counted = {
        "job/cpuusage": jobs.run_s[ran],
        "job/success": np.where(np.isin(status[ran], [CODES["unknown"], CODES["completed"]]), 1, ABSENT),
        "job/failure": np.where(status[ran] == CODES["failed"], 1, ABSENT),
    }
    machine, machines, owner, users = _machines(jobs, log, claims, notes, seed)
    lasts_min = -((jobs.submit_us - last_us) // models.MINUTE_US) + 1_440
    blocks = Blocks()
    every = np.arange(len(jobs.ids), dtype=np.int32)
    blocks.add("alloc", jobs.submit_us - start_us, every, {"expire": lasts_min})
    blocks.add("counters", jobs.end_us[ran] - start_us, slot[ran], counted)
    blocks.add("discard", jobs.end_us[discarded] - start_us, slot[discarded], {"reason": reasons})
    asked = jobs.run_s[claimed] if isinstance(log.credits, RunTime) else log.credits
    asking = {"machine": Column(machine[claimed], machines), "credits": asked}
    blocks.add("claim", jobs.end_us[claimed] - start_us, slot[claimed], asking)
    due_us, kind, slot_column, row = blocks.timeline()
    slot_ids = () if log.slot is None else _slot_ids(jobs, log.slot)
    return Workload(
        name=name,
        seed=seed,
        duration_us=int(jobs.submit_us.max() - start_us),
        due_us=due_us,
        kind=kind,
        slot=slot_column,
        row=row,
        slot_numbers=numbers_of_ids(slot_ids) if slot_ids else jobs.numbers,
        arguments=blocks.arguments(),
        machines=machines,
        users=users,
        owner=owner,
        sites=sites,
        site=site,
        notes=tuple(notes),
        slot_ids=slot_ids,
    )


def _slot_ids(jobs: Jobs, pattern: str) -> tuple[str, ...]:
    """The ids of slots that are named after their jobs; of a job's id that is repeated, those with the new number."""
    before, after = pattern.split("{job}")
    repeated = {job for job, count in Counter(jobs.ids).items() if count > 1}
    first: set[str] = set()
    names = []
    for job, number in zip(jobs.ids, jobs.numbers.tolist(), strict=True):
        is_new = job not in repeated or job not in first
        first.add(job)
        names.append(f"{before}{job if is_new else number}{after}")
    return tuple(names)


def _machines(
    jobs: Jobs, log: Log, claims: Flags, notes: list[str], seed: int
) -> tuple[Int32, tuple[str, ...], Int32, tuple[str, ...]]:
    """Each record's machine, the machines, the owner of each, and the users."""
    if log.machine == "node" or (log.machine is None and jobs.owners):
        return _nodes(jobs, claims, notes)
    anonymous = int((jobs.group < 0).any())
    users = jobs.users if isinstance(jobs.users, int) else len(jobs.users)
    group, groups = jobs.group + anonymous, users + anonymous
    asked = log.machines or jobs.machine_count or DEFAULT_MACHINES
    count = max(asked, groups)
    if not log.machines and not jobs.machine_count:
        notes.append(f"it does not say how many machines there are: {count:,}; see machines in [log]")
    elif count > asked:
        said = f"machines = {log.machines}" if log.machines else f"MaxNodes is {asked:,}"
        notes.append(f"{said}, and {count:,} were made: one for each of its users, so that each has one")
    owner = (np.arange(count) % groups - anonymous).astype(np.int32)
    uniform = uniforms(seed, "machine", len(group))
    if log.machine == "any":
        machine = models.pick(uniform, count)
    else:
        own = (count - group + groups - 1) // groups
        machine = (group + groups * np.floor(uniform * own)).astype(np.int32)
    names = identities.users(seed, users) if isinstance(jobs.users, int) else jobs.users
    return machine[jobs.job], identities.machines(seed, count), owner, names


def _nodes(jobs: Jobs, claims: Flags, notes: list[str]) -> tuple[Int32, tuple[str, ...], Int32, tuple[str, ...]]:
    """As `_machines`, of the machines that the log names."""
    node, machines = jobs.node, jobs.nodes
    owner = np.full(len(machines), NOWHERE, np.int32) if jobs.owner is None else jobs.owner
    nowhere = claims & (node == NOWHERE)
    if nowhere.any():
        if UNNAMED not in machines:
            machines, owner = (*machines, UNNAMED), np.append(owner, np.int32(NOWHERE))
        node = np.where(nowhere, np.int32(machines.index(UNNAMED)), node)
        notes.append(
            f'of {np.count_nonzero(nowhere):,} jobs it does not say where they ran: their machine is "{UNNAMED}"'
        )
    return node, machines, owner, jobs.owners
