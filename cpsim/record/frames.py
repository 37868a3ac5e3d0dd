"""A daemon's connection with faults: one frame, one reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpdaemon.wire import MalformedFrame, parse
from cpsim.daemon.link import cannot_complete
from cpsim.protocol.exchange import Exchange
from cpsim.record.faulty import FaultyRelay

if TYPE_CHECKING:
    from cpsim.faults.plan import FaultPlan
    from cpsim.record.relay import ClientSide, RelayOwner

QUIET_S: Final = 0.1
"""Time after which a frame that is not whole is forwarded as it is."""
REPLY_BYTES: Final = 2


class FrameRelay(FaultyRelay):
    """A relay that decides about a frame when it is a command; what is none is forwarded as it is.

    Args:
        owner: what it belongs to.
        client: the client's end, connected.
        faults: the plan.
    """

    def __init__(self, owner: RelayOwner, client: ClientSide, faults: FaultPlan) -> None:
        super().__init__(owner, client, faults)
        self._frame = b""
        self._is_decided = self._passes = False
        self._reply = b""

    def on_client_data(self, data: bytes) -> None:
        """Decide about a frame, if that can be done; forward or drop what follows it."""
        self.exchange.on_client_data(data)
        if self._passes:
            self.to_target(data)
            return
        self._frame += data
        if not self._is_decided:
            self._look(is_whole=not self.faults.daemon)

    def _look(self, *, is_whole: bool) -> None:
        """Decide about a frame if it is a command or `is_whole`; otherwise, wait for more."""
        self._stop_timer()
        exchange = None
        if self.faults.daemon:
            try:
                kind, arguments = parse(self._frame)
            except MalformedFrame:
                if not (is_whole or b"\n" in self._frame.lstrip() or cannot_complete(self._frame)):
                    self.wait(QUIET_S, lambda: self._look(is_whole=True))
                    return
            else:
                exchange = Exchange("daemon", [(kind, arguments["slot"])])
        self._is_decided = True
        self.meet(exchange)

    def send_request(self) -> None:
        """Forward the frame."""
        self._passes = True
        self.to_target(self._frame)
        if self.client.ended:
            self.client.forward_eof()

    def connected(self) -> None:
        """Send the target the frame, and its end."""
        super().connected()
        if (self.client.ended or self.client.lost) and not self.target.transport.is_closing():
            self.client.forward_eof()

    def on_target_data(self, data: bytes) -> None:
        """Send the reply, or do with it what the faults do."""
        if self._timer is not None:
            return
        if self.passage is None:
            self.to_client(data)
            return
        self._reply += data
        if len(self._reply.strip()) >= REPLY_BYTES:
            self._answer()

    def _answer(self) -> None:
        passage, reply = self.passage, self._reply
        decision = self.answer(reply)
        if decision is None or passage is None:
            return
        assert isinstance(decision.reply, bytes)
        begun, rest = decision.reply[: len(passage.begun)], decision.reply[len(passage.begun) :]
        if begun:
            self.to_client(begun)
            self.wait(passage.pause_s, lambda: self.send_reply(rest))
        else:
            self.send_reply(rest)

    def send_reply(self, reply: object) -> None:
        """Send the reply, or what is left of it."""
        assert isinstance(reply, bytes)
        self.to_client(reply)
        self.passage = None
        if self.client.ended or self.client.lost or self.target.ended or self.target.lost:
            self.close()
        elif not self._passes:
            self.client.transport.write_eof()
            self.wait(
                QUIET_S, self.close
            )  # what still comes of the frame is read, for else it would reset the connection

    def on_client_eof(self) -> None:
        """Forward the end of the frame, or take it as that."""
        if self._passes:
            self.client.forward_eof()
        elif not self._is_decided and self._frame:
            self._look(is_whole=True)
        elif not self.is_busy():
            self.close()

    def on_target_eof(self) -> None:
        """Send what there is of a reply, and forward its end, unless more is due."""
        if self._timer is not None or self.client.lost:
            return
        if self.passage is not None and self._reply:
            self._answer()
            return
        self.passage = None
        if not self.target.lost:
            self.target.forward_eof()
