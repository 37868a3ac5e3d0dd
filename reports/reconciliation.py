"""Reconciliation: the client's journal, or a job manager's record, against the server's ledger.

There is no client's journal here: it is in the folder of a run. A job manager's record is named with --expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cpsim.accounting import Note, Table, expectation, first_of
from cpsim.accounting.reconciliation import NO_DIFFERENCE, NOT_COMPARED, verdict

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
    sentence, agrees = expectation.verdict(totals)
    count = frames.unexpected_slots
    blocks: list[Block] = [
        Note(sentence, warning=not agrees),
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
    sentence, agrees = verdict(totals)
    blocks: list[Block] = [
        Note(sentence, warning=not agrees),
        Table(
            "By finding",
            pd.concat([totals, frames.query(NOT_COMPARED)], ignore_index=True),
            "Of the whole ledger, whatever the period. What a claim was due follows from the slot's terms and from "
            "what it asked for.",
            None,
        ),
    ]
    if not agrees:
        slots = int(totals.loc[~totals["finding"].isin(NO_DIFFERENCE), "slots"].sum())
        found = frames.differences()
        blocks.append(Table("Slots that differ", found, first_of(len(found), slots), None))
    return blocks
