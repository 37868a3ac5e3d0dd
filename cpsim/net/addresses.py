"""Stream sockets bound and listening, for UNIX paths and for TCP."""

from __future__ import annotations

import errno
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
        raise _told(error, str(path)) from error
    return sock


def listen_tcp(host: str, port: int) -> socket.socket:
    """A socket listening at a host and port; port 0 takes a free one.

    Raises:
        OSError: the address cannot be resolved or is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one of a host
        raise _told(error, f"{host}:{port}") from error


def _told(error: OSError | UnicodeError, where: str) -> OSError:
    """An error with the system's number, if there is one, that says where."""
    number = error.errno if isinstance(error, OSError) else None
    text = f"cannot listen at {where}: {(isinstance(error, OSError) and error.strerror) or error}"
    return OSError(text) if number is None else OSError(number, text)


def _clear(path: Path) -> None:
    """Remove the file of a socket that refuses connections, as a killed process leaves it."""
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ENOENT, f"it is a link to {path.readlink()}, which is not there") from None
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "there is a file of that name that is not a socket")
    if is_served(path):
        raise OSError(errno.EADDRINUSE, "another process is serving there")
    path.unlink(missing_ok=True)


def is_served(path: Path) -> bool:
    """Whether a process listens at a UNIX path.

    Raises:
        OSError: that cannot be told.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003 - a server that is behind would keep us waiting
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass
    return True
