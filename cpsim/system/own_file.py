"""A file that this process has made at a path, and that another may have replaced since."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEEPER: Final = """
import os, sys
own, path = sys.stdin.read(), sys.argv[1]
found = os.stat(path)
if own == f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}":
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
def removed_at_end(path: Path) -> Iterator[Callable[[Path], None]]:
    """Have a file go when the context ends, and when this process is killed within it, for which a process looks out.

    Yields:
        A function to call with the file before it is renamed to `path`.
    """
    own = None
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-IS", "-c", KEEPER, path.absolute()],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as keeper:

        def note(made: Path) -> None:
            nonlocal own
            own = _identity(made)
            assert keeper.stdin is not None
            keeper.stdin.write(" ".join(map(str, own or ())).encode())
            keeper.stdin.flush()

        try:
            yield note
        finally:
            if own is not None and _identity(path) == own:
                path.unlink(missing_ok=True)
            keeper.kill()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and time of a file; None if there is none. An inode that is free is used again."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
