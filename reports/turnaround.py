"""Turnaround and wait: how long slots took, from allocation to their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cpsim.accounting import Figure, Table

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

WHAT = {
    "claimed": "Turnaround of claimed slots",
    "discarded": "Time until slots were discarded",
    "waited": "Wait: turnaround without the CPU time of job/cpuusage",
    "outstanding": "Age of outstanding slots",
}
SUMS = {
    "claimed": {"slots": "period_claimed"},
    "discarded": {"slots": "period_discarded"},
    "waited": None,
    "outstanding": {"slots": "outstanding"},
}


def build(frames: Accounts) -> list[Block]:
    """Quantiles and distributions."""
    if frames.empty:
        return []
    blocks: list[Block] = []
    for what, title in WHAT.items():
        quantiles = frames.quantiles(what)
        if not quantiles.empty:
            note = "Quantiles are exact to about one percent."
            if what == "waited":
                counted, claimed = quantiles["slots"].sum(), frames.projects["period_claimed"].sum()
                note += f" {counted:,} of {claimed:,} claimed slots have the counter."
            blocks.append(Table(title, quantiles, note, SUMS[what]))
            if what in {"claimed", "waited"}:
                blocks.append(_distribution(frames, what, f"{title.partition(':')[0]}, distribution"))
    return blocks


def _distribution(frames: Accounts, what: str, title: str) -> Figure:
    """Slots in bins of equal width, up to the 99th percentile."""
    bins = frames.durations[frames.durations["what"] == what]
    longest = float(frames.quantiles(what)["p99_s"].max()) or 1.0
    edges = np.linspace(0, longest, 41)
    middle = (bins["from_s"] + bins["to_s"]) / 2
    place = np.clip(np.digitize(middle.to_numpy(float), edges) - 1, 0, len(edges) - 1)
    slots = np.bincount(place, weights=bins["slots"].to_numpy(float), minlength=len(edges)).astype(np.int64)
    shown = pd.DataFrame({"from_s": edges[:-1], "to_s": edges[1:], "slots": pd.array(slots[:-1], dtype="Int64")})
    note = f"{int(slots[-1]):,} slots that took longer are not shown."
    return Figure(title, shown, "bars", "from_s", ["slots"], note, None)
