"""How a server says where it serves."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import click

from cpsim.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def announcing(ready_file: Path | None) -> Iterator[Callable[[str], None]]:
    """What to call with the lines that say where a server serves.

    They stand in the ready file, never half written, until the context ends, and are printed. A ready file that another
    server has written is left alone. Raises Problem if it cannot be written.
    """
    with ExitStack() as written:

        def announce(lines: str) -> None:
            if ready_file is not None:
                partial = ready_file.with_name(f"{ready_file.name}.partial")
                try:
                    partial.write_text(lines, encoding="utf-8")
                    partial.replace(ready_file)
                except OSError as error:
                    with suppress(OSError):
                        partial.unlink()
                    raise Problem(f"--ready-file {ready_file} cannot be written: {error.strerror}") from error
                written.callback(ready_file.unlink, missing_ok=True)
            click.echo(lines, nl=False)

        yield announce
