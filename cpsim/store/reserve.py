"""Room on a disk that is kept free for when the disk is full."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Reserve:
    """A file that takes up room, and is emptied when that is needed.

    Args:
        path: the file; what an earlier process has left of it counts.
        size: bytes that it takes up.

    Raises:
        OSError: there can be no such file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self.size = size
        path.touch()
        self._is_held = path.stat().st_size == size
        self.hold()

    def hold(self) -> bool:
        """Whether the room is kept; it is taken where it was not, if the disk has as much again."""
        if not self._is_held and shutil.disk_usage(self._path.parent).free >= 2 * self.size:
            try:
                self._path.write_bytes(bytes(self.size))
                self._is_held = True
            except OSError:
                os.truncate(self._path, 0)
        return self._is_held

    def give_up(self) -> bool:
        """Let others have the room; whether there was any."""
        was_held, self._is_held = self._is_held, False
        os.truncate(self._path, 0)
        return was_held


def is_given_up(path: Path) -> bool:
    """Whether there is a reserve of that name that holds no room."""
    return path.exists() and path.stat().st_size == 0
