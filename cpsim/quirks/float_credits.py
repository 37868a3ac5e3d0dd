"""7.9 is accepted and truncated, in credits and counters; negative credits and min > max are accepted.

So are true, "1e2" and no minutes at all, up to 64 bits; null is malformed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import MalformedArgument, shown

if TYPE_CHECKING:
    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(rules, integer=_truncated, term=_truncated, check_terms=_check_nothing)


def _truncated(name: str, value: object) -> int:
    try:
        number = int(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise MalformedArgument(f"{name}={shown(value)} is not a number") from None
    if type(value) is int:
        number = value  # exact
    if not -(2**63) <= number < 2**63 or (type(value) is str and "_" in value):
        raise MalformedArgument(f"{name}={shown(value)} is not a number of 64 bits")
    return number


def _check_nothing(*_: int | None) -> None:
    pass
