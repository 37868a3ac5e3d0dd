"""Commands and replies, parsed from the bytes of a connection and passed to the recording.

Parsing changes no bytes: traffic that cannot be parsed is counted, and the proxy forwards it.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

import httptools

from cpdaemon.commands import KINDS
from cpdaemon.errors import CreditPiggyError, Refused
from cpdaemon.signing import bulk_errors, read_reply
from cpsim.clock import SYSTEM_CLOCK
from cpsim.record.recording import RecordedReply

if TYPE_CHECKING:
    from cpdaemon.signing import Call
    from cpsim.clock import Clock
    from cpsim.record.recording import Recording

MAX_KEPT_FRAME_BYTES: Final = 65_536
"""Recorded bytes of a malformed frame or body; a daemon reads 1,500 bytes of a frame."""
MAX_REPLY_BYTES: Final = 64
MAX_URL_BYTES: Final = 16_384
MAX_HELD_BYTES: Final = 256 * 2**20
"""Bytes of unfinished bodies that are kept, over all connections; further requests are forwarded unrecorded."""
TOO_LARGE: Final = "requests too large to be kept"
NOT_HTTP: Final = "connections on which something was said that is not HTTP"
NO_COMMAND: Final = "requests that carry no command"
UNREADABLE: Final = "requests whose commands cannot be read"
BAD_SIGNATURE: Final = "requests that were turned away as not signed well"
CUT_SHORT: Final = "requests that were cut short"
EMPTY: Final = "connections on which nothing was sent"
ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"


class RecordedExchange(Protocol):
    """Parses the traffic of one connection."""

    def on_client_data(self, data: bytes) -> None:
        """Handle bytes from the client."""

    def on_target_data(self, data: bytes) -> None:
        """Handle bytes from the target."""

    def end(self) -> None:
        """Handle the end of the connection."""


class Session:
    """State shared by the connections of a recording.

    Args:
        recording: receiver of their commands.
        clock: its monotonic time is that of the recording.
    """

    def __init__(self, recording: Recording, clock: Clock = SYSTEM_CLOCK) -> None:
        self.recording = recording
        self.held_bytes = 0
        self._now_ns = clock.monotonic_ns
        self._began_ns = self._now_ns()

    def now_us(self) -> int:
        """Return the microseconds since the recording began."""
        return (self._now_ns() - self._began_ns) // 1_000


class FrameExchange:
    """A daemon's connection: one frame, one reply."""

    __slots__ = ("_answered_us", "_frame", "_reply", "_sent_us", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._frame = self._reply = b""
        self._sent_us = 0
        self._answered_us: int | None = None

    def on_client_data(self, data: bytes) -> None:
        """See `RecordedExchange`."""
        if not self._frame:
            self._sent_us = self._session.now_us()
        if len(self._frame) < MAX_KEPT_FRAME_BYTES:
            self._frame += data

    def on_target_data(self, data: bytes) -> None:
        """See `RecordedExchange`."""
        self._answered_us = self._session.now_us()
        if len(self._reply) < MAX_REPLY_BYTES:
            self._reply += data

    def end(self) -> None:
        """See `RecordedExchange`."""
        if not self._frame:
            self._session.recording.left_out[EMPTY] += 1
            return
        reply = self._reply.strip()
        known = {b"OK": (ACCEPTED, ""), b"ER": (REFUSED, "ER")}
        what = known.get(reply, (UNKNOWN, "an answer that is none" if reply else "no answer"))
        answer = RecordedReply(self._sent_us, self._answered_us, *what)
        self._session.recording.frame(self._frame[:MAX_KEPT_FRAME_BYTES], answer)


class RecordedRequest(NamedTuple):
    """A request as received; `body` is None if it was too large to be kept."""

    method: str
    url: str
    body: bytes | None
    sent_us: int

    @property
    def name(self) -> tuple[str, str]:
        """The path's part after `/batch/`, "" if the request carries no command, and the format's suffix."""
        try:
            _, batch, last = urlsplit(self.url).path.rpartition("/batch/")
        except ValueError:
            return "", ""
        name, _, suffix = last.partition(".")
        return (name, suffix) if batch and name in {*KINDS, "bulk"} else ("", suffix)


class Http:
    """A server's connection: requests, and responses in the order of the requests."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pending: deque[RecordedRequest] = deque()
        self._requests: Any = httptools.HttpRequestParser(self)
        self._reply = _Responses(self, session)
        self._responses: Any = httptools.HttpResponseParser(self._reply)
        self._is_http = True
        self._url = b""
        self._body: bytearray | None = None
        self._is_too_large = False
        self._sent_us = 0

    def on_client_data(self, data: bytes) -> None:
        """See `RecordedExchange`."""
        self._feed(self._requests, data)

    def on_target_data(self, data: bytes) -> None:
        """See `RecordedExchange`."""
        self._feed(self._responses, data)

    def end(self) -> None:
        """See `RecordedExchange`."""
        if self._body is not None or self._is_too_large:
            self._session.recording.left_out[CUT_SHORT] += 1
        self._hold(-len(self._body or b""))
        if self._is_http:
            self._reply.end()
            while self._pending:
                self.done(0, b"")
        self._reply.release()

    def status(self) -> int:
        """Return the status of the current response."""
        return int(self._responses.get_status_code())

    def done(self, status: int, reply: bytes) -> None:
        """Record the oldest pending request with its reply; status 0 if it has none."""
        if not self._pending:
            return
        request = self._pending.popleft()
        self._hold(-len(request.body or b""))
        answered_us = self._session.now_us() if status else None
        _record(self._session.recording, request, status, reply, answered_us)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._url, self._body, self._is_too_large = b"", bytearray(), False
        self._sent_us = self._session.now_us()

    def on_url(self, url: bytes) -> None:
        """Append a part of the URL."""
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            self._url = self._url[:MAX_URL_BYTES]
            self._body, self._is_too_large = None, True

    def on_body(self, body: bytes) -> None:
        """Append a part of the body."""
        if self._body is None:
            return
        if self._session.held_bytes + len(body) > MAX_HELD_BYTES:
            self._hold(-len(self._body))
            self._body, self._is_too_large = None, True
            return
        self._hold(len(body))
        self._body += body

    def on_message_complete(self) -> None:
        """End a request."""
        method, url = self._requests.get_method().decode(), self._url.decode("latin-1")
        body = None if self._body is None else bytes(self._body)
        self._pending.append(RecordedRequest(method, url, body, self._sent_us))
        self._body, self._is_too_large = None, False

    def _feed(self, parser: Any, data: bytes) -> None:  # noqa: ANN401 - httptools has no type for both
        if not self._is_http:
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._is_http = False
            self._session.recording.left_out[NOT_HTTP] += 1
            for request in self._pending:
                self._hold(-len(request.body or b""))
            self._pending.clear()

    def _hold(self, size_bytes: int) -> None:
        self._session.held_bytes += size_bytes


class _Responses:
    """Callbacks of the parser of a connection's responses."""

    def __init__(self, http: Http, session: Session) -> None:
        self._http = http
        self._session = session
        self._body = bytearray()
        self._has_length = self._ends_with_connection = False

    def end(self) -> None:
        """Handle the end of the connection, which ends a response without a length."""
        if self._ends_with_connection:
            self.on_message_complete()

    def release(self) -> None:
        """Drop the bytes of an unfinished response."""
        self._session.held_bytes -= len(self._body)
        self._body.clear()

    def on_message_begin(self) -> None:
        self._has_length = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._ends_with_connection = not self._has_length

    def on_body(self, body: bytes) -> None:
        if self._session.held_bytes + len(body) <= MAX_HELD_BYTES:
            self._session.held_bytes += len(body)
            self._body += body

    def on_message_complete(self) -> None:
        self._ends_with_connection = False
        status, body = self._http.status(), bytes(self._body)
        self.release()
        if status >= 200:
            self._http.done(status, body)


def _record(recording: Recording, request: RecordedRequest, status: int, reply: bytes, answered_us: int | None) -> None:
    """Record the commands of a request."""
    name, suffix = request.name
    if not name:
        recording.left_out[NO_COMMAND] += 1
        return
    if request.body is None:
        recording.left_out[TOO_LARGE] += 1
        return
    try:
        calls = _calls(name, suffix, request)
    except (ValueError, RecursionError):
        if status == 400 and request.method == "POST":
            body = request.body[:MAX_KEPT_FRAME_BYTES]
            recording.body(body, RecordedReply(request.sent_us, answered_us, REFUSED, "HTTP 400"))
        else:
            recording.left_out[BAD_SIGNATURE if status in {400, 401} else UNREADABLE] += 1
        return
    if status in {400, 401}:
        recording.left_out[BAD_SIGNATURE] += 1
        return
    if not calls:
        recording.left_out[NO_COMMAND] += 1
    for (kind, arguments), (outcome, error) in zip(calls, _outcomes(name, suffix, calls, status, reply), strict=True):
        recording.call(kind, arguments, RecordedReply(request.sent_us, answered_us, outcome, error))


def _calls(name: str, suffix: str, request: RecordedRequest) -> list[Call]:
    """Return the commands of a request without its signature, in the order in which a server applies them."""
    assert request.body is not None
    if request.method != "POST":
        query = parse_qsl(urlsplit(request.url).query, keep_blank_values=True, strict_parsing=True)
        arguments: Any = {key: value for key, value in query if key not in {"auth", "callback"}}
    elif suffix == "text":
        arguments = dict(pair.split("=", 1) for pair in request.body.decode().strip().split(","))
    else:
        arguments = json.loads(request.body)
    if name != "bulk":
        arguments = {name: [arguments]}
    if not isinstance(arguments, dict):
        raise ValueError("not an object")  # noqa: TRY004 - a mistake of the sender
    lists = [arguments.get(kind, []) for kind in KINDS]
    if not all(isinstance(each, list) and all(isinstance(call, dict) for call in each) for each in lists):
        raise ValueError("not lists of objects")
    return [(kind, call) for kind, each in zip(KINDS, lists, strict=True) for call in each]


def _outcomes(name: str, suffix: str, calls: list[Call], status: int, reply: bytes) -> list[tuple[str, str]]:
    """Return the outcome and the error of each command of a request."""
    if not status:
        return [(UNKNOWN, "no answer")] * len(calls)
    error = f"HTTP {status}"
    if suffix in {"text", "jsonp"}:  # their replies are not JSON
        return [(ACCEPTED, "") if status == 200 else (REFUSED, error)] * len(calls)
    try:
        fields = read_reply(status, reply)
    except Refused:
        return [(REFUSED, error)] * len(calls)
    except CreditPiggyError:
        return [(UNKNOWN, error)] * len(calls)
    if name != "bulk":
        return [(ACCEPTED, "")] * len(calls)
    outcomes = {type(None): (ACCEPTED, ""), Refused: (REFUSED, "in a bulk reply")}
    return [outcomes.get(type(found), (UNKNOWN, "in a bulk reply")) for found in bulk_errors(calls, fields)]
