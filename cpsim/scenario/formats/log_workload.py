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
from cpsim.scenario.formats.jobs import CODES, NOWHERE, STATUSES, places, taken_at
from cpsim.scenario.formats.times import EXPECTED_TIME, time_us
from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import identities
from cpsim.scenario.models.numbers import RunTime
from cpsim.scenario.schema import MOST_SITES, OUTCOMES, Log
from cpsim.scenario.streams import uniforms
from cpsim.scenario.values import Duration, ScenarioError
from cpsim.scenario.workload import ABSENT, Column, Int32, Int64, Workload, numbers_of_ids
from cpsim.system.external_sort import in_order
from cpsim.system.growing import changeable, made
from cpsim.system.mapped import stretches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

    from cpsim.scenario.formats.jobs import Jobs
    from cpsim.scenario.workload import Given

    Flags = npt.NDArray[np.bool_]

DEFAULT_MACHINES: Final = 1_000
_SUBMISSION: Final = np.dtype([("submit_us", np.int64), ("job", np.int64)])
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
    unknown = 0
    for where in stretches(len(jobs.job)):
        status = jobs.status[where]
        unsettled[jobs.job[where][status < CODES["part"]]] = False
        unknown += int(np.count_nonzero(status == CODES["unknown"]))
    if count := np.count_nonzero(unsettled):
        notes.append(f"{count:,} jobs have not ended in this log, and never settle")
    if unknown and {**OUTCOMES, **log.outcome}["unknown"] == "claim":
        notes.append(
            f"{unknown:,} ends of jobs that are not known are taken as completed: see outcome.unknown in [log]"
        )
    return _workload(jobs, log, notes, sites=sites, site=site, name=name, seed=seed)


def part_of(jobs: Jobs, log: Log, path: Path) -> Jobs:
    """The part of a log that is wanted."""
    if log.since is None and log.until is None and log.jobs is None:
        return jobs
    bounds = [
        None if text is None else _moment_us(f'{path}: {name} = "{text}"', text, log, jobs)
        for name, text in (("since", log.since), ("until", log.until))
    ]
    since_us, until_us = bounds
    wanted, left = np.zeros(len(jobs.ids), np.bool_), len(jobs.ids) if log.jobs is None else log.jobs
    for piece in in_order(_submissions(jobs), "submit_us"):
        is_within = np.ones(len(piece), np.bool_)
        if since_us is not None:
            is_within &= piece["submit_us"] >= since_us
        if until_us is not None:
            is_within &= piece["submit_us"] < until_us
        places = piece["job"][is_within][:left]
        wanted[places] = True
        left -= len(places)
    chosen = np.flatnonzero(wanted)
    if not len(chosen):
        asked = ", ".join(
            f"{name} = {value}" for name in ("since", "until", "jobs") if (value := getattr(log, name)) is not None
        )
        raise ScenarioError(f"{path}: none of its {len(jobs.ids):,} jobs is left with {asked}")
    return jobs.some(chosen)


def _submissions(jobs: Jobs) -> Iterator[npt.NDArray[Any]]:
    for where in stretches(len(jobs.submit_us)):
        piece = np.empty(where.stop - where.start, _SUBMISSION)
        piece["submit_us"], piece["job"] = jobs.submit_us[where], np.arange(where.start, where.stop)
        yield piece


def _moment_us(place: str, text: str, log: Log, jobs: Jobs) -> int:
    """A time of the log, on its own scale: a duration since the first submission, or a date and a time."""
    if re.fullmatch(r"\d+(\.\d+)? ?[a-z]+", text):
        try:
            return _least(jobs.submit_us) + Duration(text)
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
    texts = (*jobs.projects, "")  # the last one where it is NOWHERE
    used = {code for where in stretches(len(jobs.project)) for code in np.unique(jobs.project[where]).tolist()}
    names = sorted((texts[code] for code in used), key=_in_order)
    if len(names) > MOST_SITES:
        raise ScenarioError(
            f'{path}: projects = "{log.projects}": the log has {len(names):,} of them, and {MOST_SITES} can be, '
            "each with a daemon of its own: choose another field"
        )
    if len(names) < 2:
        return (), nowhere
    place = {name: index for index, name in enumerate(names)}
    of_code = np.array([place.get(text, NOWHERE) for text in texts], np.int32)
    sites = tuple(f"{log.projects}-{UNNAMED if name in {'', '-1'} else name}" for name in names)
    return sites, made(len(jobs.project), np.int32, lambda where: of_code[jobs.project[where]])


def _in_order(text: str) -> tuple[float, str]:
    """The key of an order in which numbers come by their size, before texts."""
    return (float(text), "") if re.fullmatch(r"-?\d{1,15}", text) else (float("inf"), text)


def _outcomes(log: Log) -> tuple[Flags, Int32, tuple[str, ...]]:
    """Of each status whether its records claim their slot, and why they discard it, an index into the reasons."""
    words: dict[str, str] = {str(status): word for status, word in {**OUTCOMES, **log.outcome}.items()}
    claims = np.array([words.get(status) == "claim" for status in STATUSES])
    reasons = tuple(dict.fromkeys(word for word in words.values() if word not in {"claim", "never"}))
    places = {reason: place for place, reason in enumerate(reasons)}
    return claims, np.array([places.get(words.get(status, ""), NOWHERE) for status in STATUSES], np.int32), reasons


def _workload(
    jobs: Jobs, log: Log, notes: list[str], *, sites: tuple[str, ...], site: Int32, name: str, seed: int
) -> Workload:
    start_us, count = _least(jobs.submit_us), len(jobs.ids)
    machine, machines, owner, users = _machines(jobs, log, notes, seed)
    last_us = changeable(jobs.submit_us)
    for where in stretches(len(jobs.job)):
        np.maximum.at(last_us, jobs.job[where], jobs.end_us[where])
    blocks = Blocks()
    lasts_min = made(
        count, np.int64, lambda where: -((jobs.submit_us[where] - last_us[where]) // models.MINUTE_US) + 1_440
    )
    submit_us = made(count, np.int64, lambda where: jobs.submit_us[where] - start_us)
    every = made(count, np.int32, lambda where: np.arange(where.start, where.stop))
    blocks.add("alloc", submit_us, every, {"expire": lasts_min})
    _add_ends(blocks, jobs, log, start_us, Column(machine, machines))
    due_us, kind, slot_column, row = blocks.timeline()
    slot_ids = () if log.slot is None else _slot_ids(jobs, log.slot)
    return Workload(
        name=name,
        seed=seed,
        duration_us=max(int(jobs.submit_us[where].max()) for where in stretches(count)) - start_us,
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


def _add_ends(blocks: Blocks, jobs: Jobs, log: Log, start_us: int, machine: Column) -> None:
    """Add what is sent when jobs, or parts of them, have ended."""
    status, records = jobs.status, len(jobs.job)
    claims, reason, reasons = _outcomes(log)

    def add(kind: str, at: Int64, given: Mapping[str, Given]) -> None:
        due_us = made(len(at), np.int64, lambda where: jobs.end_us[at[where]] - start_us)
        blocks.add(kind, due_us, taken_at(jobs.job, at), given)

    ran = places(records, lambda where: jobs.run_s[where] > 0)
    completed = np.array([name in {"unknown", "completed"} for name in STATUSES])
    counted = {
        "job/cpuusage": taken_at(jobs.run_s, ran),
        "job/success": made(len(ran), np.int64, lambda where: np.where(completed[status[ran[where]]], 1, ABSENT)),
        "job/failure": made(
            len(ran), np.int64, lambda where: np.where(status[ran[where]] == CODES["failed"], 1, ABSENT)
        ),
    }
    add("counters", ran, counted)
    discarded = places(records, lambda where: reason[status[where]] != NOWHERE)
    because = made(len(discarded), np.int32, lambda where: reason[status[discarded[where]]])
    add("discard", discarded, {"reason": Column(because, reasons)})
    claimed = places(records, lambda where: claims[status[where]])
    asked = taken_at(jobs.run_s, claimed) if isinstance(log.credits, RunTime) else log.credits
    add("claim", claimed, {"machine": Column(taken_at(machine.values, claimed), machine.texts), "credits": asked})


def _least(values: Int64) -> int:
    return min(int(values[where].min()) for where in stretches(len(values)))


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
    jobs: Jobs, log: Log, notes: list[str], seed: int
) -> tuple[Int32, tuple[str, ...], Int32, tuple[str, ...]]:
    """Each record's machine, the machines, the owner of each, and the users."""
    if log.machine == "node" or (log.machine is None and jobs.owners):
        return _nodes(jobs, _outcomes(log)[0], notes)
    anonymous = int(any((jobs.group[where] < 0).any() for where in stretches(len(jobs.group))))
    users = jobs.users if isinstance(jobs.users, int) else len(jobs.users)
    groups = users + anonymous
    asked = log.machines or jobs.machine_count or DEFAULT_MACHINES
    count = max(asked, groups)
    if not log.machines and not jobs.machine_count:
        notes.append(f"it does not say how many machines there are: {count:,}; see machines in [log]")
    elif count > asked:
        said = f"machines = {log.machines}" if log.machines else f"MaxNodes is {asked:,}"
        notes.append(f"{said}, and {count:,} were made: one for each of its users, so that each has one")
    owner = (np.arange(count) % groups - anonymous).astype(np.int32)

    def picked(where: slice) -> Int32:
        uniform = uniforms(seed, "machine", where.stop - where.start, where.start)
        if log.machine == "any":
            return models.pick(uniform, count)
        group = jobs.group[where] + anonymous
        own = (count - group + groups - 1) // groups
        chosen: Int32 = (group + groups * np.floor(uniform * own)).astype(np.int32)
        return chosen

    machine = made(len(jobs.group), np.int32, picked)
    names = identities.users(seed, users) if isinstance(jobs.users, int) else jobs.users
    return taken_at(machine, jobs.job), identities.machines(seed, count), owner, names


def _nodes(jobs: Jobs, claims: Flags, notes: list[str]) -> tuple[Int32, tuple[str, ...], Int32, tuple[str, ...]]:
    """As `_machines`, of the machines that the log names."""
    node, machines = jobs.node, jobs.nodes
    owner = np.full(len(machines), NOWHERE, np.int32) if jobs.owner is None else jobs.owner
    nowhere = places(len(node), lambda where: claims[jobs.status[where]] & (node[where] == NOWHERE))
    if len(nowhere):
        if UNNAMED not in machines:
            machines, owner = (*machines, UNNAMED), np.append(owner, np.int32(NOWHERE))
        node = changeable(node)
        node[nowhere] = machines.index(UNNAMED)
        notes.append(f'of {len(nowhere):,} jobs it does not say where they ran: their machine is "{UNNAMED}"')
    return node, machines, owner, jobs.owners
