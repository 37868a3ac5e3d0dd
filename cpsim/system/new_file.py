"""A file that is written whole, and on disk, before it has its name."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file that only its owner can read; at the end it gets the name `path`.

    On an error it is deleted. No file that is there is replaced.

    Raises:
        CpsimError: there is a file already, or it cannot be written.
    """
    if os.path.lexists(path):
        raise CpsimError(f"{path} exists: name a new file")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            partial = Path(folder, path.name)
            partial.touch(0o600)
            yield partial
            _sync(partial)
            try:
                os.link(partial, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                partial.rename(path)
            _sync(path.parent)
    except OSError as error:
        raise CpsimError(f"{path} cannot be written: {error.strerror}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
