"""Machine statement: opening balance, every grant, closing balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting.statements import statements

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block


def build(frames: Accounts) -> list[Block]:
    """Statements of the machines asked for, or of the leading ones."""
    return statements(frames, "machine")
