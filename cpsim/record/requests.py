"""A server's connection with faults: requests one after the other, each forwarded once it is whole."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

from cpsim.net.http.connection import GO_ON
from cpsim.net.http.heads import head
from cpsim.net.http.messages import Failure
from cpsim.net.http.reader import RequestReader
from cpsim.net.http.shared import Limits
from cpsim.protocol.exchange import End, Exchange, HttpReply
from cpsim.record.faulty import FaultyRelay
from cpsim.server.faults import signed_for, subjects

if TYPE_CHECKING:
    from cpsim.faults.plan import FaultPlan
    from cpsim.net.http.messages import Request
    from cpsim.record.relay import ClientSide, RelayOwner

LIMITS: Final = Limits()
MAX_REPLY_BYTES: Final = 64 * 2**20
"""Size up to which a response is kept until it is whole."""
HEAD_END: Final = re.compile(rb"\n\r?\n")


class RequestRelay(FaultyRelay):
    """A relay that decides about each request; from what is not HTTP on, it forwards everything as it is.

    Args:
        owner: what it belongs to.
        client: the client's end, connected.
        faults: the plan.
        prefix: of the paths that have faults.
    """

    def __init__(self, owner: RelayOwner, client: ClientSide, faults: FaultPlan, prefix: str) -> None:
        super().__init__(owner, client, faults)
        self._prefix = prefix
        self._reader = RequestReader(LIMITS, bool, self._take)
        self._raw = b""
        """The request that is read."""
        self._waiting: deque[tuple[Request | None, bytes]] = deque()
        """Requests with their bytes; None before what is to be forwarded as it is."""
        self._in_hand = b""
        """The request that is to be forwarded or answered."""
        self._is_plain = self._drains = False
        self._response: _ResponseReader | None = None
        """Of the request in hand, if it was forwarded."""
        self._reply = b""

    def on_client_data(self, data: bytes) -> None:
        """Read requests, and go on with the first of them."""
        self.exchange.on_client_data(data)
        if self._is_plain:
            self.to_target(data)
            return
        while data:
            if self._reader.is_last:
                self._waiting.append((None, data))
                break
            size = self._size_of_next(data)
            self._raw += data[:size]
            try:
                self._reader.feed(data[:size])
            except Failure:
                self._reader.is_last = True
                self._waiting.append((None, self._raw))
                self._raw = b""
            data = data[size:]
        if self._reader.wants_to_go_on() and not self._in_hand:
            self.to_client(GO_ON)
        self._advance()
        if self._waiting and not self.client.transport.is_closing():
            self.client.transport.pause_reading()

    def _size_of_next(self, data: bytes) -> int:
        """Return the size of the bytes that end at most one request."""
        missing_bytes = self._reader.missing_bytes
        if missing_bytes is not None:
            return missing_bytes
        if not self._raw:
            found = HEAD_END.search(data)
            return found.end() if found is not None else len(data)
        return data.find(b"\n") + 1 or len(data)

    def _take(self, request: Request) -> None:
        self._waiting.append((request, self._raw))
        self._raw = b""

    def _advance(self) -> None:
        """Go on with the next request, if none is in hand."""
        if self._in_hand or self._is_plain or not self._waiting:
            return
        request, self._in_hand = self._waiting.popleft()
        if request is None or request.method == "HEAD":  # whose response has a length and no body
            self._is_plain = True
            self.to_target(self._in_hand + b"".join(raw for _, raw in self._waiting) + self._raw)
            self._waiting.clear()
        if not self._waiting and not self.client.transport.is_closing():
            self.client.transport.resume_reading()
        if request is not None and not self._is_plain:
            has_faults = self.faults.server and request.path.startswith(self._prefix)
            self.meet(Exchange("server", list(subjects(request)), signed_for(request)) if has_faults else None)

    def send_request(self) -> None:
        """Forward the request."""
        self._response, self._reply = _ResponseReader(), b""
        self.to_target(self._in_hand)

    def connected(self) -> None:
        """Send the target the request, and the end if the client has sent that."""
        super().connected()
        if self.client.ended and self.passage is None and not self.target.transport.is_closing():
            self.client.forward_eof()

    def on_target_data(self, data: bytes) -> None:
        """Send the response, or do with it what the faults do."""
        if self._is_plain or self._response is None:
            self.to_client(data)
            return
        if self.passage is None:
            self.to_client(data)
        else:
            self._reply += data
        try:
            self._response.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._is_plain = True
            self._pass_on()
            return
        if self._response.is_whole:
            self._answer()
        elif len(self._reply) > MAX_REPLY_BYTES:
            self._pass_on()

    def _pass_on(self) -> None:
        """Send what there is of the response, and what comes of it, without faults."""
        if self.passage is not None:
            self.passage = None
            self.to_client(self._reply)
        self._reply = b""

    def _answer(self) -> None:
        """Go on with a response that is whole."""
        if self.passage is None:
            self._next()
        elif (decision := self.answer(self._reply)) is not None:
            self.send_reply(decision.reply)

    def send_reply(self, reply: object) -> None:
        """Answer the request in hand."""
        if isinstance(reply, HttpReply):
            closes = self._reader.is_last and not self._waiting
            reply = head(reply.status, reply.content_type, len(reply.body), (), closes) + reply.body
        else:
            closes = False
        assert isinstance(reply, bytes)
        self.to_client(reply)
        if closes:
            self.close()
        else:
            self._next()

    def send_half(self) -> None:
        """Send the response without the second half of its body."""
        assert self._response is not None
        missing_bytes = self._response.body_bytes - self._response.body_bytes // 2
        self.to_client(self._reply[: len(self._reply) - missing_bytes])

    def _next(self) -> None:
        """End the exchange in hand."""
        self.passage = self._response = None
        self._in_hand = b""
        if self.client.lost or (self._drains and not self._waiting):
            self.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._advance)
        elif self.client.ended:
            self.close()

    def close(self) -> None:
        """Close both ends, and drop the requests that wait."""
        self._waiting.clear()
        super().close()

    def drain(self) -> None:
        """Close the connection when the requests that have come are answered."""
        if self._in_hand or self._waiting or self._raw:
            self._drains = True
        else:
            self.close()

    def on_client_eof(self) -> None:
        """Forward the end, unless a request is to be forwarded or answered before."""
        if self.passage is not None:
            if self.passage.instead is End.HANG:
                self.close()
        elif self._waiting:
            pass
        elif self._in_hand or self._is_plain:
            self.client.forward_eof()
        elif self._raw:
            self._is_plain = True
            self.to_target(self._raw)
            self.client.forward_eof()
        else:
            self.close()

    def on_target_eof(self) -> None:
        """Take the end as that of the response, or of the connection, unless the target is not needed now."""
        if self._response is None and self._in_hand and not self._is_plain:
            return  # a fault holds the request, for which another connection will be made
        if self.passage is not None and self._response is not None:
            if self._response.ends_with_connection:
                self._answer()
            else:
                self.to_client(self._reply)
            self.passage = None
        if self._is_plain and not self.target.lost:
            self.target.forward_eof()
        else:
            self.client.close()


class _ResponseReader:
    """Reads a response, and those before it that are only provisional.

    Attributes:
        is_whole: whether the response is whole.
        ends_with_connection: whether it has no length, and has not ended.
        body_bytes: of its body, as it was sent.
    """

    def __init__(self) -> None:
        self.is_whole = self.ends_with_connection = self._has_length = False
        self.body_bytes = 0
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Read bytes; raises an error of httptools."""
        self._parser.feed_data(data)

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._has_length = True

    def on_headers_complete(self) -> None:
        self.ends_with_connection = not self._has_length

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)

    def on_message_complete(self) -> None:
        self._has_length = self.ends_with_connection = False
        self.is_whole = self._parser.get_status_code() >= 200
