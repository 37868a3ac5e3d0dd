"""What quirks of the server replace in how it reads requests and answers them; the defaults are the protocol's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cpsim.net.http.messages import Failure, Request, Response

    Interceptor = Callable[[Request, str, str], Response | None]
    """A function of a request, its folder and its name, which answers it, or does not."""
    Render = Callable[[Request, Mapping[str, object] | Failure], Response]
    Lists = tuple[dict[str, list[Any]], list[tuple[str, str]], bool]


@dataclass(frozen=True)
class RequestPolicy:
    """How requests are read and answered.

    Attributes:
        before: look at each request first.
        signed: look at each request whose signature is right.
        methods: accepted methods; None accepts any.
        page: whether a single command with a malformed argument gets an HTML page; so does a body that is no object.
        strict: whether a token is read as it is, not decoded, and its project, in lower case, is looked for first.
        takes_auth: names of requests by GET that take `auth`, and a callback, for arguments.
        read_text: reads a body of names and values as text; raises Failure.
        formats: the answer to a request, by suffix, where it is another.
        any_callback: whether any text is a callback.
        read_bulk: returns the lists of commands by class, errors (message and class), and whether to break off behind
            them; raises Failure.
        breaks_off: whether a malformed argument breaks a bulk off, with an HTML page; such a server knows no batch ids.
    """

    before: tuple[Interceptor, ...] = ()
    signed: tuple[Interceptor, ...] = ()
    methods: frozenset[str] | None = frozenset({"GET", "POST"})
    page: bool = False
    strict: bool = False
    takes_auth: frozenset[str] = frozenset()
    read_text: Callable[[bytes], dict[str, Any]] | None = None
    formats: Mapping[str, Render] = field(default_factory=dict)
    any_callback: bool = False
    read_bulk: Callable[[object], Lists] | None = None
    breaks_off: bool = False


def page(status: int, heading: str) -> Response:
    """Return an HTML page, as the framework of the server in production answers."""
    from cpsim.net.http.messages import Response  # noqa: PLC0415 - msgspec takes longer to import than all quirks

    return Response(status, f"<h1>{heading}</h1>".encode(), b"text/html")


def broken_off() -> Response:
    """Return the page of a request that the server in production breaks off at."""
    return page(500, "Server Error (500)")
