"""A client's connection and the target's: bytes, half-closes and resets go from one to the other."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cpsim.record.exchanges import RecordedExchange

RESET: Final = struct.pack("ii", 1, 0)
NOT_LISTENING: Final = (ConnectionRefusedError, FileNotFoundError)


class RelayOwner(Protocol):
    """What has the relays: the proxy."""

    def exchange(self) -> RecordedExchange:
        """Return the parser of a new connection."""

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect to the target."""

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task."""

    def on_target_down(self) -> None:
        """Handle a target that refuses connections."""

    def ended(self, relay: Relay) -> None:
        """Forget a relay that has ended."""


class Side(asyncio.Protocol):
    """One end of a connection.

    Attributes:
        transport: None before it is connected.
        other: the other end.
        receive: takes the bytes that arrive; by default, `forward`.
        record: takes the bytes that are forwarded.
        buffered: bytes for the other end, which is not connected yet.
        ended: whether no more bytes will arrive.
        lost: whether it is closed.
    """

    __slots__ = ("buffered", "ended", "lost", "other", "receive", "record", "relay", "transport")

    other: Side
    relay: Relay
    receive: Callable[[bytes], object]
    record: Callable[[bytes], object]
    transport: Any

    def __init__(self) -> None:
        self.transport = None
        self.receive = self.forward
        self.buffered = b""
        self.ended = self.lost = False

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        self.receive(data)

    def forward(self, data: bytes) -> None:
        """Forward bytes to the other end, once that is connected."""
        self.record(data)
        if self.other.transport is None:
            self.buffered += data
            self.transport.pause_reading()
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Take the end of the stream."""
        self.ended = True
        self.relay.eof(self)
        return True

    def forward_eof(self) -> None:
        """Forward the end of the stream to the other end, if that is connected."""
        other = self.other
        if other.transport is None:
            return
        if other.lost:
            self.transport.close()
        elif other.ended:
            self.transport.close()
            other.transport.close()
        elif other.transport.can_write_eof():
            other.transport.write_eof()
        else:
            other.transport.close()  # TLS has no half-close

    def pause_writing(self) -> None:
        """Stop reading from the other end."""
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.pause_reading()

    def resume_writing(self) -> None:
        """Read from the other end again."""
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the relay."""
        self.lost = True
        self.relay.lost(self, error)

    def close(self) -> None:
        """Close the connection once all is sent."""
        if self.transport is not None and not self.lost:
            self.transport.close()

    def reset(self) -> None:
        """Reset the connection."""
        if self.transport is not None and not self.lost:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()


class ClientSide(Side):
    """The client's end.

    Args:
        begin: called with it once it is connected; sets `relay`.
    """

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[ClientSide], object]) -> None:
        super().__init__()
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the relay."""
        self.transport = transport
        self._begin(self)


class TargetSide(Side):
    """The target's end."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the relay."""
        self.transport = transport
        self.relay.connected()


class Relay:
    """A client's connection and the target's, with the parser of their traffic.

    Args:
        owner: what it belongs to.
        client: the client's end, connected.
    """

    connecting: asyncio.Task[None] | None = None

    def __init__(self, owner: RelayOwner, client: ClientSide) -> None:
        self.owner = owner
        self.exchange = owner.exchange()
        self.client = client
        client.relay = self
        client.record = self.exchange.on_client_data
        self.pair()

    def pair(self) -> None:
        """Make the target's end."""
        self.target = TargetSide()
        self.target.relay = self
        self.target.record = self.exchange.on_target_data
        self.client.other, self.target.other = self.target, self.client

    def begin(self) -> None:
        """Connect to the target."""
        self.connecting = self.owner.start(self.connect())

    async def connect(self) -> None:
        """Connect to the target; reset the client if that fails or is cancelled."""
        target = self.target
        try:
            await self.owner.connect(lambda: target)
        except (OSError, asyncio.CancelledError) as error:
            target.lost = True
            if isinstance(error, NOT_LISTENING):
                self.owner.on_target_down()
            if self.client.lost:
                self.owner.ended(self)
            else:
                self.client.reset()

    def connected(self) -> None:
        """Send the target what has come, or reset it if the client has left."""
        client, target = self.client, self.target
        if client.lost:
            target.reset()
            return
        if client.buffered:
            target.transport.write(client.buffered)
            client.buffered = b""
        if client.ended:
            client.forward_eof()
        else:
            client.transport.resume_reading()

    def eof(self, side: Side) -> None:
        """Handle the end of the stream from one end."""
        side.forward_eof()

    def lost(self, side: Side, error: Exception | None) -> None:
        """Close or reset the other end as one was."""
        other = side.other
        if other.lost:
            self.owner.ended(self)
        elif error is not None:
            other.reset()
        else:
            other.close()

    def refresh(self) -> None:
        """Follow a change of the plan of faults, if there is one."""

    def drain(self) -> None:
        """Close the connection when it is idle, if it can carry several exchanges."""

    def reset(self) -> None:
        """Reset both ends."""
        if self.connecting is not None:
            self.connecting.cancel()
        self.client.reset()
        self.target.reset()
