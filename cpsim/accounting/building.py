"""Building of reports: each is a file, built-in (`reports/`) or the user's."""

from __future__ import annotations

import importlib.util
import traceback
from itertools import count
from typing import TYPE_CHECKING, Final

from cpsim.accounting.blocks import Figure, Note, Report, Table
from cpsim.config import catalog
from cpsim.errors import CpsimError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Block

_serial: Final = count()


def build(
    accounts: Accounts, names: Sequence[str] = (), on_stage: Callable[[str], None] = lambda _: None
) -> list[Report]:
    """Build reports.

    Args:
        accounts: the accounts.
        names: names or paths; by default all built-in reports that apply to the accounts, in the order of
            `cpsim reports`.
        on_stage: called with a description of the current stage.

    Raises:
        CpsimError: a report does not exist, or failed.
    """
    paths = [catalog.find_report(name) for name in names or catalog.report_names()]
    reports = []
    for number, path in enumerate(paths, 1):
        on_stage(f"{path.stem} ({number} of {len(paths)})")
        title, needs = catalog.describe_report(path)
        blocks = _build(path, accounts)
        if blocks or names:
            reports.append(Report(path.stem, title, blocks or [Note(needs or "There is nothing to report.")]))
    return reports


def _build(path: Path, accounts: Accounts) -> list[Block]:
    spec = importlib.util.spec_from_file_location(f"_cpsim_report_{next(_serial)}", path)
    if spec is None or spec.loader is None:
        raise CpsimError(f"{path} is not a report: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        blocks = list(_function(module, path)(accounts))
    except CpsimError:
        raise
    except MemoryError as error:
        raise CpsimError(f"report {path}: {reason(error)}") from error
    except Exception as error:  # whatever somebody's own report does
        file = str(path.absolute())
        lines = [line.lineno for line in traceback.extract_tb(error.__traceback__) if line.filename == file]
        place = f", line {lines[-1]}" if lines else ""
        raise CpsimError(f"report {path}{place}: {type(error).__name__}: {error}") from error
    for block in blocks:
        if not isinstance(block, Table | Figure | Note):
            raise CpsimError(f"report {path}: build() returned a {type(block).__name__}, not a Table, Figure or Note")
    return blocks


def _function(module: ModuleType, path: Path) -> Callable[[Accounts], Sequence[Block]]:
    make: Callable[[Accounts], Sequence[Block]] | None = getattr(module, "build", None)
    if not callable(make):
        raise CpsimError(f"{path} is not a report: it has no function build(frames)")
    return make
