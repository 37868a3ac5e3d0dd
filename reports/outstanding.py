"""Outstanding slots: how old they are, and what they can still cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Note, Table, first_of

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

SUMS = {
    "slots": "outstanding",
    **{name: f"Liability: {name}" for name in ("least_credits", "most_credits", "slots_without_limit")},
}
OLDEST = """
SELECT project, slot, allocated_us, expires_us, (getvariable('until_us') - allocated_us) / 1e6 AS age_s,
    coalesce(credits, min, 0) AS least_credits, coalesce(credits, max) AS most_credits
FROM slots WHERE state = 'allocated' ORDER BY allocated_us, project, slot LIMIT $1
"""


def build(frames: Accounts) -> list[Block]:
    """The liability by age, and the oldest slots."""
    if frames.empty:
        return []
    outstanding = frames.outstanding
    if outstanding.empty:
        return [Note("Every slot is settled: nothing is outstanding.")]
    sums = outstanding.groupby("project", as_index=False)[["slots", "least_credits", "most_credits", "unlimited"]].sum()
    oldest = frames.query(OLDEST, (frames.top,))
    oldest["allocated_at"], oldest["expires_at"] = map(frames.when, (oldest["allocated_us"], oldest["expires_us"]))
    return [
        Table(
            "Liability",
            sums.rename(columns={"unlimited": "slots_without_limit"}),
            "The least and the most credits that claims of these slots can still cost. A slot without a maximum can "
            "cost any number: such slots are counted apart, and are not in the most.",
            SUMS,
        ),
        Figure(
            "By age",
            outstanding[["project", "age", "slots", "least_credits", "most_credits", "unlimited"]].rename(
                columns={"unlimited": "slots_without_limit"}
            ),
            "ranking",
            "age",
            ["slots"],
            sums=SUMS,
        ),
        Table(
            "The oldest",
            oldest[["project", "slot", "allocated_at", "expires_at", "age_s", "least_credits", "most_credits"]],
            first_of(frames.top, int(sums["slots"].sum())),
            None,
        ),
    ]
