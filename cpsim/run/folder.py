"""The run folder: the files that a run writes.

| file | content |
|---|---|
| `run.json` | scenario, seed, versions, endpoint, machine, figures |
| `journal.parquet` | a row per operation sent: id, slot, kind, due, sent, answered, outcome, error, arguments |
| `ledger.parquet` | a row per slot of the server, if its ledger can be read |
| `accounts.parquet` | a row per machine and user of the server, if its accounts can be read |
| `verdict.json` | the verdict, anomalies with examples and the commands that repeat them, and what was not verified |
| `latency.hgrm` | service time in milliseconds, in the format of HdrHistogram's tools |
| `response.hgrm` | response time, likewise, if operations had due times |
| `effect.hgrm` | apply delay (from OK to applied), likewise, if the server's ledger shows it |
| `seconds.parquet` | a row per second: operations, failures, and times in milliseconds |
| `faults.json` | the faults of the run, if any, and each firing |
| `report.html` | the run on one page |

A search for capacity leaves `capacity.json`, and two `.hgrm` of the highest rate that passed.

The arguments in the journal are typed columns, those of `cpsim.protocol.arguments`. Earlier versions wrote a text
column `arguments`; `cpsim run` and `cpsim report` still open such a journal.

The folder appears whole: files are written into a `.partial` folder, which is renamed at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpdaemon.endpoint import UnixEndpoint
from cpsim.errors import CpsimError
from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.repeat import shell_lines
from cpsim.judge.timeline import timeline
from cpsim.protocol import arguments
from cpsim.run.latency import write_hgrm
from cpsim.scenario.formats.arrow import Operations

if TYPE_CHECKING:
    from cpsim.judge.verdict import Example
    from cpsim.run.capacity import Capacity, SearchRequest
    from cpsim.run.pipeline import Run
    from cpsim.run.summary import Summary

JOURNAL_SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("slot", pa.string()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("due_us", pa.int64()),
        ("sent_us", pa.int64()),
        ("answered_us", pa.int64()),
        ("outcome", pa.dictionary(pa.int8(), pa.string())),
        ("error", pa.dictionary(pa.int16(), pa.string())),
        *arguments.fields(),
    ]
)
PROJECT: Final = pa.field("project", pa.dictionary(pa.int8(), pa.string()))
"""An additional column, if the workload has several projects."""
SOCKET: Final = "creditapi.socket"
SERVE: Final = f"cpsim serve --unix {SOCKET} --http 127.0.0.1:8080 &"
INTEGERS: Final = ("id", "due_us", "sent_us", "answered_us")
ROWS: Final = 65_536
"""Rows of the journal in memory at a time."""


class FolderExists(CpsimError):
    """The output folder exists."""


def claim_folder(folder: Path) -> Path:
    """Make the `.partial` folder of a run folder; returns its path.

    Raises:
        FolderExists: the run folder exists.
        OSError: the folder cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise FolderExists(f"{folder} is there already; name another folder with --output")
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def new_name(scenario: Path) -> Path:
    """The default run folder of a scenario: below `runs/`, with the scenario's name and the time."""
    name = scenario.name.removesuffix(".gz").rpartition(".")[0]
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def abandon(partial: Path) -> None:
    """Remove the `.partial` folder of a failed run."""
    shutil.rmtree(partial, ignore_errors=True)


def json_text(document: dict[str, Any]) -> str:
    """A document in the JSON format of the run folder."""
    return json.dumps(document, indent=2) + "\n"


def write(run: Run, summary: Summary, partial: Path, folder: Path) -> None:
    """Write all files of a run into `partial`, then rename it to `folder`."""
    (partial / "run.json").write_text(json_text(run_document(run, summary)), encoding="utf-8")
    (partial / "verdict.json").write_text(json_text(verdict_document(run)), encoding="utf-8")
    write_journal(run, partial / "journal.parquet")
    for table, name in ((run.slots, "ledger"), (run.accounts, "accounts")):
        if table is not None:
            pq.write_table(table, partial / f"{name}.parquet", compression="zstd")
    _write_times(summary, partial)
    if summary.seconds:
        pq.write_table(pa.Table.from_pylist(summary.seconds), partial / "seconds.parquet", compression="zstd")
    if run.faults:
        text = json_text({"faults": run.faults, "firings": run.firings})
        (partial / "faults.json").write_text(text, encoding="utf-8")
    (partial / "report.html").write_text(_report(run, summary), encoding="utf-8")
    partial.rename(folder)


def run_document(run: Run, summary: Summary) -> dict[str, Any]:
    """`run.json`: scenario, target, figures, versions and machine."""
    return {
        "scenario": run.workload.name,
        "seed": run.workload.seed,
        "workload_sha256": run.workload.digest(),
        "slot_prefix": run.slot_prefix,
        "endpoint": "embedded" if run.embedded else str(run.target.endpoint),
        "server": None if run.embedded or run.target.server is None else str(run.target.server),
        "project": None if run.workload.sites or run.target.credentials is None else run.target.credentials[0],
        "projects": list(run.workload.projects) or None,
        "pace": str(run.pace),
        "started": run.started.isoformat(timespec="milliseconds"),
        "interrupted": run.interrupted,
        "faults": [{name: fault[name] for name in ("fault", "selected", "fired")} for fault in run.faults],
        **summary.figures(),
        **_where(),
    }


def _where() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "versions": {"cpsim": version("creditpiggy-sim")}
        | {name: version(name) for name in ("numpy", "faker", "pyarrow")}
        | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
    }


def write_capacity(found: Capacity, request: SearchRequest, partial: Path, folder: Path) -> dict[str, Any]:
    """Write the result of a search into `partial`, then rename it to `folder`; returns its document."""
    document = {
        "scenario": request.workload.name,
        "seed": request.workload.seed,
        "endpoint": str(request.target.endpoint),
        "server": None if request.target.server is None else str(request.target.server),
        "processes": request.processes,
        **found.document(),
        **_where(),
    }
    (partial / "capacity.json").write_text(json_text(document), encoding="utf-8")
    if found.best is not None:
        _write_times(found.best.summary, partial)
    partial.rename(folder)
    return document


def _write_times(summary: Summary, partial: Path) -> None:
    times = {"latency": summary.service, "response": summary.response, "effect": summary.apply_delay}
    for name, recorded in times.items():
        if recorded is not None:
            write_hgrm(recorded, partial / f"{name}.hgrm")


def verdict_document(run: Run) -> dict[str, Any]:
    """`verdict.json`: the verdict, and how to repeat the anomalies."""
    examples = [
        {
            "name": name,
            "slot": example.anomaly.subject,
            "detail": example.anomaly.detail,
            "timeline": timeline(example).lines,
            "repeat": _repeat(run, example),
        }
        for name, examples in run.verdict.examples.items()
        for example in examples
    ]
    return run.verdict.document() | {"examples": examples, "repeat": run.command}


def _repeat(run: Run, example: Example) -> list[str]:
    """Shell lines that repeat an example's commands on another slot."""
    if run.embedded:
        return [SERVE, *shell_lines(example.steps, UnixEndpoint(SOCKET))]
    credentials = run.target.credentials
    return shell_lines(example.steps, run.target.endpoint, credentials and credentials[0])


def write_journal(run: Run, path: Path, at_once: int = ROWS) -> None:
    """Write the journal of a run, `at_once` rows at a time."""
    outcomes = pa.array([outcome.name.lower() for outcome in OperationOutcome])
    errors = pa.array(run.errors)
    workload = run.workload
    projects = pa.array(workload.projects, pa.string())
    schema = JOURNAL_SCHEMA.append(PROJECT) if workload.sites else JOURNAL_SCHEMA
    project = np.array([workload.projects.index(name) for name in workload.sites], np.int8)
    operations = Operations(workload, run.slot_prefix)
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "slot"]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["kind", "outcome", "error", "project", *texts],
        column_encoding=dict.fromkeys(INTEGERS, "DELTA_BINARY_PACKED"),
    ) as writer:
        for start in range(0, len(run.records), at_once):
            chunk = run.records[start : start + at_once]
            ops = chunk["op"]
            project_codes = project[workload.site[workload.slot[ops]]] if workload.sites else None
            due = None if run.schedule_us is None else run.schedule_us[ops]
            writer.write_table(
                pa.table(
                    [
                        pa.array(ops.astype(np.int64)),
                        operations.slots(ops),
                        operations.kinds(ops),
                        pa.nulls(len(chunk), pa.int64()) if due is None else pa.array(due),
                        pa.array(chunk["sent_ns"] // 1000),
                        pa.array(chunk["answered_ns"] // 1000),
                        pa.DictionaryArray.from_arrays(pa.array(chunk["outcome"].astype(np.int8)), outcomes),
                        pa.DictionaryArray.from_arrays(pa.array(chunk["error"].astype(np.int16)), errors),
                        *operations.arguments(ops),
                        *(
                            []
                            if project_codes is None
                            else [pa.DictionaryArray.from_arrays(pa.array(project_codes), projects)]
                        ),
                    ],
                    schema=schema,
                )
            )


def _report(run: Run, summary: Summary) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("cpsim.run").joinpath("page.html.j2").read_text(encoding="utf-8"))
    verdict = verdict_document(run)
    examples = zip(verdict["examples"], itertools.chain(*run.verdict.examples.values()), strict=True)
    return template.render(
        run=run_document(run, summary),
        summary=summary,
        verdict=verdict,
        examples=[(document, timeline(example)) for document, example in examples],
    )
