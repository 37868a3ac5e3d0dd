"""The console, and the progress of a run on standard error if it is a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.table import Table

    from cpsim.metrics import progress as counted

LEAST_COLUMNS: Final = 80
"""Width of tables, at least, however narrow the terminal."""


class _Console(Console):
    """A console that survives a closed pipe: `| head` does not change the exit status of a run."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console: Final = _Console(soft_wrap=True)
_errors: Final = Console(stderr=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table; a narrow terminal wraps its lines, not its words and numbers."""
    if console.width < LEAST_COLUMNS:
        table.width = Measurement.get(console, console.options.update(max_width=LEAST_COLUMNS), table).maximum
    console.print(table)


class Stages:
    """The current stage on standard error; a context manager."""

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
        """Show a new stage."""
        self._progress.update(self._task, description=escape(stage), total=None, figures="")

    def progress(self, planned: int, progress: counted.Progress) -> None:
        """Show the progress of the replay."""
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
