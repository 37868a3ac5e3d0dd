"""The fault `crash-after-commit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class CrashAfterCommitFault(Action):
    effect = "the process dies after the accounts have the command, before the answer"
    hook = "delivery"
    crashes = True

    def after(self, _: Exchange, __: object, /) -> End:
        return End.CRASH
