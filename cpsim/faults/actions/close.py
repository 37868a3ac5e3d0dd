"""The fault `close`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class CloseFault(Action):
    effect = "the command is dropped, and the connection closed without an answer"

    def before(self, _: Exchange, /) -> End:
        return End.CLOSE
