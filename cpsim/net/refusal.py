"""Addresses at which connections are refused for a while."""

from __future__ import annotations

import socket
from pathlib import Path


def refusing(family: int, address: str | tuple[str, int]) -> socket.socket:
    """A socket at an address where nobody listens any more: it keeps the address, and connections are refused.

    Once it listens, they are accepted again.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    if isinstance(address, str):
        beside = Path(address[:-1] + ("_" if address.endswith("~") else "~"))  # no longer: such paths are short
        beside.unlink(missing_ok=True)
        sock.bind(str(beside))
        beside.replace(address)  # so that there is a socket at every moment
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    return sock
