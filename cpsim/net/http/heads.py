"""The target of a request, and the head of a response."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools

if TYPE_CHECKING:
    from cpsim.net.http.messages import Headers

LONGEST_KEPT: Final = 1_024
KEPT: Final = 256
PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


def target(url: bytes) -> tuple[str, bytes]:
    """The decoded path and the query of a request's target.

    Raises:
        ValueError: the target is no URL with a path.
    """
    return _kept_target(url) if len(url) <= LONGEST_KEPT else _target(url)


def _target(url: bytes) -> tuple[str, bytes]:
    if url.startswith(b"/") and not url.startswith(b"//") and url.isascii() and b"%" not in url and b"#" not in url:
        path, _, query = url.partition(b"?")
        return path.decode(), query
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError as error:
        raise ValueError(str(error)) from error
    if parsed.path is None:
        raise ValueError("the target has no path")
    return unquote(parsed.path.decode("ascii")), parsed.query or b""


_kept_target = lru_cache(KEPT)(_target)


@lru_cache(KEPT)
def head(status: int, content_type: bytes, length: int, headers: Headers, closes: bool) -> bytes:  # noqa: FBT001 - faster
    """What comes before the body of a response.

    Args:
        status: of the response.
        content_type: of the body.
        length: bytes of the body.
        headers: further ones.
        closes: whether the connection then ends.
    """
    lines = [(b"content-type", content_type), (b"content-length", b"%d" % length), *headers]
    if closes:
        lines.append((b"connection", b"close"))
    begin = f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode()
    return begin + b"".join(b"%s: %s\r\n" % line for line in lines) + b"\r\n"
