"""The console, and the progress of a run on standard error."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from cpsim.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from rich.table import Table

    from cpsim.clock import Clock
    from cpsim.metrics import progress as counted

LEAST_COLUMNS: Final = 80
"""Width of tables, at least, however narrow the terminal."""
LINE_S: Final = 10.0
"""Seconds between two lines of progress, at least, where standard error is no terminal."""
SELDOM_S: Final = 60.0
"""The same for what says little new."""


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


def printed(show: Callable[[Console], object]) -> str:
    """What a function prints on a console, as plain text."""
    file = StringIO()
    show(Console(file=file, width=120, soft_wrap=True, no_color=True, force_terminal=False))
    return file.getvalue()


class Stages:
    """The current stage on standard error; a context manager.

    A terminal shows it in a line that is rewritten. Elsewhere `progress` and `count` print lines, and seldom.

    Args:
        clock: tells when the last line was printed.
        errors: standard error.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, errors: Console = _errors) -> None:
        self._clock, self._errors = clock, errors
        self._last_s = clock.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")

    def begin(self, stage: str) -> None:
        """Show a new stage."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escape(stage), total=None, figures="")

    @property
    def is_shown(self) -> bool:
        """Whether somebody sees them."""
        return self._errors.is_terminal

    def progress(self, planned: int, progress: counted.Progress, more: str = "") -> None:
        """Show the progress of the replay, and what more there is to say of it."""
        done = progress.accepted + progress.refused + progress.unknown
        rate = done / progress.elapsed_s if progress.elapsed_s else 0.0
        errors = done - progress.accepted
        figures = f"{done:,}/{planned:,}  {rate:,.0f}/s  {errors:,} errors"
        figures += f"  {more}" if more else ""
        if rate and not self._errors.is_terminal:  # which shows that anyway
            figures += f"  {timedelta(seconds=round((planned - done) / rate))} left"
        self.count(done, planned, figures, SELDOM_S)

    def count(self, done: int, planned: int, figures: str, every_s: float = LINE_S) -> None:
        """Show how much is done; elsewhere than on a terminal, a line every so many seconds at most."""
        self._progress.update(self._task, total=planned, completed=done, figures=figures)
        now_s = self._clock.monotonic()
        if not self._errors.is_terminal and now_s - self._last_s >= every_s:
            self._last_s = now_s
            self._errors.print(figures, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """While the context lasts, the line is off the terminal, so that something can be printed."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
