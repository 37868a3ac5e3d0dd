"""Ranks: the one rule of all leaderboards about who comes first, and about ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def ranked(holders: pd.DataFrame, by: str, names: str) -> pd.DataFrame:
    """The rows by a figure, the greatest first, with the column `rank` before the others.

    Who has as much has the same rank, so that ranks go 1, 2, 2, 4. Within a rank, the order is that of projects and
    names, by code points.

    Args:
        holders: a row per holder; its column `project` may be missing.
        by: the column of the figure.
        names: the column of the holders' names.
    """
    keys = [by, *(name for name in dict.fromkeys(("project", names)) if name in holders)]
    rows = holders.sort_values(keys, ascending=[False, *[True] * (len(keys) - 1)], kind="stable")
    rank = rows[by].rank(method="min", ascending=False, na_option="bottom").astype("Int64")
    rows.insert(0, "rank", rank)
    return rows


def tied(rows: pd.DataFrame, top: int) -> str:
    """A sentence about those that have the rank of the last of `top` rows and are left out; empty without any.

    Args:
        rows: all rows, from `ranked`.
        top: how many are shown.
    """
    if len(rows) <= top:
        return ""
    others = int((rows["rank"].iloc[top:] == rows["rank"].iloc[top - 1]).sum())
    if not others:
        return ""
    return f"{others:,} of them {'has' if others == 1 else 'have'} the rank of the last that is shown."
