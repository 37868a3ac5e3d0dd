"""Listening addresses, as text."""

from __future__ import annotations

import ipaddress
from typing import Final

from cpdaemon.endpoint import TcpEndpoint

BACKLOG: Final = 4096
"""Connections that wait to be accepted, where the system allows so many."""


class Listen(TcpEndpoint):
    """A listening address, written HOST:PORT; port 0 takes a free one.

    Raises:
        ValueError: the text is not HOST:PORT.
    """

    __slots__ = ()

    def __init__(self, text: str) -> None:
        host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
        if "://" in host:
            raise ValueError(f"{text!r} has a scheme: write HOST:PORT, as {text.partition('://')[2].partition('/')[0]}")
        if not colon or "/" in host or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not HOST:PORT with a port from 0 (any free one) to 65535")
        super().__init__(host.removeprefix("[").removesuffix("]"), int(port))


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
