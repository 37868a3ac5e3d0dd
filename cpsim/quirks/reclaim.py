"""A slot on a machine without a user can be claimed again, by any machine: the project is credited again.

The slot waits on the newest machine, with what the first claim granted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import CLAIMED, Transition

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(
        rules,
        transitions=(
            *rules.transitions,
            Transition("claim", CLAIMED, CLAIMED, "reclaim", waiting=True),
        ),
    )
