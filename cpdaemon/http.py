"""HTTP/1.x: the bytes of a request, and the parsing of its reply as the bytes come; pure."""

from cpdaemon.errors import BadReply, CreditPiggyError, ReplyLost

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeVar

    from cpdaemon.endpoint import UrlEndpoint

    T = TypeVar("T")
    Steps = Generator[None, bytes, T]
    """Yields where more bytes are needed, and is sent those that have come: none at the end of the connection."""

__all__ = ["MAX_BODY_BYTES", "MAX_HEADER_LINES", "MAX_LINE_BYTES", "ReplyParser", "request"]

MAX_LINE_BYTES = 8_192
MAX_HEADER_LINES = 100
MAX_BODY_BYTES = 16 * 1024 * 1024

_HEX_DIGITS = b"0123456789abcdefABCDEF"


def request(endpoint: "UrlEndpoint", path: str, authorization: str, body: bytes, more: str = "") -> bytes:
    """Return the bytes of a POST request.

    Args:
        endpoint: the server.
        path: what follows the endpoint's base path.
        authorization: value of the Authorization header.
        body: JSON.
        more: further header lines, each with its CRLF.
    """
    head = (
        f"POST {endpoint.path}{path} HTTP/1.1\r\n"
        f"Host: {endpoint.authority}\r\n"
        f"Authorization: {authorization}\r\n"
        f"Content-Type: application/json\r\n{more}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class ReplyParser:
    """Parses one reply.

    Args:
        endpoint: the server, for messages.

    Attributes:
        reusable: whether the connection can take another request, once the reply is parsed.
        location: what a redirect names, or "".
    """

    def __init__(self, endpoint: "UrlEndpoint") -> None:
        self._endpoint = endpoint
        self._buffer = bytearray()
        self.reusable = False
        self.location = ""

    def steps(self) -> "Steps[tuple[int, bytes]]":
        """Parse; return HTTP status and body.

        An error that is thrown into it is raised again, as answered if the status has come.

        Raises:
            ReplyLost: the connection ended before the reply did.
            BadReply: the reply is not HTTP/1.x, or is larger than the limits of this module.
        """
        status = 100
        while status < 200:  # interim replies, such as 100 Continue
            minor, status = yield from self._status()
            try:
                headers = yield from self._headers()
                reply, is_delimited = (yield from self._body(status, headers)) if status >= 200 else (b"", True)
            except CreditPiggyError as error:
                error.answered = True
                raise
        options = headers.get("connection", "").lower()
        keep_alive = "close" not in options if minor == 1 else "keep-alive" in options
        self.reusable = keep_alive and is_delimited and not self._buffer
        self.location = headers.get("location", "") if 300 <= status < 400 else ""
        return status, reply

    def _status(self) -> "Steps[tuple[int, int]]":
        line = yield from self._line()
        version, _, rest = line.partition(b" ")
        code, _, _ = rest.partition(b" ")
        if version not in {b"HTTP/1.0", b"HTTP/1.1"} or not (len(code) == 3 and code.isdigit()):
            error = self._bad(f"a reply that is not HTTP/1: {line[:60]!r}")
            error.answered = False
            raise error
        return int(version[-1:]), int(code)

    def _headers(self) -> "Steps[dict[str, str]]":
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADER_LINES):
            line = yield from self._line()
            if not line:
                return headers
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise self._bad(f"a malformed header line: {line[:60]!r}")
            name, value = name.lower(), value.strip()
            if name == "content-length" and headers.get(name, value) != value:
                raise self._bad("two different Content-Length headers")
            headers[name] = f"{headers[name]}, {value}" if name == "transfer-encoding" and name in headers else value
        raise self._bad(f"more than {MAX_HEADER_LINES} header lines")

    def _body(self, status: int, headers: dict[str, str]) -> "Steps[tuple[bytes, bool]]":
        """Return the body, and whether it ended before the connection did."""
        if status in {204, 304}:
            return b"", True
        if coding := headers.get("transfer-encoding"):
            if coding.lower() != "chunked":
                raise self._bad(f"an unknown Transfer-Encoding: {coding[:60]!r}")
            return (yield from self._chunks()), True
        if length := headers.get("content-length"):
            if not (length.isascii() and length.isdigit() and len(length) <= 10):
                raise self._bad(f"a Content-Length that is no number, or too large: {length[:60]!r}")
            return (yield from self._exactly(int(length))), True
        while (yield from self._fill(at_end=False)):
            self._check_size(len(self._buffer))
        return self._cut(len(self._buffer)), False

    def _chunks(self) -> "Steps[bytes]":
        body = bytearray()
        while True:
            line = yield from self._line()
            digits = line.partition(b";")[0].strip()
            if not 1 <= len(digits) <= 8 or digits.translate(None, _HEX_DIGITS):
                raise self._bad(f"a chunk without a size: {line[:60]!r}")
            size = int(digits, 16)
            if size == 0:
                yield from self._headers()  # trailers
                return bytes(body)
            self._check_size(len(body) + size)
            body += yield from self._exactly(size)
            if (yield from self._line()):
                raise self._bad("a chunk longer than its size")

    def _line(self) -> "Steps[bytes]":
        while (end := self._buffer.find(b"\r\n")) < 0 and len(self._buffer) <= MAX_LINE_BYTES:
            yield from self._fill()
        if not 0 <= end <= MAX_LINE_BYTES:
            raise self._bad(f"a line of more than {MAX_LINE_BYTES:,} bytes")
        return self._cut(end + 2)[:-2]

    def _exactly(self, size: int) -> "Steps[bytes]":
        self._check_size(size)
        while len(self._buffer) < size:
            yield from self._fill()
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    def _fill(self, *, at_end: bool = True) -> "Steps[int]":
        """Take what has come, and return the number of bytes: 0 at the end, which raises unless `at_end` is False."""
        piece = yield
        if not piece and at_end:
            raise ReplyLost(f"{self._endpoint} closed the connection before the end of its reply")
        self._buffer += piece
        return len(piece)

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise self._bad(f"a body of more than {MAX_BODY_BYTES:,} bytes")

    def _bad(self, what: str) -> BadReply:
        return BadReply(f"{self._endpoint} sent {what}")
