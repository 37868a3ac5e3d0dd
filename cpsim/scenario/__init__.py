"""Sources of workloads: scenarios, job logs, traces and programs.

TOML ──▶ source, schema ──▶ Scenario ──▶ generation (models, identities, streams) ──▶ Workload
SWF log ──▶ swf (identities, streams) ───────────────────────────────────────────────▶ Workload
Parquet ◀──▶ columns ◀───────────────────────────────────────────────────────────────▶ Workload
CSV, Parquet ──▶ trace ──────────────────────────────────────────────────────────────▶ Workload
Python ──▶ generator ──▶ trace ──────────────────────────────────────────────────────▶ Workload
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cpsim.scenario import generator, source
from cpsim.scenario.formats import columns, swf, trace
from cpsim.scenario.generation import generate
from cpsim.scenario.schema import Generated, Logged, Scenario
from cpsim.scenario.values import ScenarioError, SettingError
from cpsim.scenario.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Generated", "Logged", "Scenario", "ScenarioError", "Workload", "generate", "load_workload"]


def load_workload(path: Path, seed: int | None = None, settings: Sequence[str] = ()) -> Workload:
    """Read a scenario (`.toml`), a job log (`.swf`, `.swf.gz`), a trace (`.csv`, `.parquet`) or a program (`.py`).

    Args:
        path: the file.
        seed: reproduces the workload byte for byte; None takes the scenario's seed, or 1.
        settings: overrides of a scenario's keys, as `population.machines=50000`.

    Raises:
        ScenarioError: the file has a mistake, which the message locates.
        OSError: the file cannot be read.
    """
    name = path.name.lower()
    if name.endswith(".toml"):
        scenario = source.load(path, settings)
        if isinstance(scenario, Scenario):
            return generate(scenario, seed)
        if isinstance(scenario, Logged):
            log = swf.load(Path(scenario.log.file), scenario.seed if seed is None else seed, scenario.log)
            return dataclasses.replace(log, name=scenario.name, faults=tuple(scenario.faults))
        made = generator.load(path.parent / scenario.generator, scenario.seed if seed is None else seed, scenario.name)
        return dataclasses.replace(made, faults=(*made.faults, *scenario.faults))
    if settings:
        raise SettingError(f"{path}: --set is for a scenario (.toml), and this file has no keys")
    seed = 1 if seed is None else seed
    if name.endswith((".swf", ".swf.gz")):
        return swf.load(path, seed)
    if name.endswith(trace.SUFFIXES):
        is_workload = name.endswith(".parquet") and columns.is_one(path)
        return columns.read(path) if is_workload else trace.load(path, seed)
    if name.endswith(".py"):
        return generator.load(path, seed)
    raise ScenarioError(
        f"{path}: expected a scenario (.toml) or a job log (.swf, .swf.gz), a trace (.csv, .parquet) or a program (.py)"
    )
