"""A file that this process has made at a path, and that another may have replaced since."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


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


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and time of a file; None if there is none. An inode that is free is used again."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
