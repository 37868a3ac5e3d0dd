"""Anomalies: what an administrator should look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Note, Table, first_of, ranked

if TYPE_CHECKING:
    import pandas as pd

    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

LEAST_CLAIMS = 10
BOUND_PERCENT = 90
FAST_S = 300.0
"""A job that ends sooner is likely to have failed: what an agent at a large laboratory takes for a sign of trouble."""

FAST = """
WITH limits AS (SELECT unnest($1::VARCHAR[]) AS project, unnest($2::DOUBLE[]) AS limit_us)
SELECT slots.project, slots.machine, any_value(owners.user) AS user, count(*) AS claimed,
    count(*) FILTER (settled_us - allocated_us < limit_us) AS fast, min(settled_us - allocated_us) / 1e6 AS fastest_s
FROM slots JOIN limits ON slots.project = limits.project
LEFT JOIN owners ON slots.project = owners.project AND slots.machine = owners.machine
WHERE state = 'claimed' AND getvariable('has_times')
GROUP BY slots.project, slots.machine HAVING fast >= $3 AND 2 * fast >= claimed
ORDER BY fast DESC, slots.project, slots.machine
"""
REPEATED = """
SELECT project, slot, count(*) AS claims_received, count(*) FILTER (outcome = 'refused') AS claims_refused
FROM received WHERE kind = 'claim' GROUP BY project, slot HAVING count(*) > 1
ORDER BY claims_received DESC, project, slot
"""


def build(frames: Accounts) -> list[Block]:
    """Double claims, claims at the bound, machines that are too fast, and credit without owner."""
    if frames.empty:
        return []
    machines = frames.machines
    found = [
        *_double(frames),
        (
            "Credit that no slot accounts for",
            machines.loc[
                machines["unexplained_credits"].fillna(0) != 0,
                ["project", "machine", "user", "credits", "unexplained_credits"],
            ],
            "The machine's balance and the grants of its slots differ: a slot was credited more than once, or is gone.",
        ),
        (
            "Grants against the terms",
            machines.loc[machines["against_terms"] > 0, ["project", "machine", "user", "claimed", "against_terms"]],
            "More or fewer credits than the slot's terms allow.",
        ),
        _at_the_bound(machines),
        _fast(frames),
        (
            "Credit without owner",
            ranked(machines[machines["waiting_credits"].fillna(0) > 0], "waiting_credits", "machine")[
                ["rank", "project", "machine", "waiting_credits", "claimed"]
            ],
            "It waits on machines that no user is linked to, and goes to the user who links them.",
        ),
    ]
    clean = [title.lower() for title, table, _ in found if table.empty]
    blocks: list[Block] = [
        Table(title, table.head(frames.top), f"{note} {first_of(frames.top, len(table))}".rstrip(), None)
        for title, table, note in found
        if not table.empty
    ]
    return [*blocks, Note(f"Nothing was found of: {', '.join(clean)}.")] if clean else blocks


def _double(frames: Accounts) -> list[tuple[str, pd.DataFrame, str]]:
    title = "Slots claimed more than once"
    if frames.reconciliation is not None:
        differing = frames.differences(100_000)
        repeated = differing.loc[
            differing["claims_acknowledged"] > 1, ["slot", "claims_acknowledged", "ledger_machine", "granted_credits"]
        ]
        return [(title, repeated, "From the client's journal.")]
    if frames.source.received is not None:
        return [(title, frames.query(REPEATED), "From the server's journal; all but one should be refused.")]
    return []


def _at_the_bound(machines: pd.DataFrame) -> tuple[str, pd.DataFrame, str]:
    percent = (100 * machines["at_max"] / machines["ranged"].where(machines["ranged"] > 0)).astype("Float64")
    chosen = (machines["ranged"] >= LEAST_CLAIMS) & (percent >= BOUND_PERCENT).fillna(value=False)
    table = machines.assign(at_max_percent=percent)[chosen]
    return (
        "Machines that claim at the bound",
        table[["project", "machine", "user", "ranged", "at_max", "at_max_percent"]].rename(
            columns={"ranged": "claims_with_range", "at_max": "claims_at_maximum"}
        ),
        f"At least {LEAST_CLAIMS} claims of slots with a range, {BOUND_PERCENT} percent of them granted the maximum.",
    )


def _fast(frames: Accounts) -> tuple[str, pd.DataFrame, str]:
    typical = frames.quantiles("claimed")
    limits_us = [1e6 * min(FAST_S, median_s / 10) for median_s in typical["p50_s"]]
    return (
        "Machines that are too fast",
        frames.query(FAST, (typical["project"].tolist(), limits_us, LEAST_CLAIMS // 2)),
        f"At least half of their claims came within {FAST_S:.0f} s, and within a tenth of the project's median.",
    )
