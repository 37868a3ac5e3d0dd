"""The socket of a test: a path for it, and what can keep a client from it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cpsim.daemon.site import Daemon
    from cpsim.faults.spec import Fault

LONGEST_PATH: Final = 100
"""Bytes of a socket's path that every system takes: macOS has room for 103."""
SHORT_FOLDER: Final = Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder in it


def short_folder() -> Path:
    """Make a folder whose path leaves room for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="cp-"))
    if len(os.fsencode(folder / "daemon.sock")) > LONGEST_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="cp-", dir=SHORT_FOLDER))
    return folder


def socket_path(path: str | Path) -> Path:
    """Return the absolute path of a socket.

    Raises:
        CpsimError: no socket can have it.
    """
    absolute = Path(path).expanduser().absolute()
    try:
        parse_endpoint(f"unix:{absolute}")
    except EndpointError as error:
        raise CpsimError(f"path: {error}") from None
    return absolute


def obstacles(daemons: Iterable[Daemon], refused: Iterable[str], faults: Iterable[Fault]) -> Iterator[str]:
    """Yield what can have kept commands from some daemons and their server.

    Args:
        daemons: with a UNIX socket each.
        refused: the requests that the server refused, and why.
        faults: those of the daemons.
    """
    for daemon in daemons:
        yield from _at_socket(Path(daemon.addresses["unix"]).absolute(), is_own=daemon.has_socket_file)
    yield from (f"refused by the server: {line}" for line in refused)
    yield from (f"fault {fault}: connections are refused" for fault in faults if not fault.hooks)


def _at_socket(path: Path, *, is_own: bool) -> Iterator[str]:
    """Yield what decides whether a client reaches a UNIX socket: its file, each folder above it, and its length.

    Args:
        path: of the socket, absolute.
        is_own: whether the file there is the one that was made.
    """
    try:
        found = path.stat()
    except OSError as error:
        yield f"socket {path}: {error.strerror}; somebody has removed it"
        return
    if not is_own:
        yield f"socket {path} is another's: somebody has put it in the place of this one"
    who = f"user {_user(found.st_uid)}" + (f" and group {_group(found.st_gid)}" if found.st_mode & stat.S_IWGRP else "")
    if found.st_mode & stat.S_IWOTH:  # macOS and Linux let those connect who may write
        yield f"socket {path} ({_seen(found)}): every user may connect"
    else:
        yield f"socket {path} ({_seen(found)}): only {who} may connect; mode=0o666 lets all users"
    for folder in reversed(path.parents):
        seen = folder.stat()
        if not seen.st_mode & stat.S_IXOTH:
            yield f"folder {folder} ({_seen(seen)}) is closed to other users: set path to one outside it, or open it"
    size = len(os.fsencode(path))
    if size > LONGEST_PATH:
        yield f"the path has {size} bytes: some clients take no more than {LONGEST_PATH}"


def _seen(found: os.stat_result) -> str:
    """Permissions and owner as `ls -l` shows them."""
    return f"{stat.filemode(found.st_mode)} {_user(found.st_uid)} {_group(found.st_gid)}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
