"""The fault `crash-before-ok`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class CrashBeforeOkFault(Action):
    effect = "the process dies before it answers; the command is lost"
    stages = ("daemon",)
    crashes = True

    def before(self, _: Exchange, /) -> End:
        return End.CRASH
