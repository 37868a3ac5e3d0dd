"""A copy of a store and of the spools beside it, whether or not `cpsim serve` has them open."""

from __future__ import annotations

from glob import escape
from typing import TYPE_CHECKING

from cpsim.daemon import failed, spool
from cpsim.server import store
from cpsim.store.backup import back_up
from cpsim.store.file import real_path

if TYPE_CHECKING:
    from pathlib import Path


def back_up_store(path: Path, copy: Path) -> tuple[list[Path], list[str]]:
    """Copy a store to a new file, and each spool `PATH.PROJECT.spool` to `COPY.PROJECT.spool`.

    The spools are copied first: a command that arrives meanwhile is then in a spool's copy, in the store's, or in both,
    and the batch's id keeps the store from applying it twice.

    Returns:
        The new files, and the damaged records in them.

    Raises:
        CpsimError: a file cannot be copied: see `cpsim.store.backup.back_up`. Then there is no copy.
    """
    places = {path, real_path(path)}
    spools = {each: place for place in places for each in place.parent.glob(f"{escape(place.name)}.*.spool")}
    copies: list[Path] = []
    damaged: list[str] = []
    try:
        for each, place in sorted(spools.items()):
            beside = copy.with_name(copy.name + each.name.removeprefix(place.name))
            damaged += _copied(back_up(each, beside, spool.KIND, spool.TABLES, failed.CHECKED), beside)
            copies.append(beside)
        damaged += _copied(back_up(path, copy, store.KIND, store.TABLES, store.CHECKED), copy)
        copies.append(copy)
    except BaseException:
        for each in copies:
            each.unlink()
        raise
    return copies, damaged


def _copied(damaged: list[str], copy: Path) -> list[str]:
    return [f"{record} in {copy}" for record in damaged]
