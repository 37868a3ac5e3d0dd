"""Leaderboards: who has most credits, in all and recently, and who has moved up or down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Note, Table, first_of

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
        ranked = _ranked(holders, kind)
        others = f"{ranked['credits'].iloc[frames.top :].sum():,} credits"
        note = f"{since} {first_of(frames.top, len(ranked), others)}".rstrip()
        columns = ["rank", "rank_change", "project", kind, "credits", "recent_credits_a_day", "claimed"]
        if kind == "machine":
            columns.insert(4, "user")
        leading = ranked[columns].head(frames.top)
        blocks.append(Figure(f"Leading {kind}s", leading, "ranking", kind, ["credits"], note, None))
        recent = holders.nlargest(frames.top, "recent_credits_a_day")
        recent = recent.assign(rank=range(1, len(recent) + 1)).astype({"rank": "Int64"})
        shown = ["rank", "project", kind, "recent_credits_a_day", "credits"]
        note = first_of(frames.top, len(holders))
        blocks.append(Table(f"Leading {kind}s by recent average credit", recent[shown], note, None))
    projects = frames.projects.sort_values("credits", ascending=False)
    columns = ["project", "credits", "recent_credits_a_day", "machines", "users"]
    blocks.append(Table("Projects", projects[columns], sums={name: name for name in ("credits", "machines", "users")}))
    return blocks


def _ranked(holders: pd.DataFrame, kind: str) -> pd.DataFrame:
    """By credits within each project; the change is missing for who had none before."""
    ranked = holders.sort_values(["credits", "project", kind], ascending=[False, True, True])
    ranks = ranked["credits"].rank(method="min", ascending=False).astype("Int64")
    before = ranked["earlier_credits"].rank(method="min", ascending=False).astype("Int64")
    return ranked.assign(rank=ranks, rank_change=(before - ranks).where(ranked["earlier_credits"] > 0))
