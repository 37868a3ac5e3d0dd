"""What is said on a connection, read from the bytes that pass, and handed to the recording.

Nothing here can change what passes: whatever cannot be read is counted, and passes all the same.
"""

from __future__ import annotations

import json
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

import httptools

from cpdaemon.commands import KINDS
from cpdaemon.errors import CreditPiggyError, Refused
from cpdaemon.signing import bulk_errors, read_reply
from cpsim.record.recording import RecordedReply

if TYPE_CHECKING:
    from cpdaemon.signing import Call
    from cpsim.record.recording import Recording

MOST_FRAME_BYTES: Final = 65_536
"""As much of what is no command is kept; a daemon reads 1,500 bytes of a frame."""
MOST_REPLY_BYTES: Final = 64
MOST_URL_BYTES: Final = 16_384
MOST_HELD_BYTES: Final = 256 * 2**20
"""As much of the bodies under way is kept, on all connections together: what is beyond passes unrecorded."""
BEYOND: Final = "requests too large to be kept"
NOT_HTTP: Final = "connections on which something was said that is not HTTP"
BESIDE: Final = "requests that carry no command"
UNREAD: Final = "requests whose commands cannot be read"
UNSIGNED: Final = "requests that were turned away as not signed well"
CUT_SHORT: Final = "requests that were cut short"
EMPTY: Final = "connections on which nothing was sent"
ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"


class Exchange(Protocol):
    """Hears what passes on one connection."""

    def asked(self, data: bytes) -> None:
        """The client sent this."""

    def answered(self, data: bytes) -> None:
        """The target sent this."""

    def end(self) -> None:
        """Nothing more will pass."""


class Session:
    """What the connections of a recording share.

    Args:
        recording: takes what they say.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.held_bytes = 0
        self._began_ns = monotonic_ns()

    def now_us(self) -> int:
        """Microseconds since the recording began."""
        return (monotonic_ns() - self._began_ns) // 1_000


class FrameExchange:
    """A daemon's connection: one frame, one reply."""

    __slots__ = ("_answered_us", "_frame", "_reply", "_sent_us", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._frame = self._reply = b""
        self._sent_us = 0
        self._answered_us: int | None = None

    def asked(self, data: bytes) -> None:
        """See `Exchange`."""
        if not self._frame:
            self._sent_us = self._session.now_us()
        if len(self._frame) < MOST_FRAME_BYTES:
            self._frame += data

    def answered(self, data: bytes) -> None:
        """See `Exchange`."""
        self._answered_us = self._session.now_us()
        if len(self._reply) < MOST_REPLY_BYTES:
            self._reply += data

    def end(self) -> None:
        """See `Exchange`."""
        if not self._frame:
            self._session.recording.left_out[EMPTY] += 1
            return
        reply = self._reply.strip()
        known = {b"OK": (ACCEPTED, ""), b"ER": (REFUSED, "ER")}
        what = known.get(reply, (UNKNOWN, "no answer" if not reply else "an answer that is none"))
        answer = RecordedReply(self._sent_us, self._answered_us, *what)
        self._session.recording.frame(self._frame[:MOST_FRAME_BYTES], answer)


class RecordedRequest(NamedTuple):
    """A request as it came; no body if it was too large to be kept."""

    method: str
    url: str
    body: bytes | None
    sent_us: int

    @property
    def name(self) -> tuple[str, str]:
        """What it is about, below `/batch/`, and the suffix that picks the format; empty if it is about no command."""
        try:
            _, batch, last = urlsplit(self.url).path.rpartition("/batch/")
        except ValueError:
            return "", ""
        name, _, suffix = last.partition(".")
        return (name, suffix) if batch and name in {*KINDS, "bulk"} else ("", suffix)


class Http:
    """A server's connection: requests, and responses in the same order."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pending: deque[RecordedRequest] = deque()
        self._requests: Any = httptools.HttpRequestParser(self)
        self._reply = _Responses(self, session)
        self._responses: Any = httptools.HttpResponseParser(self._reply)
        self._is_understood = True
        self._url = b""
        self._body: bytearray | None = None
        self._is_beyond = False
        self._sent_us = 0

    def asked(self, data: bytes) -> None:
        """See `Exchange`."""
        self._feed(self._requests, data)

    def answered(self, data: bytes) -> None:
        """See `Exchange`."""
        self._feed(self._responses, data)

    def end(self) -> None:
        """See `Exchange`."""
        if self._body is not None or self._is_beyond:
            self._session.recording.left_out[CUT_SHORT] += 1
        self._hold(-len(self._body or b""))
        if self._is_understood:
            self._reply.end()
            while self._pending:
                self.done(0, b"")
        self._reply.give_back()

    def status(self) -> int:
        """Of the response that is coming."""
        return int(self._responses.get_status_code())

    def done(self, status: int, reply: bytes) -> None:
        """The request that has waited longest was answered so; status 0 if it never will be."""
        if not self._pending:
            return
        asked = self._pending.popleft()
        self._hold(-len(asked.body or b""))
        answered_us = self._session.now_us() if status else None
        _record(self._session.recording, asked, status, reply, answered_us)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._body, self._is_beyond = b"", bytearray(), False
        self._sent_us = self._session.now_us()

    def on_url(self, url: bytes) -> None:
        """Part of its target."""
        self._url += url
        if len(self._url) > MOST_URL_BYTES:
            self._url = self._url[:MOST_URL_BYTES]
            self._body, self._is_beyond = None, True

    def on_body(self, body: bytes) -> None:
        """Part of its body."""
        if self._body is None:
            return
        if self._session.held_bytes + len(body) > MOST_HELD_BYTES:
            self._hold(-len(self._body))
            self._body, self._is_beyond = None, True
            return
        self._hold(len(body))
        self._body += body

    def on_message_complete(self) -> None:
        """It is whole."""
        method, url = self._requests.get_method().decode(), self._url.decode("latin-1")
        body = None if self._body is None else bytes(self._body)
        self._pending.append(RecordedRequest(method, url, body, self._sent_us))
        self._body, self._is_beyond = None, False

    def _feed(self, parser: Any, data: bytes) -> None:  # noqa: ANN401 - httptools has no type for both
        if not self._is_understood:
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._is_understood = False
            self._session.recording.left_out[NOT_HTTP] += 1
            for asked in self._pending:
                self._hold(-len(asked.body or b""))
            self._pending.clear()

    def _hold(self, size_bytes: int) -> None:
        self._session.held_bytes += size_bytes


class _Responses:
    """What the parser of a connection's responses calls."""

    def __init__(self, http: Http, session: Session) -> None:
        self._http = http
        self._session = session
        self._body = bytearray()
        self._is_counted = self._lasts_to_the_end = False

    def end(self) -> None:
        """Nothing more will come: that, too, ends a response."""
        if self._lasts_to_the_end:
            self.on_message_complete()

    def give_back(self) -> None:
        """Hold no more of what has come of a response."""
        self._session.held_bytes -= len(self._body)
        self._body.clear()

    def on_message_begin(self) -> None:
        self._is_counted = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._is_counted = True

    def on_headers_complete(self) -> None:
        self._lasts_to_the_end = not self._is_counted

    def on_body(self, body: bytes) -> None:
        if self._session.held_bytes + len(body) <= MOST_HELD_BYTES:
            self._session.held_bytes += len(body)
            self._body += body

    def on_message_complete(self) -> None:
        self._lasts_to_the_end = False
        status, body = self._http.status(), bytes(self._body)
        self.give_back()
        if status >= 200:
            self._http.done(status, body)


def _record(recording: Recording, asked: RecordedRequest, status: int, reply: bytes, answered_us: int | None) -> None:
    """Write the commands of a request."""
    name, suffix = asked.name
    if not name:
        recording.left_out[BESIDE] += 1
        return
    if asked.body is None:
        recording.left_out[BEYOND] += 1
        return
    try:
        calls = _calls(name, suffix, asked)
    except (ValueError, RecursionError):
        if status == 400 and asked.method == "POST":
            body = asked.body[:MOST_FRAME_BYTES]
            recording.body(body, RecordedReply(asked.sent_us, answered_us, REFUSED, "HTTP 400"))
        else:
            recording.left_out[UNSIGNED if status in {400, 401} else UNREAD] += 1
        return
    if status in {400, 401}:
        recording.left_out[UNSIGNED] += 1
        return
    if not calls:
        recording.left_out[BESIDE] += 1
    for (kind, arguments), (outcome, error) in zip(calls, _outcomes(name, suffix, calls, status, reply), strict=True):
        recording.call(kind, arguments, RecordedReply(asked.sent_us, answered_us, outcome, error))


def _calls(name: str, suffix: str, asked: RecordedRequest) -> list[Call]:
    """The commands of a request, in the order in which a server applies them; its signature is no part of them."""
    assert asked.body is not None
    if asked.method != "POST":
        query = parse_qsl(urlsplit(asked.url).query, keep_blank_values=True, strict_parsing=True)
        arguments: Any = {key: value for key, value in query if key not in {"auth", "callback"}}
    elif suffix == "text":
        arguments = dict(pair.split("=", 1) for pair in asked.body.decode().strip().split(","))
    else:
        arguments = json.loads(asked.body)
    if name != "bulk":
        arguments = {name: [arguments]}
    if not isinstance(arguments, dict):
        raise ValueError("not an object")  # noqa: TRY004 - a mistake in what was read
    lists = [arguments.get(kind, []) for kind in KINDS]
    if not all(isinstance(each, list) and all(isinstance(call, dict) for call in each) for each in lists):
        raise ValueError("not lists of objects")
    return [(kind, call) for kind, each in zip(KINDS, lists, strict=True) for call in each]


def _outcomes(name: str, suffix: str, calls: list[Call], status: int, reply: bytes) -> list[tuple[str, str]]:
    """What became of each command of a request."""
    if not status:
        return [(UNKNOWN, "no answer")] * len(calls)
    error = f"HTTP {status}"
    if suffix in {"text", "jsonp"}:  # whose replies are no JSON
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
