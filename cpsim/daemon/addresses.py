"""Stream sockets bound and listening, for UNIX paths and for TCP."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

BACKLOG: Final = 4096


def listen_unix(path: Path) -> socket.socket:
    """A socket listening at a path; a socket file that nobody serves any more is replaced.

    Raises:
        OSError: the path is taken by a live socket or by another file, or cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen at {path}: {error.strerror or error}") from error
    return sock


def listen_tcp(host: str, port: int) -> socket.socket:
    """A socket listening at a host and port; port 0 takes a free one.

    Raises:
        OSError: the address cannot be resolved or is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen at {host}:{port}: {error.strerror or error}") from error
    return sock


def _clear(path: Path) -> None:
    """Remove the file of a socket that refuses connections, as a killed process leaves it."""
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(None, "there is a file of that name that is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(None, "another process is serving there")
