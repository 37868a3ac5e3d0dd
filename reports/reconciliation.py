"""Reconciliation: the client's journal, or a job manager's record, against the server's ledger.

There is no client's journal here: it is in the folder of a run. A job manager's record is named with --expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cpsim.accounting import Note, Table, expectation, first_of
from cpsim.accounting.reconciliation import NO_DIFFERENCE, NOT_COMPARED

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block


def build(frames: Accounts) -> list[Block]:
    """Totals by kind of difference, and the slots that differ."""
    return [*_expectation(frames), *_journal(frames)]


def _expectation(frames: Accounts) -> list[Block]:
    totals = frames.expectation
    if totals is None:
        return []
    count, slots = frames.unexpected_slots, int(totals["slots"].sum())
    blocks: list[Block] = [
        Note(
            f"{count:,} of {slots:,} slots are not as the job manager's record has them."
            if count
            else f"All {slots:,} slots are as the job manager's record has them.",
            warning=bool(count),
        ),
        *(Note(f"The record: {note}.") for note in frames.expectation_notes),
        Table(
            "By finding, of the job manager's record",
            pd.concat([totals, frames.query(expectation.NOT_COMPARED)], ignore_index=True),
            "Of the whole ledger, whatever the period.",
            None,
        ),
    ]
    if count:
        found = frames.unexpected()
        blocks.append(Table("Slots that are not as expected", found, first_of(len(found), count), None))
    return blocks


def _journal(frames: Accounts) -> list[Block]:
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
