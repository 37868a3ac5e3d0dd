"""The fault `not-json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.faults.action import Action
from cpsim.protocol.exchange import Answer, HttpReply

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange


class NotJsonFault(Action):
    effect = "the request is dropped, and answered 200 with an HTML page"
    stages = ("server",)

    def before(self, _: Exchange, /) -> Answer:
        return Answer(HttpReply(200, b"<html><body><h1>It works!</h1></body></html>", b"text/html"))
