"""Removing the folders of past runs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError
from cpsim.evidence.past import RUN, SEARCH, WRITTEN, RunState, is_locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from cpsim.evidence.past import PastRun


def superfluous(runs: Sequence[PastRun], keep: int | None, before: datetime | None) -> list[PastRun]:
    """The runs that may go: of the whole ones, those beyond the newest `keep`, and of these only the older ones.

    Args:
        runs: the newest first.
        keep: how many of the whole runs stay, whatever their age; None for none.
        before: a run that started at this time or later stays; None for no such time.
    """
    whole = [run for run in runs if run.state in {RunState.RUN, RunState.SEARCH}]
    whole.sort(key=lambda run: run.path.is_symlink())  # a link is no further run that could be one of those kept
    return [run for run in whole[keep or 0 :] if before is None or run.at < before]


def why_not(path: Path) -> str | None:
    """Why a folder is not removed, whatever its age; None if it can be."""
    try:
        with _opened(path):
            return None
    except (CpsimError, OSError) as error:
        return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def remove(path: Path) -> None:
    """Remove a run folder, its summary last, so that one that was begun can be removed again.

    Raises:
        CpsimError: it is no run folder, holds what no run writes, or is being written.
        OSError: the system does not let it be removed.
    """
    with _opened(path) as (folder, names):
        for name in sorted(names, key={RUN, SEARCH}.__contains__):
            os.unlink(name, dir_fd=folder)
        path.rmdir()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, list[str]]]:
    """A run folder that nobody writes, locked: its descriptor and its files' names. Raises CpsimError or OSError."""
    if path.is_symlink():
        raise CpsimError("it is a link to a folder elsewhere")
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if is_locked(folder):
            raise CpsimError("a run is writing it")
        with os.scandir(folder) as entries:
            files = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        foreign = sorted(name for name, is_file in files.items() if not is_file or name not in WRITTEN)
        if foreign:
            raise CpsimError(f"it holds what no run writes: {', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}")
        yield folder, list(files)
    finally:
        os.close(folder)
