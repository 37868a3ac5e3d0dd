"""Accounts in files: a folder with a document a table, or one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpsim.accounts.lines import json_rows
from cpsim.accounts.observer import CannotObserve, NothingNew
from cpsim.accounts.view import ACCOUNTS, CONTRACTS, HOLDERS, TableRows, UnfitTable, View
from cpsim.errors import UsageError
from cpsim.system.parquet import DamagedParquet, read

if TYPE_CHECKING:
    from collections.abc import Collection

    import pyarrow as pa

SUFFIXES: Final = (".parquet", ".jsonl")
TOGETHER: Final = "accounts.parquet"
"""Machines, users and projects in one table, told apart by `kind`, as the control API shows them."""


class FileSource:
    """A folder with a document a table, `slots.parquet` or `slots.jsonl` and so on; or one file.

    A file is a table if it has the name of one, else JSON lines of all tables, told apart by `type`.

    Args:
        path: of the folder or file.

    Raises:
        UsageError: there is none.
    """

    def __init__(self, path: str) -> None:
        self._text = path
        self._read: list[tuple[int, int]] | None = None
        if not Path(path).exists():
            raise UsageError(
                f"there are no accounts at {path}: expected a file or folder, http://..., sql:FILE or program:COMMAND"
            )

    def __str__(self) -> str:
        return self._text

    def read(self, pause_s: float) -> View:  # noqa: ARG002 - a file does not pause
        """Read what is there now.

        Raises:
            NothingNew: no file has been written since it was read.
        """
        path = Path(self._text)
        written = _written(path)
        if written == self._read:
            raise NothingNew(f"{path} has not been written since the run began")
        view = view_of_files(path)
        self._read = written
        return view


def _written(path: Path) -> list[tuple[int, int]]:
    """What changes when a file, or one of a folder, is written or replaced."""
    try:
        states = [file.stat() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    except OSError as error:
        raise CannotObserve(f"{error.filename or path}: {error.strerror or error}") from error
    return [(state.st_ino, state.st_mtime_ns) for state in states]


def view_of_files(path: Path) -> View:
    """What a folder or a file shows of accounts.

    Raises:
        CannotObserve: it shows nothing, cannot be read, or has a table that is not as the contract has it.
    """
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except UnfitTable as error:
        raise CannotObserve(f"{path}: {error}") from error
    except OSError as error:
        raise CannotObserve(f"{error.filename or path}: {error.strerror or error}") from error


def _of_folder(path: Path) -> View:
    found: dict[str, Path] = {}
    for name in CONTRACTS:
        files = [file for suffix in SUFFIXES if (file := path / f"{name}{suffix}").is_file()]
        if len(files) > 1:
            raise UnfitTable(f"there are both {files[0].name} and {files[1].name}: remove one")
        if files:
            found[name] = files[0]
    together = path / TOGETHER
    if not together.is_file():
        if not found:
            names = ", ".join(f"{name}{suffix}" for name in CONTRACTS for suffix in SUFFIXES)
            raise UnfitTable(f"none of {names} is there")
        return View.of_documents({name: _table(file, name) for name, file in found.items()})
    if twice := found.keys() & HOLDERS.keys():
        raise UnfitTable(f"there are both {TOGETHER} and {found[min(twice)].name}: remove one")
    slots = _table(found["slots"], "slots") if found else None
    return View.of_tables(slots, _parquet(together, ACCOUNTS.names))


def _of_file(path: Path) -> View:
    if path.stem in CONTRACTS and path.suffix in SUFFIXES:
        return View.of_documents({path.stem: _table(path, path.stem)})
    if path.suffix == SUFFIXES[0]:
        raise UnfitTable(
            f"nothing says which table it is: name it {' or '.join(f'{name}.parquet' for name in CONTRACTS)}"
        )
    with path.open("rb") as file:
        return View.of_lines(json_rows(file))


def _table(path: Path, name: str) -> pa.Table:
    """A file as a table; errors name it."""
    try:
        if path.suffix == SUFFIXES[0]:
            return _parquet(path, CONTRACTS[name].schema.names)
        rows = TableRows(name, "line")
        with path.open("rb") as file:
            for number, row in json_rows(file):
                rows.add(row, number)
        return rows.table()
    except UnfitTable as error:
        raise UnfitTable(f"{path.name}: {error}") from error


def _parquet(path: Path, columns: Collection[str]) -> pa.Table:
    """The columns that are wanted of those that a file has."""
    try:
        return read(path, path.name, columns.__contains__)
    except DamagedParquet as error:
        raise UnfitTable(str(error)) from error
