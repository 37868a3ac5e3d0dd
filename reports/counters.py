"""Counters: what claimed slots counted, by project, machine and user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Note, Table

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block


def build(frames: Accounts) -> list[Block]:
    """Totals, and who leads each."""
    if frames.empty:
        return []
    counters = frames.counters
    if counters.empty:
        return [Note("No claimed slot has counters.")]
    machines = frames.leading_counters("machine", frames.top).rename(columns={"id": "machine"})
    users = frames.leading_counters("user", frames.top).rename(columns={"id": "user"})
    short = f"The first {frames.top:,} of each counter."
    notes = [short if (leading["rank"] == frames.top).any() else "" for leading in (machines, users)]
    return [
        Table(
            "By project",
            counters.assign(mean_per_slot=(counters["total"] / counters["slots"]).astype("Float64")),
            sums=None,
        ),
        Table("Leading machines", machines, notes[0], None),
        Table("Leading users", users, f"At the end of the ledger, whatever the period. {notes[1]}".rstrip(), None),
    ]
