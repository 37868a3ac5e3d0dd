"""An empty slot or machine id is taken as an id.

So is the text of a list, an object or true; null is malformed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import CommandRefused, MalformedArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.quirks.policies.ledger import LedgerPolicy


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""
    return replace(rules, text=_text)


def _text(arguments: Mapping[str, object], name: str) -> str:
    if name not in arguments:
        raise CommandRefused(f"missing argument {name!r}")
    value = arguments[name]
    if value is None:
        raise MalformedArgument(f"{name} is null")
    return str(value)
