"""Outcomes: how slots ended, and why they were discarded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cpsim.accounting import Figure, Table, first_of, ranked, tied

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

ENDS = ["claimed", "discarded", "expired"]
SUMS = {end: f"period_{end}" for end in ENDS}


def build(frames: Accounts) -> list[Block]:
    """Ends by project, reason, hour and machine."""
    if frames.empty:
        return []
    ends = frames.over_time("hour").groupby("project", as_index=False)[ENDS].sum()
    settled = ends[ENDS].sum(axis=1)
    shares = ends.assign(
        **{f"{end}_percent": (100 * ends[end] / settled.where(settled > 0)).astype("Float64") for end in ENDS}
    )
    reasons = frames.reasons
    total = reasons.groupby("project")["slots"].transform("sum")
    hours = frames.over_time("hour")
    by_hour = hours.assign(hour_of_day=hours["start_at"].dt.hour).groupby("hour_of_day", as_index=False)[ENDS].sum()
    machines = ranked(frames.machines, "claimed", "machine")
    return [
        Figure("Ends", shares, "ranking", "project", ENDS, "Of the slots that were settled within the period.", SUMS),
        Figure(
            "Discards by reason",
            reasons.assign(percent=(100 * reasons["slots"] / total).astype("Float64")),
            "ranking",
            "reason",
            ["slots"],
            sums={"slots": "period_discarded"},
        ),
        Figure(
            "Ends by hour of the day",
            by_hour.astype({"hour_of_day": pd.Int64Dtype()}),
            "stacked",
            "hour_of_day",
            ENDS,
            f"As clocks in {frames.timezone.key} have it.",
            SUMS,
        ),
        Table(
            "Claims by machine",
            machines[["rank", "project", "machine", "user", "claimed", "credits", "turnaround_s"]].head(frames.top),
            _about_machines(frames, machines),
            None,
        ),
    ]


def _about_machines(frames: Accounts, machines: pd.DataFrame) -> str:
    sentences = ["A discard names no machine, so a machine's discards are unknown."]
    if frames.projects["claimed"].sum() > frames.projects["period_claimed"].sum():
        sentences.append("Claims before the period count.")
    others = machines[frames.top :]
    rest = f"{others['claimed'].sum():,} claims and {others['credits'].sum():,} credits"
    left_out = (first_of(frames.top, len(machines), rest), tied(machines, frames.top))
    return " ".join([*sentences, *filter(None, left_out)])
