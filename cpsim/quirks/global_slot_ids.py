"""A slot id used by one project is refused to every other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(rules, ids="server")
