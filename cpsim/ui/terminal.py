"""What is printed, and progress: what is being done and, during a replay, how far it is; on a terminal alone."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.table import Table

    from cpsim.metrics import progress as counted

NARROWEST: Final = 80
"""Columns that a table may have, however narrow the terminal is."""


class _Console(Console):
    """Goes on without a reader: what `| head` leaves unread does not change what a run has found."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console: Final = _Console(soft_wrap=True)
_errors: Final = Console(stderr=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table; a narrow terminal has its lines broken, which can be read, and not its words and numbers."""
    if console.width < NARROWEST:
        table.width = Measurement.get(console, console.options.update(max_width=NARROWEST), table).maximum
    console.print(table)


class Stages:
    """Shows one stage after another on standard error; a context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=_errors,
            transient=True,
            disable=not _errors.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")

    def begin(self, stage: str) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=stage, total=None, figures="")

    def progress(self, planned: int, progress: counted.Progress) -> None:
        """Say how far the replay is."""
        done = progress.accepted + progress.refused + progress.unknown
        rate = done / progress.elapsed_s if progress.elapsed_s else 0.0
        errors = done - progress.accepted
        figures = f"{done:,}/{planned:,}  {rate:,.0f}/s  {errors:,} errors"
        self._progress.update(self._task, total=planned, completed=done, figures=figures)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
