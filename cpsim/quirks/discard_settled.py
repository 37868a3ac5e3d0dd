"""A claimed or discarded slot can still be discarded, and is counted again; what was claimed is still paid."""

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
            Transition("discard", CLAIMED, DISCARDED, "discard-settled"),
            Transition("discard", DISCARDED, DISCARDED, "discard-settled"),
        ),
    )
