"""The fault `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import Answer, HttpReply

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange

BODY = b'{"result": "error", "message": "a fault that was asked for"}'


class StatusFault(Action):
    effect = "the request is dropped, and answered with this status"
    stages = ("server",)
    takes = "status"

    def before(self, _: Exchange, /) -> Answer:
        status = int(self.value)
        return Answer(HttpReply(status, b"" if status in {204, 304} else BODY))
