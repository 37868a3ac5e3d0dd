"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import os


class PathType(click.Path):
    """A path as a `Path`; the empty text is none, for it would be the current folder.

    Args:
        options: those of click.Path.
    """

    def __init__(self, **options: bool) -> None:
        super().__init__(path_type=Path, **options)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Check the value."""
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)
