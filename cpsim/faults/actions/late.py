"""The fault `late`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import Later

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class LateFault(Action):
    effect = "the command is accepted, and answered after this delay"
    takes = "delay_s"

    def before(self, _: Exchange, /) -> Later:
        return Later(self.value)
