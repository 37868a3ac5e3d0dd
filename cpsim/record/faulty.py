"""A relay whose exchanges meet the faults of a plan; it connects to the target when there is something to forward."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError
from cpsim.faults.spec import Fault
from cpsim.protocol.exchange import Answer, End
from cpsim.record.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.faults.plan import FaultPlan
    from cpsim.protocol.exchange import Exchange, Passage
    from cpsim.record.relay import ClientSide, RelayOwner, Side


def check_fault(text: str, stage: str) -> None:
    """Check that a fault can work at a proxy in front of a daemon or server.

    Args:
        text: the fault.
        stage: what is behind the proxy: "daemon" or "server".

    Raises:
        CpsimError: it cannot; the message says why.
    """
    fault = Fault.parse(text)
    if fault.crashes:
        raise CpsimError(
            f"fault {text!r}: a proxy cannot end the process of its target; reset or close ends the connection alone"
        )
    if fault.stage not in {"", stage}:
        raise CpsimError(
            f"fault {text!r} is one of a {fault.stage}, and the target is a {stage}; cpsim faults lists those of each"
        )
    if fault.project is not None and stage == "daemon":
        raise CpsimError(f"fault {text!r}: a command to a daemon does not say whose it is; leave out project")
    if not fault.stage:
        Fault.parse(f"{stage}.{text.strip()}")  # raises if this stage has no such requests


class FaultyRelay(Relay):
    """A relay with faults.

    Args:
        owner: what it belongs to.
        client: the client's end, connected.
        faults: the plan.
    """

    def __init__(self, owner: RelayOwner, client: ClientSide, faults: FaultPlan) -> None:
        super().__init__(owner, client)
        self.faults = faults
        self.passage: Passage | None = None
        """Of the exchange in hand, if it has met faults."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        client.receive = self.on_client_data

    # What a carrier adds

    def on_client_data(self, data: bytes) -> None:
        """Take bytes from the client."""
        raise NotImplementedError

    def on_target_data(self, data: bytes) -> None:
        """Take bytes from the target."""
        raise NotImplementedError

    def send_request(self) -> None:
        """Forward the exchange in hand to the target."""
        raise NotImplementedError

    def send_reply(self, reply: object) -> None:
        """Answer the exchange in hand."""
        raise NotImplementedError

    def send_half(self) -> None:
        """Send half of the reply that the target has given."""
        raise NotImplementedError

    def on_client_eof(self) -> None:
        """Handle that no more will come from the client."""
        raise NotImplementedError

    def on_target_eof(self) -> None:
        """Handle that no more will come from the target."""
        raise NotImplementedError

    # For the carriers

    def pair(self) -> None:
        """Make the target's end; see `Relay`."""
        super().pair()
        self.target.receive = self.on_target_data
        self.connecting = None

    def begin(self) -> None:
        """Wait for the client."""

    def to_target(self, data: bytes) -> None:
        """Send bytes to the target, and connect to it before if need be."""
        if self.target.lost:
            self.pair()
        if self.target.transport is not None:
            self.target.transport.write(data)
            return
        self.client.buffered += data
        if self.connecting is None:
            self.connecting = self.owner.start(self.connect())

    def connected(self) -> None:
        """Send the target what has come."""
        self.target.transport.write(self.client.buffered)
        self.client.buffered = b""
        if self.client.lost and not self.is_busy():
            self.target.close()

    def to_client(self, data: bytes) -> None:
        """Send bytes to the client, if it is still there."""
        transport = self.client.transport
        if not transport.is_closing():
            self.exchange.on_target_data(data)
            transport.write(data)

    def meet(self, exchange: Exchange | None) -> None:
        """Have an exchange meet the faults, and go on with it; None is forwarded."""
        passage = self.passage = None if exchange is None else self.faults.intercept(exchange)
        if passage is not None and passage.delay_s:
            self.wait(passage.delay_s, self._go_on)
        else:
            self._go_on()

    def answer(self, reply: object) -> Answer | None:
        """Return what to answer in a reply's place; None if that was done by an end."""
        assert self.passage is not None
        decision = self.passage.back(reply)
        if isinstance(decision, Answer):
            return decision
        self._end(decision)
        return None

    def wait(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call a function after a delay, unless the plan or the end of the proxy drops the exchange."""

        def call() -> None:
            self._timer = None
            function()

        self._timer = asyncio.get_running_loop().call_later(delay_s, call)

    def is_busy(self) -> bool:
        """Whether an exchange that has met faults is still to be forwarded or answered, though the client may leave."""
        return self.passage is not None and self.passage.instead is not End.HANG

    def close(self) -> None:
        """Close both ends once all is sent."""
        self.passage = None
        self._stop_timer()
        self.client.close()
        self.target.close()
        self.end_if_over()

    def end_if_over(self) -> None:
        """Forget the relay, if both ends are closed and nothing is to be forwarded."""
        if self._is_over or not self.client.lost or self._timer is not None:
            return
        target = self.target
        if target.lost or (target.transport is None and self.connecting is None):
            self._is_over = True
            self.owner.ended(self)

    # What happens to the connections

    def refresh(self) -> None:
        """Close the connection if a fault that holds its exchange is no longer in the plan: it is dropped."""
        passage = self.passage
        holds = self._timer is not None or (passage is not None and passage.instead is End.HANG)
        if holds and passage is not None and not self.faults.has_all(passage):
            self.close()

    def eof(self, side: Side) -> None:
        """Handle the end of the stream from one end."""
        if side is self.client:
            self.on_client_eof()
        elif side is self.target:
            self.on_target_eof()

    def lost(self, side: Side, error: Exception | None) -> None:
        """Close or reset the other end as one was, unless an exchange is to be forwarded or answered before."""
        if side is self.client:
            if not self.is_busy():
                (self.target.close if error is None else self.target.reset)()
        elif side is self.target:
            self.on_target_eof()
            if self.passage is None:
                (self.client.close if error is None else self.client.reset)()
        self.end_if_over()

    def reset(self) -> None:
        """Reset both ends, and drop the exchange in hand."""
        self.passage = None
        self._stop_timer()
        super().reset()
        self.end_if_over()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        """Forward the exchange, or do what a fault does in place of that."""
        instead = None if self.passage is None else self.passage.instead
        if instead is None:
            self.send_request()
        elif isinstance(instead, Answer):
            self.send_reply(instead.reply)
        else:
            self._end(instead)

    def _end(self, end: End) -> None:
        """End the connection without a whole answer, or keep it until the client leaves."""
        if end is End.HANG:
            return
        if end is End.RESET:
            self.client.reset()
        if end is End.CUT:
            self.send_half()
        self.close()
