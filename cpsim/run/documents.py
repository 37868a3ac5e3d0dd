"""The documents of a run: what its run folder has as JSON, and `--json` prints."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cpdaemon.endpoint import UnixEndpoint
from cpsim.judge.repeat import shell_lines
from cpsim.judge.timeline import timeline

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Example, Verdict
    from cpsim.run.capacity import Capacity, SearchRequest
    from cpsim.run.pipeline import Run
    from cpsim.run.summary import Summary


def json_text(document: dict[str, Any]) -> str:
    """A document in the JSON format of the run folder."""
    return json.dumps(document, indent=2) + "\n"


def run_document(run: Run, summary: Summary) -> dict[str, Any]:
    """`run.json`: scenario, target, figures, versions and machine."""
    plan, evidence, workload = run.plan, run.evidence, run.plan.workload
    return {
        "scenario": workload.name,
        "seed": workload.seed,
        "workload_sha256": plan.digest or workload.digest(),
        "notes": list(workload.notes),
        "slot_prefix": plan.slot_prefix,
        "endpoint": "embedded" if plan.embedded else str(plan.target.endpoint),
        "server": None if plan.embedded or plan.target.server is None else str(plan.target.server),
        **({} if plan.target.accounts is None else {"accounts": str(plan.target.accounts)}),
        "project": None if workload.sites else evidence.project,
        "projects": list(workload.projects) or None,
        "pace": str(plan.pace),
        "started": plan.started.isoformat(timespec="milliseconds"),
        "interrupted": evidence.interrupted,
        "faults": [{name: fault[name] for name in ("fault", "selected", "fired")} for fault in evidence.faults],
        **summary.figures(),
        **_where(),
    }


def capacity_document(found: Capacity, request: SearchRequest) -> dict[str, Any]:
    """`capacity.json`: the steps of a search, the target, versions and machine."""
    return {
        "scenario": request.workload.name,
        "seed": request.workload.seed,
        "endpoint": str(request.target.endpoint),
        "server": None if request.target.server is None else str(request.target.server),
        "processes": request.processes,
        **found.document(),
        **_where(),
    }


def verdict_document(evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """`verdict.json`: the verdict, and how to repeat the anomalies."""
    examples = [
        {
            "name": name,
            "slot": example.anomaly.subject,
            "detail": example.anomaly.detail,
            "timeline": timeline(example).lines,
            "repeat": _repeat(evidence, example),
        }
        for name, examples in verdict.examples.items()
        for example in examples
    ]
    return verdict.document() | {"examples": examples, "repeat": evidence.command}


def _repeat(evidence: Evidence, example: Example) -> list[str]:
    """Shell lines that repeat an example's commands on another slot."""
    endpoint = evidence.endpoint
    lines = shell_lines(example.steps, endpoint, evidence.project)
    if evidence.embedded and isinstance(endpoint, UnixEndpoint):
        lines.insert(0, f"cpsim serve --unix {endpoint.path} --http 127.0.0.1:8080 &")
    return lines


def _where() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "versions": {"cpsim": version("creditpiggy-sim")}
        | {name: version(name) for name in ("numpy", "faker", "pyarrow")}
        | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
    }
