"""What is read on one connection: requests are parsed, and checked against limits before anybody performs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httptools

from cpsim.net.http.heads import target
from cpsim.net.http.messages import Failure, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.net.http.shared import Limits

METHODS: Final = {b"GET": "GET", b"POST": "POST"}
NOT_HTTP: Final = "Invalid HTTP request received."
STAYING: Final = {b"connection", b"proxy-connection"}
"""Without one of these, HTTP/1.0 does not stay anyway; the version takes long to read."""
FIRST_BYTE, HEAD, BODY = range(3)
"""What comes next of a request."""


class RequestReader:
    """Parses the requests of one connection.

    Args:
        limits: of each request.
        begin: called before a request is read.
        take: called with each request that is whole.

    Attributes:
        part: `FIRST_BYTE`, `HEAD` or `BODY` of the request that is read.
        is_last: whether there is nothing more to read: the client wants the last answer, or the connection is to end.
        ends_soon: whether the request that is read is the last.
    """

    part: int
    _method: str
    _target: tuple[str, bytes]
    _fields: list[tuple[bytes, bytes]]
    """Headers, and then trailers."""
    _headers: dict[bytes, bytes]
    _body: bytes | bytearray
    _has_grown: bool
    """Whether this step has brought some of the body."""
    _spare_bytes: int
    """Read in the steps since then."""
    _expects: bool
    """Whether the client waits to be told to go on."""

    def __init__(self, limits: Limits, begin: Callable[[], object], take: Callable[[Request], object]) -> None:
        self.is_last = self.ends_soon = False
        self._limits = limits
        self._begin = begin
        self._take = take
        self._parser = httptools.HttpRequestParser(self)
        self._failure: Failure | None = None
        self.forget()

    @property
    def held_bytes(self) -> int:
        """What there is of a request that is not whole; without a head that is followed by a body."""
        return len(self._body) + self._spare_bytes

    @property
    def missing_bytes(self) -> int | None:
        """What is to come of a body with a length; None if a line comes next, of a head or of a body in chunks."""
        if self.part is not BODY or b"transfer-encoding" in self._headers:
            return None
        return int(self._headers.get(b"content-length", 0)) - len(self._body)

    def feed(self, data: bytes) -> None:
        """Read what has come in one step.

        Raises:
            Failure: the request is refused, and cannot be read on.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # it was the last request
        except httptools.HttpParserError as error:
            if not self.is_last:
                if self._failure is None and isinstance(error, httptools.HttpParserCallbackError):
                    raise  # our own mistake
                raise self._failure or Failure(400, NOT_HTTP) from error
        if self.part:
            self._spare_bytes = 0 if self._has_grown else self._spare_bytes + len(data)
            self._has_grown = False
            if self._spare_bytes > self._limits.head_bytes:
                self._fail_too_long()
            if len(self._fields) > self._limits.headers:
                self._fail_too_many()

    def forget(self) -> None:
        """Forget the request that is read."""
        self.part = FIRST_BYTE
        self._url = b""
        self._fields = []
        self._headers = {}
        self._body = b""
        self._has_grown = False
        self._spare_bytes = 0
        self._expects = False

    def wants_to_go_on(self) -> bool:
        """Whether the client waits to be told to send the body; that it is told is assumed."""
        if not self._expects or self.part is not BODY:
            return False
        self._expects = False
        return not self._body

    def close(self) -> None:
        """Read no more, and refer to nothing that refers to this."""
        self.is_last = True
        self.forget()
        self._failure = None
        del self._parser, self._begin, self._take

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin()
        if self.is_last:
            raise EOFError
        self.part = HEAD

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or after the body a trailer."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        limits, parser = self._limits, self._parser
        if self._spare_bytes:
            size = len(self._url) + sum(len(name) + len(value) for name, value in self._fields)
            if size > limits.head_bytes:
                self._fail_too_long()
        self._headers = headers = dict(self._fields)
        length = headers.get(b"content-length")
        if length is not None and int(length) > limits.body_bytes:
            self._fail_too_large()
        method = parser.get_method()
        self._method = METHODS.get(method) or method.decode("ascii")
        try:
            self._target = target(self._url)
        except ValueError:
            self._fail(400, NOT_HTTP)
        if parser.should_upgrade():
            if int(length or 0) or b"transfer-encoding" in headers:  # the parser skips it
                self._fail(400, "A request to upgrade the connection cannot have a body.")
            self.ends_soon = True
        self.part = BODY

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._has_grown = True
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > self._limits.body_bytes:
            self._fail_too_large()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if len(self._fields) > self._limits.headers:
            self._fail_too_many()
        if (
            self.ends_soon
            or not self._parser.should_keep_alive()
            or (not STAYING.isdisjoint(self._headers) and self._parser.get_http_version() == "1.0")
        ):
            self.is_last = True
        path, query = self._target
        request = Request(self._method, path, query, self._headers, bytes(self._body))
        self.forget()
        self._take(request)

    def _fail(self, status: int, message: str) -> None:
        """Have the parser stop, and the request refused."""
        self._failure = Failure(status, message)
        raise self._failure

    def _fail_too_long(self) -> None:
        self._fail(400, f"The head of the request is over {self._limits.head_bytes} bytes.")

    def _fail_too_many(self) -> None:
        self._fail(400, f"The request has over {self._limits.headers} headers and trailers.")

    def _fail_too_large(self) -> None:
        self._fail(413, f"the body is over {self._limits.body_bytes} bytes")
