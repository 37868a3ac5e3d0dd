"""Comparison: these accounts beside others, such as those of another run.

This report needs the others: name them with --against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cpsim.accounting import Note, Table, first_of

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

COUNTS = ["allocated", "outstanding", "claimed", "discarded", "expired", "credits"]
COUNTS += ["period_claimed", "period_credits", "machines", "users"]
RULES = {"slots": "period_claimed", "credits": "period_credits"}


def build(frames: Accounts) -> list[Block]:
    """Totals side by side, and who has more or less."""
    others = frames.against
    if others is None:
        return []
    blocks: list[Block] = [
        Note(f"These are {frames.source.name}; the others are {others.source.name}."),
        Table("Counts", _counts(frames, others), "Those of a period are of --since and --until.", None),
        Table("Times and rates", _measures(frames, others)),
        Table(
            "What decided the credits",
            _rules(frames, others),
            sums={
                **{f"{column}_here": total for column, total in RULES.items()},
                **{f"{column}_there": f"against.{total}" for column, total in RULES.items()},
            },
        ),
    ]
    for kind, here, there in (
        ("machine", frames.machines, others.machines),
        ("user", frames.users, others.users),
    ):
        sums = (holders.groupby(kind)["credits"].sum() for holders in (here, there))
        both = pd.concat(dict(zip(("credits_here", "credits_there"), sums, strict=True)), axis="columns")
        both = both.fillna(0).rename_axis(kind).reset_index()
        both["difference_credits"] = both["credits_here"] - both["credits_there"]
        differing = both[both["difference_credits"] != 0]
        order = differing["difference_credits"].abs().sort_values(ascending=False, kind="stable").index
        note = f"{len(differing):,} of {len(both):,} {kind}s differ. {first_of(frames.top, len(differing))}".rstrip()
        blocks.append(Table(f"{kind.title()}s that differ most", differing.loc[order].head(frames.top), note, None))
    return blocks


def _counts(frames: Accounts, others: Accounts) -> pd.DataFrame:
    here, there = (accounts.projects[COUNTS].sum(min_count=1) for accounts in (frames, others))
    table = pd.DataFrame({"what": COUNTS, "here": here.to_numpy(), "there": there.to_numpy()})
    table = table.astype({"here": "Int64", "there": "Int64"})
    return table.assign(difference=table["here"] - table["there"])


def _measures(frames: Accounts, others: Accounts) -> pd.DataFrame:
    rows: dict[str, list[float]] = {"recent_credits_a_day": []}
    for accounts in (frames, others):
        rows["recent_credits_a_day"].append(float(accounts.projects["recent_credits_a_day"].sum()))
        quantiles = accounts.quantiles("claimed")
        for name in ("p50_s", "p90_s", "p99_s"):
            rows.setdefault(f"turnaround_{name}", []).append(float(quantiles[name].max()))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["here", "there"]).rename_axis("what").reset_index()
    return table.assign(ratio=table["here"] / table["there"].where(table["there"] != 0))


def _rules(frames: Accounts, others: Accounts) -> pd.DataFrame:
    here, there = (
        accounts.rules.groupby("rule")[["slots", "credits"]].sum().add_suffix(f"_{name}")
        for name, accounts in (("here", frames), ("there", others))
    )
    return here.join(there, how="outer").fillna(0).rename_axis("rule").reset_index()
