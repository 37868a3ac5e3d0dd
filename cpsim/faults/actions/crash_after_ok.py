"""The fault `crash-after-ok`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class CrashAfterOkFault(Action):
    effect = "the process dies after the answer, before delivery"
    stages = ("daemon",)
    crashes = True

    def after(self, _: Exchange, __: object, /) -> End:
        return End.ANSWER_AND_CRASH
