"""What should happen: a scenario or a job log, made exact as a workload.

TOML ──▶ schema ──▶ Scenario ──▶ workload (models, identities, streams) ──▶ Workload
SWF log ──▶ swf (identities, streams) ────────────────────────────────────▶ Workload
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.scenario import schema, swf
from cpsim.scenario.generation import generate
from cpsim.scenario.schema import Scenario
from cpsim.scenario.values import ScenarioError
from cpsim.scenario.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Scenario", "ScenarioError", "Workload", "generate", "load_workload"]


def load_workload(path: Path, seed: int | None = None) -> Workload:
    """Read a scenario (`.toml`) or a job log (`.swf`, `.swf.gz`) and make its workload.

    Args:
        path: the file.
        seed: reproduces the workload byte for byte; None takes the scenario's own, which is 1 for a log.

    Raises:
        ScenarioError: the file has a mistake, which the message locates.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() == ".toml":
        return generate(schema.load(path), seed)
    if path.name.lower().endswith((".swf", ".swf.gz")):
        return swf.load(path, 1 if seed is None else seed)
    raise ScenarioError(f"{path}: expected a scenario (.toml) or a job log (.swf, .swf.gz)")
