"""The fault `pieces`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import Later

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class PiecesFault(Action):
    effect = "the command is accepted, and the answer sent byte by byte, with a pause"
    stages = ("daemon",)
    takes = "delay_s"
    default = 0.05

    def before(self, _: Exchange, /) -> Later:
        return Later(self.value, b"O")
