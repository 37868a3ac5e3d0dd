"""The announcement of a server's addresses."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.errors import CpsimError
from cpsim.net.addresses import is_served
from cpsim.system.own_file import OwnFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROBE_TIMEOUT_S: Final = 1.0


@contextmanager
def announcing(ready_file: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that announces lines with a server's addresses.

    It prints the lines, and writes them to the ready file atomically; the file exists until the context ends. Another
    server's ready file is not touched unless that server was killed. Raises CpsimError if the file cannot be written.
    """
    with ExitStack() as written:
        if ready_file is not None and _is_stale(ready_file):
            ready_file.unlink(missing_ok=True)

        def announce(lines: str) -> None:
            if ready_file is not None:
                partial = ready_file.with_name(f"{ready_file.name}.partial")
                try:
                    partial.write_text(lines, encoding="utf-8")
                    partial.replace(ready_file)
                except OSError as error:
                    with suppress(OSError):
                        partial.unlink()
                    raise CpsimError(f"--ready-file {ready_file} cannot be written: {error.strerror}") from error
                written.callback(OwnFile(ready_file).remove)
            click.echo(lines, nl=False)

        yield announce


def _is_stale(ready_file: Path) -> bool:
    """Return whether no server listens at any address in a ready file."""
    try:
        addresses = [line.partition(" ")[2] for line in ready_file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return False
    return not any(map(_is_served, addresses))


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
