"""No slot expires; a housekeeping job (POST /__cpsim/housekeep) expires those whose time has not come.

It deletes them, and counts each as discarded; what was claimed and waits for a user is never paid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(rules, expires=False)
