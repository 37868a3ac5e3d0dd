"""Bound sockets that refuse connections for a while."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path


def refusing(family: int, address: str | tuple[str, int]) -> socket.socket:
    """Return a socket that keeps an address without listening: connections are refused until it listens."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    if isinstance(address, str):
        beside = Path(address[:-1] + ("_" if address.endswith("~") else "~"))  # as long: socket paths have a limit
        beside.unlink(missing_ok=True)
        sock.bind(str(beside))
        with suppress(FileNotFoundError):  # somebody has removed it
            beside.chmod(Path(address).stat().st_mode & 0o777)  # who could connect still can, later
        beside.replace(address)  # atomically: the path always has a socket
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    return sock
