"""A discarded or expired slot can still be claimed and is paid; it stays discarded or expired.

Not one whose claim a user has been paid for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import DISCARDED, EXPIRED, Transition

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(
        rules,
        transitions=(
            *rules.transitions,
            Transition("claim", DISCARDED, DISCARDED, "claim-settled", waiting=True),
            Transition("claim", EXPIRED, EXPIRED, "claim-settled", waiting=True),
        ),
    )
