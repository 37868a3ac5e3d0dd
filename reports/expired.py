"""Expired slots: work that nobody claimed in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Note, Table, first_of

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

LAST = """
SELECT project, slot, allocated_us, expires_us, (expires_us - allocated_us) / 1e6 AS allowed_s
FROM slots WHERE state = 'expired' AND settled_us >= getvariable('since_us')
ORDER BY expires_us DESC, project, slot LIMIT $1
"""


def build(frames: Accounts) -> list[Block]:
    """How many expired when, and the last of them."""
    if frames.empty:
        return []
    times = frames.over_time()
    expired = times[times["expired"] > 0]
    if expired.empty:
        return [Note("No slot expired within the period.")]
    last = frames.query(LAST, (frames.top,))
    last = last.assign(allocated_at=frames.when(last["allocated_us"]), expired_at=frames.when(last["expires_us"]))
    projects = frames.projects[["project", "allocated", "expired", "period_expired"]]
    there = int(projects["period_expired"].sum())
    return [
        Table(
            "By project",
            projects.assign(expired_percent=(100 * projects["expired"] / projects["allocated"]).astype("Float64")),
            sums={name: name for name in ("allocated", "expired", "period_expired")},
        ),
        Figure(
            "Over time",
            expired[["project", "start_at", "expired"]],
            "bars",
            "start_at",
            ["expired"],
            sums={"expired": "period_expired"},
        ),
        Table(
            "The last to expire",
            last[["project", "slot", "allocated_at", "expired_at", "allowed_s"]],
            first_of(frames.top, there),
            None,
        ),
    ]
