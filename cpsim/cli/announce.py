"""The announcement of a server's addresses."""

from __future__ import annotations

import shlex
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.errors import CpsimError
from cpsim.net.addresses import is_served
from cpsim.system.own_file import removed_at_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROBE_TIMEOUT_S: Final = 1.0


VARIABLES: Final = ("CREDITPIGGY_ENDPOINT", "CREDITPIGGY_TCP", "CREDITPIGGY_URL")
"""Variables whose values are addresses, in a ready file for shells."""


@contextmanager
def announcing(ready_file: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that announces lines with a server's addresses.

    It prints the lines, and writes them to the ready file: see `ready`. Raises CpsimError if that cannot be written.
    """
    with ready(ready_file, "--ready-file") as write:

        def announce(lines: str) -> None:
            write(lines)
            click.echo(lines, nl=False)

        yield announce


@contextmanager
def ready(file: Path | None, option: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes lines to a ready file atomically; the file exists until the context ends.

    It goes too if this process is killed. Another server's ready file is not touched unless that server was killed.
    Raises CpsimError if the file cannot be written; without a file, nothing is.
    """
    if file is None:
        yield lambda _: None
        return
    if _is_stale(file):
        file.unlink(missing_ok=True)
    with removed_at_end(file) as note:

        def write(lines: str) -> None:
            partial = file.with_name(f"{file.name}.partial")
            try:
                partial.write_text(lines, encoding="utf-8")
                note(partial)
                partial.replace(file)
            except OSError as error:
                with suppress(OSError):
                    partial.unlink()
                raise CpsimError(f"{option} {file} cannot be written: {error.strerror}") from error

        yield write


def _is_stale(ready_file: Path) -> bool:
    """Return whether no server listens at any address in a ready file."""
    try:
        addresses = list(_addresses(ready_file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
    return not any(map(_is_served, addresses))


def _addresses(text: str) -> Iterator[str]:
    """The addresses in a ready file, of either form. Raises ValueError."""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name in VARIABLES:
            yield "".join(shlex.split(value))
        elif not name.startswith("CREDITPIGGY_"):
            yield line.partition(" ")[2]


def _is_served(address: str) -> bool:
    try:
        endpoint = parse_endpoint(address)
    except EndpointError:
        return True  # it is not a ready file
    try:
        if isinstance(endpoint, UnixEndpoint):
            return is_served(Path(endpoint.path))
        socket.create_connection((endpoint.host, endpoint.port), PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
