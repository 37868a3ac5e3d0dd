"""Listening stream sockets, at UNIX paths and on TCP."""

from __future__ import annotations

import errno
import socket
import stat
from typing import TYPE_CHECKING

from cpsim.net.listen import BACKLOG

if TYPE_CHECKING:
    from pathlib import Path


def listen_unix(path: Path, mode: int | None = None) -> socket.socket:
    """Return a socket listening at a path; a stale socket file is replaced.

    Args:
        path: of the socket file.
        mode: its permissions; by default as the process's umask has it.

    Raises:
        OSError: the path has a live socket or another file, or cannot be created.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        sock.bind(str(path))
        if mode is not None:
            path.chmod(mode)  # nobody can connect before it listens
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _with_address(error, str(path)) from error
    return sock


def listen_tcp(host: str, port: int) -> socket.socket:
    """Return a socket listening at a host and port; port 0 takes a free one.

    Raises:
        OSError: the address cannot be resolved or is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: an impossible host name
        raise _with_address(error, f"{host}:{port}") from error


def _with_address(error: OSError | UnicodeError, address: str) -> OSError:
    """Return an error that names the address, with the system's errno if there is one."""
    number = error.errno if isinstance(error, OSError) else None
    text = f"cannot listen at {address}: {(isinstance(error, OSError) and error.strerror) or error}"
    return OSError(text) if number is None else OSError(number, text)


def _clear(path: Path) -> None:
    """Remove a stale socket file, as a killed process leaves it."""
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ENOENT, f"it is a link to {path.readlink()}, which does not exist") from None
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "a file of that name exists and is not a socket")
    if is_served(path):
        raise OSError(errno.EADDRINUSE, "another process is serving there")
    path.unlink(missing_ok=True)


def is_served(path: Path) -> bool:
    """Return whether a process listens at a UNIX path.

    Raises:
        OSError: that is unknown.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003 - a full backlog must not block
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass
    return True
