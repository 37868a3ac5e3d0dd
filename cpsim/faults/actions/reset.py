"""The fault `reset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class ResetFault(Action):
    effect = "the command is dropped, and the connection reset; a UNIX socket is only closed"

    def before(self, _: Exchange, /) -> End:
        return End.RESET
