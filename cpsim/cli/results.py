"""Options of the files that continuous integration reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import click

from cpsim.cli.paths import PathType
from cpsim.errors import in_one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cpsim.ui.results import ResultFiles

T = TypeVar("T")

_RESULT_OPTIONS: Final = (
    click.option(
        "--junit",
        type=PathType(dir_okay=False),
        metavar="FILE",
        help="Write JUnit XML, also when the command fails or is interrupted.",
    ),
    click.option(
        "--summary",
        "summary_file",
        type=PathType(dir_okay=False),
        metavar="FILE",
        help="Write Markdown likewise: the verdict, what did not pass, and what is printed.",
    ),
)


def result_options(command: Callable[..., T]) -> Callable[..., T]:
    """The options `junit` and `summary_file`; see `result_files`."""
    for option in reversed(_RESULT_OPTIONS):
        command = option(command)
    return command


def result_files(title: str, junit: Path | None, summary_file: Path | None) -> ResultFiles:
    """A context whose end writes the results that it was given, or why there are none."""
    from cpsim.ui.results import ResultFiles

    return ResultFiles(title, junit, summary_file, _why)


def _why(error: BaseException) -> str | None:
    """Why a command did not run to its end; None if it did."""
    if isinstance(error, SystemExit):
        return None
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted"
    return error.format_message() if isinstance(error, click.ClickException) else in_one_line(error)
