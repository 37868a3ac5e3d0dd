"""Claimed slots of machines without a user are listed as outstanding."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import ALLOCATED, CLAIMED

if TYPE_CHECKING:
    from cpsim.protocol.slots import State
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(rules, listed=_listed)


def _listed(state: State, has_user: bool) -> bool:  # noqa: FBT001
    return state is ALLOCATED or (state is CLAIMED and not has_user)
