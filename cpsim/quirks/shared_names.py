"""Counters named `credits`, `slots/allocated`, `slots/completed` and `slots/discarded` add to the server's own sums."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy

SHOWN_AS: Final = {
    "credits": "credits",
    "slots/allocated": "allocated",
    "slots/completed": "claimed",
    "slots/discarded": "discarded",
}


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(rules, shown_as=SHOWN_AS)
