"""What a job manager's own record says of its jobs, against what the ledger says of their slots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from cpsim.errors import UsageError
from cpsim.scenario import Logged, job_logs, source
from cpsim.scenario.formats.log_workload import part_of
from cpsim.scenario.formats.trace_table import column_names
from cpsim.scenario.schema import OUTCOMES, ColumnName, Log, TimeColumn

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

CLAIMED, DISCARDED, OUTSTANDING = 1, 2, 4
"""What a slot may be, as bits; an outstanding one may also not be there."""
AGREES: Final = "agrees"
MISSING: Final = "missing: the ledger has no slot of this job"
EXTRA: Final = "extra: the record has no job of this slot"
OTHERS: Final = "named otherwise: not compared"
JOB: Final = "{job}"
SLOT_TABLE: Final[dict[ColumnName, str | TimeColumn]] = {"job": "slot", "status": "state"}
"""The columns of a table of slots and their states, in place of those of jobs."""

COMPARED: Final = f"""
CREATE TEMP TABLE expected_slots AS
SELECT CASE
    WHEN e.slot IS NULL THEN if(starts_with(l.slot, $1) AND ends_with(l.slot, $2), '{EXTRA}', '{OTHERS}')
    WHEN wants & CASE l.state WHEN 'claimed' THEN {CLAIMED} WHEN 'discarded' THEN {DISCARDED} ELSE {OUTSTANDING} END > 0
        THEN '{AGREES}'
    WHEN l.slot IS NULL THEN '{MISSING}'
    ELSE 'different: the slot is ' || l.state || ', and the job ' || e.status END AS finding,
    coalesce(e.slot, l.slot) AS slot, e.status AS job_status, l.project, l.state AS ledger_state, l.machine
FROM expected e FULL JOIN ledger l ON e.slot = l.slot
"""
TOTALS: Final = f"""
SELECT finding, count(*) AS slots FROM expected_slots WHERE finding <> '{OTHERS}' GROUP BY finding
ORDER BY slots DESC, finding
"""
NOT_COMPARED: Final = (
    f"SELECT finding, count(*) AS slots FROM expected_slots WHERE finding = '{OTHERS}' GROUP BY finding"
)
DIFFERENCES: Final = f"""
SELECT finding, slot, job_status, project, ledger_state, machine AS ledger_machine
FROM expected_slots WHERE finding NOT IN ('{AGREES}', '{OTHERS}') ORDER BY finding, slot LIMIT $1
"""


def read(path: Path, slot: str) -> tuple[pa.Table, list[str], str]:
    """What a record expects of slots, sentences on what is odd about it, and how slots are named.

    Args:
        path: a job log, a table of slots and states, or a scenario file with a `[log]`.
        slot: how slots are named after jobs, with `{job}` in it; `{job}` alone leaves it to a `[log]` that says so.

    Returns:
        A row per job: slot, status (of the job), wants (what its slot may be, as bits).

    Raises:
        CpsimError: the record cannot be read; it is a UsageError if there is no `{job}`.
        OSError: likewise.
    """
    if slot.count(JOB) != 1:
        raise UsageError(f'--expected-slot "{slot}": expected a text with {{job}} in it once, such as slurm-{{job}}')
    log = _log(path)
    is_part = (log.since, log.until, log.jobs) != (None, None, None)
    jobs, notes = job_logs.read(Path(log.file), log, needs_times=is_part)
    jobs = part_of(jobs, log, path)
    slot = log.slot if slot == JOB and log.slot is not None else slot
    before, after = slot.split(JOB)
    outcomes = jobs.outcomes()
    wants = {status: _wanted(status, log) for status in set(outcomes.values())}
    return (
        pa.table(
            {
                "slot": pa.array([f"{before}{job}{after}" for job in outcomes], pa.string()),
                "status": pa.array(outcomes.values(), pa.string()),
                "wants": pa.array([wants[status] for status in outcomes.values()], pa.int8()),
            }
        ),
        notes,
        slot,
    )


def verdict(totals: pd.DataFrame) -> tuple[str, bool]:
    """Whether the ledger is as the record has it, in a sentence, and as a value; of `TOTALS`."""
    count, there = int(totals.loc[totals["finding"] != AGREES, "slots"].sum()), int(totals["slots"].sum())
    if count:
        return f"{count:,} of {there:,} slots are not as the job manager's record has them.", False
    return f"All {there:,} slots are as the job manager's record has them.", True


def compare(database: duckdb.DuckDBPyConnection, expected: pa.Table, slot: str) -> None:
    """Make the table `expected_slots`: a row for each slot that the record or the ledger has."""
    before, after = slot.split(JOB)
    database.register("expected", expected)
    database.execute(COMPARED, [before, after])
    database.unregister("expected")


def _log(path: Path) -> Log:
    """How a record is read."""
    if path.suffix.lower() == ".toml":
        scenario = source.load(path)
        if not isinstance(scenario, Logged):
            raise UsageError(f"--expected {path}: expected a job log, or a scenario file with a [log]")
        return scenario.log
    is_table = path.suffix.lower() in {".csv", ".parquet"} and not job_logs.is_sure(path)
    if is_table and {"slot", "state"} <= set(column_names(path)):
        return Log(file=str(path), columns=SLOT_TABLE)
    return Log(file=str(path))


def _wanted(status: str, log: Log) -> int:
    """What a slot may be whose job has a status."""
    if status not in OUTCOMES:
        return OUTSTANDING
    if status == "unknown" and status not in log.outcome:
        return CLAIMED | DISCARDED
    outcome = {**OUTCOMES, **log.outcome}[status]
    return {"claim": CLAIMED, "never": OUTSTANDING}.get(outcome, DISCARDED)
