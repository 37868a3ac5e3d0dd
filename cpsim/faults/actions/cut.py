"""The fault `cut`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class CutFault(Action):
    effect = "the request is applied, and half of the answer's body sent"
    stages = ("server",)

    def after(self, _: Exchange, __: object, /) -> End:
        return End.CUT
