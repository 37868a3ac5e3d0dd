"""The fault `hang`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class HangFault(Action):
    effect = "the command is dropped, and never answered"

    def before(self, _: Exchange, /) -> End:
        return End.HANG
