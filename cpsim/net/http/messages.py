"""HTTP requests and responses as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    Headers = tuple[tuple[bytes, bytes], ...]


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, whole. `path` is decoded, `query` and `body` are the exact bytes."""

    method: str
    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    body: bytes


class Response(msgspec.Struct, frozen=True):
    """One HTTP response; `headers` are those beside content type and length."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: Headers = ()


class Failure(Exception):
    """The request gets an error status and a message."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
