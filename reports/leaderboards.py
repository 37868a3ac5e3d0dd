"""Leaderboards: who has most credits, in all and recently, and who has moved up or down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Note, Table, first_of, ranked, tied

if TYPE_CHECKING:
    import pandas as pd

    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

DAY_US = 86_400_000_000


def build(frames: Accounts) -> list[Block]:
    """The leading machines, users and projects."""
    if frames.empty:
        return []
    since = f"Ranks are compared with those at {frames.at(frames.books.earlier_us):%Y-%m-%d %H:%M %Z}."
    blocks: list[Block] = []
    if frames.books.until_us - frames.since_us < DAY_US:
        blocks.append(
            Note(
                "These accounts span less than a day, as those of a replay do. The recent average is a rate per day: "
                "of so short a time, it tells who was fast, and not who gave much."
            )
        )
    for kind, holders in (("machine", frames.machines), ("user", frames.users)):
        rows = _with_changes(ranked(holders, "credits", kind), kind)
        others = f"{rows['credits'].iloc[frames.top :].sum():,} credits"
        note = " ".join(filter(None, (since, first_of(frames.top, len(rows), others), tied(rows, frames.top))))
        columns = ["rank", "rank_change", "project", kind, "credits", "recent_credits_a_day", "claimed"]
        if kind == "machine":
            columns.insert(4, "user")
        leading = rows[columns].head(frames.top)
        blocks.append(Figure(f"Leading {kind}s", leading, "ranking", kind, ["credits"], note, None))
        recent = ranked(holders, "recent_credits_a_day", kind)
        shown = ["rank", "project", kind, "recent_credits_a_day", "credits"]
        note = f"{first_of(frames.top, len(recent))} {tied(recent, frames.top)}".strip()
        blocks.append(Table(f"Leading {kind}s by recent average credit", recent[shown].head(frames.top), note, None))
    projects = ranked(frames.projects, "credits", "project")
    columns = ["rank", "project", "credits", "recent_credits_a_day", "machines", "users"]
    blocks.append(Table("Projects", projects[columns], sums={name: name for name in ("credits", "machines", "users")}))
    return blocks


def _with_changes(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """With the change of the rank, which is missing for who had no credits before."""
    before = ranked(rows.drop(columns="rank"), "earlier_credits", kind)["rank"]
    return rows.assign(rank_change=(before - rows["rank"]).where(rows["earlier_credits"] > 0))
