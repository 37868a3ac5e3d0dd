"""Concentration: how much of the credit the leading machines and users have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cpsim.accounting import Figure, Table

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

SHARES = (1, 5, 10, 20, 50)


def build(frames: Accounts) -> list[Block]:
    """Gini coefficients, top shares and Lorenz curves."""
    if frames.empty:
        return []
    rows, blocks = [], []
    for kind, holders in (("machines", frames.machines), ("users", frames.users)):
        for project, group in holders.groupby("project"):
            credits = np.sort(group["credits"].clip(lower=0).to_numpy(np.int64))
            if not credits.sum():
                continue
            row = {"project": project, "of": kind, "holders": len(credits), "gini": gini(credits)}
            for percent in SHARES:
                leading = credits[-max(1, round(len(credits) * percent / 100)) :]
                row[f"top_{percent}_percent"] = 100 * leading.sum() / credits.sum()
            rows.append(row)
            blocks.append(_lorenz(credits, f"{project}: share of credits held by {kind}, the poorest first"))
    note = "Gini is 0 where all have the same and tends to 1 where one has all. Top shares are percent of the credits."
    waiting = frames.projects["waiting_credits"].sum()
    if waiting and not frames.users.empty:
        note += f" Those of users are of what users have: {waiting:,} credits wait for an owner."
    columns = ["project", "of", "holders", "gini", *(f"top_{percent}_percent" for percent in SHARES)]
    table = pd.DataFrame(rows, columns=columns).astype({"holders": "Int64"})
    return [Table("Concentration", table, note, None), *blocks]


def gini(credits: np.ndarray) -> float:
    """The Gini coefficient of credits in ascending order: the mean difference of two holders, over twice the mean."""
    places = np.arange(1, len(credits) + 1)
    return float(2 * (places * credits.astype(float)).sum() / (len(credits) * credits.sum()) - 1 - 1 / len(credits))


def _lorenz(credits: np.ndarray, title: str) -> Figure:
    held = np.concatenate([[0.0], np.cumsum(credits.astype(float)) / credits.sum()])
    at = np.linspace(0, 1, 21)
    share = np.interp(at, np.linspace(0, 1, len(held)), held)
    frame = pd.DataFrame({"holders_percent": 100 * at, "credits_percent": 100 * share, "equal_percent": 100 * at})
    return Figure(title, frame, "line", "holders_percent", ["credits_percent", "equal_percent"])
