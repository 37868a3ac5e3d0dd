"""HTTP requests and responses as values."""

from __future__ import annotations

from enum import Enum
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


class Cut(msgspec.Struct, frozen=True):
    """Instead of an answer: a response, cut in the middle of its body, and then the end of the connection."""

    response: Response


class Ending(Enum):
    """Instead of an answer: the end of the connection."""

    CLOSE = "close"
    RESET = "reset"


class Failure(Exception):
    """The request gets an error status and a message."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
