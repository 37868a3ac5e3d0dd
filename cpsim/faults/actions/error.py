"""The fault `error`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import Answer

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class ErrorFault(Action):
    effect = "the command is dropped, and answered ER"
    stages = ("daemon",)

    def before(self, _: Exchange, /) -> Answer:
        return Answer(b"ER")
