"""A reserve of disk room for when the disk is full."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Reserve:
    """A file that occupies room on the disk, and is emptied when the room is needed.

    Args:
        path: the file; one of an earlier process is reused.
        size: bytes that it occupies.
        free_bytes: returns the free bytes of its disk.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path, size: int, free_bytes: Callable[[], int]) -> None:
        self._path = path
        self._free_bytes = free_bytes
        self.size = size
        path.touch()
        self._is_held = path.stat().st_size == size
        self.hold()

    def hold(self) -> bool:
        """Return whether the room is reserved; reserve it first if twice the room is free."""
        if not self._is_held and self._free_bytes() >= 2 * self.size:
            try:
                self._path.write_bytes(bytes(self.size))
                self._is_held = True
            except OSError:
                os.truncate(self._path, 0)
        return self._is_held

    def give_up(self) -> bool:
        """Free the room; return whether there was any."""
        was_held, self._is_held = self._is_held, False
        os.truncate(self._path, 0)
        return was_held


def is_given_up(path: Path) -> bool:
    """Return whether a reserve file exists and is empty."""
    return path.exists() and path.stat().st_size == 0
