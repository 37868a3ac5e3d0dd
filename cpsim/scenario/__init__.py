"""Sources of workloads: scenarios, job logs, traces and programs.

TOML ──▶ source, schema ──▶ Scenario ──▶ generation (models, identities, streams) ──▶ Workload
job log ──▶ job_logs, jobs ──▶ Jobs ──▶ log_workload (identities, streams) ──────────▶ Workload
Parquet ◀──▶ columns ◀───────────────────────────────────────────────────────────────▶ Workload
CSV, Parquet ──▶ trace ──────────────────────────────────────────────────────────────▶ Workload
Python ──▶ generator ──▶ trace ──────────────────────────────────────────────────────▶ Workload
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cpsim.scenario import generator, source
from cpsim.scenario.formats import columns, job_logs, log_workload, trace, trace_table
from cpsim.scenario.generation import generate, generate_share
from cpsim.scenario.schema import Generated, Logged, Scenario
from cpsim.scenario.share import share_of
from cpsim.scenario.values import ScenarioError, SettingError
from cpsim.scenario.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.scenario.share import WorkloadShare

__all__ = ["Generated", "Logged", "Scenario", "ScenarioError", "Workload", "generate", "load_share", "load_workload"]


def load_workload(
    path: Path, seed: int | None = None, settings: Sequence[str] = (), *, keep_ids: bool = False
) -> Workload:
    """Read a scenario (`.toml`), a job log, a trace (`.csv`, `.parquet`) or a program (`.py`).

    Args:
        path: the file.
        seed: reproduces the workload byte for byte; None takes the scenario's seed, or 1.
        settings: overrides of a scenario's keys, as `population.machines=50000`; of a job log's, as `log.machines=50`.
        keep_ids: whether the slots of a trace keep their ids, and those of a job log have the jobs'.

    Raises:
        ScenarioError: the file has a mistake, which the message locates.
        OSError: the file cannot be read.
    """
    made = _load(path, seed, settings, keep_ids=keep_ids)
    if keep_ids and not made.slot_ids:
        raise SettingError(f"{path}: --keep-ids is for a job log or a trace, and this file has no ids to keep")
    return _noted(made)


def load_share(path: Path, seed: int | None, settings: Sequence[str], index: int, count: int) -> WorkloadShare:
    """Read a share of a workload; that of a scenario of one site is never whole in this process.

    Args:
        path: see `load_workload`, as for what is raised.
        seed: likewise.
        settings: likewise.
        index: which share of all, from 0.
        count: how many shares there are. Of one, it is the whole.
    """
    if path.name.lower().endswith(".toml"):
        scenario = source.load(path, settings)
        if isinstance(scenario, Scenario) and len(scenario.site) < 2:
            share = generate_share(scenario, seed, index, count)
            return share._replace(workload=_noted(share.workload))
    return share_of(load_workload(path, seed, settings), index, count)


def _noted(made: Workload) -> Workload:
    return dataclasses.replace(made, notes=tuple(dict.fromkeys((*made.notes, *made.oddities()))))


def _load(path: Path, seed: int | None, settings: Sequence[str], *, keep_ids: bool) -> Workload:
    name = path.name.lower()
    if name.endswith(".toml"):
        return _of_scenario(path, seed, settings, keep_ids=keep_ids)
    is_table = name.endswith(trace.SUFFIXES)
    is_workload = name.endswith(".parquet") and columns.is_one(path)
    is_trace = is_table and not is_workload and _is_trace(path, settings)
    if settings and (is_workload or is_trace or name.endswith(".py")):
        raise SettingError(
            f"{path}: --set is for a scenario (.toml) or a job log, as are --jobs, --since, --until and --skip-bad, "
            "and this file has no keys"
        )
    if is_workload:
        return columns.read(path)
    if is_trace:
        return trace.load(path, 1 if seed is None else seed, keep_ids=keep_ids)
    if name.endswith(".py"):
        return generator.load(path, 1 if seed is None else seed)
    if not is_table and not settings and job_logs.format_of(path) is None:
        raise ScenarioError(
            f"{path}: expected a scenario (.toml), a trace (.csv, .parquet), a program (.py), or a job log: "
            f"{job_logs.known()}"
        )
    return _of_log(source.of_log(path, settings), seed, keep_ids=keep_ids)


def _is_trace(path: Path, settings: Sequence[str]) -> bool:
    """Whether a table is one of commands, and not one of jobs."""
    names = set(trace_table.column_names(path))
    if names & {"kind", "slot"}:
        return True
    return not settings and not {"job", "submit"} <= names and not job_logs.is_sure(path)


def _of_scenario(path: Path, seed: int | None, settings: Sequence[str], *, keep_ids: bool) -> Workload:
    scenario = source.load(path, settings)
    if isinstance(scenario, Scenario):
        return generate(scenario, seed)
    if isinstance(scenario, Logged):
        return _of_log(scenario, seed, keep_ids=keep_ids)
    made = generator.load(path.parent / scenario.generator, scenario.seed if seed is None else seed, scenario.name)
    return dataclasses.replace(made, faults=(*made.faults, *scenario.faults))


def _of_log(scenario: Logged, seed: int | None, *, keep_ids: bool) -> Workload:
    log = scenario.log
    if keep_ids and log.slot is None:
        log = msgspec.structs.replace(log, slot="{job}")
    made = log_workload.load(log, Path(log.file), scenario.seed if seed is None else seed, scenario.name)
    return dataclasses.replace(made, faults=tuple(scenario.faults))
