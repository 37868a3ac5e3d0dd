"""A file that this process has made at a path, and that another may have replaced since."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEEPER: Final = """
import os, sys
path, *own = sys.argv[1:]
os.read(0, 1)
found = os.stat(path)
if [str(found.st_dev), str(found.st_ino), str(found.st_mtime_ns)] == own:
    os.unlink(path)
"""
"""Waits for the end of its input, then removes a file if it is the one of that device, inode and time."""


class OwnFile:
    """The file that is at a path now; it is removed only if it is still that one.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.note()

    def note(self) -> None:
        """Take the file that is there now for our own."""
        self._identity = _identity(self._path)

    def remove(self) -> None:
        """Remove the file, unless it is gone or another has taken its place."""
        if self.is_there:
            self._path.unlink(missing_ok=True)

    @property
    def is_there(self) -> bool:
        """Whether the file is there, and no other has taken its place."""
        return self._identity is not None and _identity(self._path) == self._identity


@contextmanager
def removed_at_end(path: Path, made: Path) -> Iterator[None]:
    """Remove a file when the context ends, and when this process is killed within it, for which a process looks out.

    Args:
        path: where the file will be.
        made: where it is now.

    Raises:
        OSError: there is no file, or no process can be started.
    """
    own = _identity(made)
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-IS", "-c", KEEPER, path.absolute(), *map(str, own or ())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as keeper:
        try:
            yield
        finally:
            if _identity(path) == own:
                path.unlink(missing_ok=True)
            keeper.kill()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and time of a file; None if there is none. An inode that is free is used again."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
