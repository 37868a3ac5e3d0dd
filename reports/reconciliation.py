"""Reconciliation: the client's journal against the server's ledger.

There is no client's journal here: it is in the folder of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cpsim.accounting import Note, Table, first_of
from cpsim.accounting.reconciliation import NO_DIFFERENCE, NOT_COMPARED

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block


def build(frames: Accounts) -> list[Block]:
    """Totals by kind of difference, and the slots that differ."""
    totals = frames.reconciliation
    if totals is None:
        return []
    differing = totals[~totals["finding"].isin(NO_DIFFERENCE)]
    slots, credits = int(differing["slots"].sum()), int(totals["difference_credits"].sum())
    blocks: list[Block] = [
        Note(
            f"{slots:,} of {int(totals['slots'].sum()):,} slots differ; the ledger granted {credits:+,} credits more "
            "than were acknowledged."
            if slots or credits
            else f"All {int(totals['slots'].sum()):,} slots agree, and so do the credits.",
            warning=bool(slots),
        ),
        Table(
            "By finding",
            pd.concat([totals, frames.query(NOT_COMPARED)], ignore_index=True),
            "Of the whole ledger, whatever the period. What a claim was due follows from the slot's terms and from "
            "what it asked for.",
            None,
        ),
    ]
    if slots:
        found = frames.differences()
        blocks.append(Table("Slots that differ", found, first_of(len(found), slots), None))
    return blocks
