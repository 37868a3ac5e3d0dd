"""A run folder of any size, made by DuckDB: three operations a slot, as a site's job manager sends them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb

MACHINES = 15_000
USERS = 9_000
DAY_US = 86_400_000_000
START_US = 1_767_225_600_000_000
SLOTS = """
CREATE VIEW slots AS
SELECT 'lhc' AS project, 'job-' || n AS slot,
    CASE WHEN n % 97 = 0 THEN 'allocated' WHEN n % 23 = 0 THEN 'discarded' ELSE 'claimed' END AS state,
    if(state = 'claimed', 'host-' || number, NULL) AS machine,
    if(hash(machine) % 10 < 7, 'user-' || hash(machine || 'u') % {users}, NULL) AS user,
    if(state = 'discarded', if(hash(n) % 2 = 0, 'expired', 'unknown-vmid'), NULL) AS reason,
    if(n % 5 = 0, 10, NULL)::BIGINT AS credits, if(n % 5 = 0, NULL, 1)::BIGINT AS min,
    if(n % 5 = 0, NULL, 40)::BIGINT AS max,
    if(state = 'claimed', coalesce(credits, least(asked, max)), NULL)::BIGINT AS granted,
    {start} + (n * {step})::BIGINT AS allocated_us, allocated_us + 7 * {day} AS expires_us,
    if(state = 'allocated', NULL, allocated_us + ((600 + hash(n + 2) % 20000) * 1000000)::BIGINT) AS settled_us,
    MAP {{'job/cpuusage': (400 + hash(n + 3) % 9000)::BIGINT, 'job/events': (hash(n + 4) % 20000)::BIGINT,
        'job/success': 1::BIGINT}} AS counters,
    MAP {{}}::MAP(VARCHAR, VARCHAR) AS meta, asked, n
FROM (SELECT n, (1 + hash(n + 1) % 60)::BIGINT AS asked,
    floor(pow((hash(n) % 1000003) / 1000003.0, 2) * {machines})::BIGINT AS number FROM range({slots}) t(n))
"""
ACCOUNTS = """
WITH earned AS (
    SELECT project, machine, user, sum(granted)::BIGINT AS credits, sum(counters['job/cpuusage'])::BIGINT AS cpu,
        sum(counters['job/events'])::BIGINT AS events, count(*) AS success
    FROM slots WHERE state = 'claimed' GROUP BY project, machine, user
), machines AS (
    SELECT project, machine AS id, credits, MAP {'job/cpuusage': cpu, 'job/events': events, 'job/success': success}
        AS counters, cpu, events, success, user FROM earned
)
SELECT project, 'machine' AS kind, id, user, credits, counters, if(user IS NULL, credits, 0)::BIGINT AS waiting_credits,
    if(user IS NULL, counters, MAP {}::MAP(VARCHAR, BIGINT)) AS waiting_counters FROM machines
UNION ALL
SELECT project, 'user', user, NULL, sum(credits)::BIGINT, MAP {'job/cpuusage': sum(cpu)::BIGINT,
    'job/events': sum(events)::BIGINT, 'job/success': sum(success)::BIGINT}, NULL, NULL
FROM machines WHERE user IS NOT NULL GROUP BY project, user
"""
JOURNAL = """
SELECT (n * 3 + k)::BIGINT AS id, slot, kind, if(kind = 'alloc', credits, NULL) AS "alloc.credits",
    if(kind = 'alloc', min, NULL) AS "alloc.min", if(kind = 'alloc', max, NULL) AS "alloc.max",
    NULL::BIGINT AS "alloc.expire", if(kind = 'counters', counters, NULL) AS counters,
    NULL::MAP(VARCHAR, VARCHAR) AS meta, if(kind = 'discard', reason, NULL) AS "discard.reason",
    if(kind = 'claim', machine, NULL) AS "claim.machine", if(kind = 'claim', asked, NULL) AS "claim.credits",
    NULL::BLOB AS frame, NULL::BIGINT AS due_us, (n * 300 + k * 10)::BIGINT AS sent_us, sent_us + 90 AS answered_us,
    'accepted' AS outcome, '' AS error
FROM (SELECT *, unnest([0, 1, 2]) AS k, ['alloc', 'counters', if(state = 'claimed', 'claim', 'discard')][k + 1] AS kind
    FROM slots) WHERE kind <> 'discard' OR state = 'discarded'
"""


def make(folder: Path, operations: int) -> None:
    """Write a run folder of about so many operations."""
    folder.mkdir(parents=True)
    slots = operations // 3
    step_us = 90 * DAY_US / slots
    with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder)}) as database:
        fields = {
            "start": START_US,
            "step": step_us,
            "day": DAY_US,
            "machines": MACHINES,
            "users": USERS,
            "slots": slots,
        }
        database.execute(SLOTS.format(**fields))
        database.sql("SELECT * EXCLUDE (asked, n) FROM slots").write_parquet(
            str(folder / "ledger.parquet"), compression="zstd"
        )
        database.sql(ACCOUNTS).write_parquet(str(folder / "accounts.parquet"), compression="zstd")
        database.sql(JOURNAL).write_parquet(str(folder / "journal.parquet"), compression="zstd")
    document = {"scenario": "lhc", "seed": 1, "slot_prefix": "job", "project": "lhc"}
    (folder / "run.json").write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
