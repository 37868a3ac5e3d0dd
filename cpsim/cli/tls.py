"""The options of commands that connect to https URLs."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cpdaemon.transport import tls_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpdaemon.endpoint import UrlEndpoint

T = TypeVar("T")
TLS: Final = {
    "ca": "Trust the authorities whose certificates are in FILE, instead of the system's; PEM.",
    "client_cert": "Show the certificate in FILE to an https server; PEM.",
    "client_key": "Private key of --client-cert, if it is not in the same file.",
}
"""The options for https URLs, each with its help."""


def tls_options(command: Callable[..., T]) -> Callable[..., T]:
    """The options for https URLs, which `EndpointType` gives to each; the command itself does not get them."""

    @wraps(command)
    def call(*arguments: Any, **options: Any) -> T:  # noqa: ANN401 - passed on unchanged
        given = [name for name in TLS if options.pop(name) is not None]
        params = click.get_current_context().params.values()
        if given and not any("https://" in str(value) for value in params) and options.get("config_file") is None:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for an https:// URL, and none is given")
        return command(*arguments, **options)

    for name, text in reversed(TLS.items()):
        file = click.Path(exists=True, dir_okay=False, path_type=Path)
        click.option(f"--{name.replace('_', '-')}", type=file, metavar="FILE", is_eager=True, help=text)(call)
    return call


def with_tls(endpoint: UrlEndpoint, context: click.Context) -> UrlEndpoint:
    """A server with the files that `tls_options` name, which are checked.

    Raises:
        EndpointError: a file cannot be used, or the server's URL is not https.
    """
    files = {name: str(file) for name in TLS if isinstance(file := context.params.get(name), Path)}
    if files:
        endpoint = endpoint.with_tls(**files)
        tls_of(endpoint)
    return endpoint
