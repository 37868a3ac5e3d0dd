"""Counters on a claimed or discarded slot are still accepted, and reach the user at the link, but not the project."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import CLAIMED, DISCARDED, Transition

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(
        rules,
        transitions=(
            *rules.transitions,
            Transition("counters", CLAIMED, CLAIMED, "counters-settled"),
            Transition("counters", DISCARDED, DISCARDED, "counters-settled"),
        ),
    )
