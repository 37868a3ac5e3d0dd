"""The fault `lose-reply`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class LoseReplyFault(Action):
    effect = "the command is accepted, and the connection closed without an answer"

    def after(self, _: Exchange, __: object, /) -> End:
        return End.CLOSE
