"""Types of the command line's options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import click

from cpdaemon.endpoint import Endpoint, TcpEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.listen import Listen

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


class EndpointType(click.ParamType[Endpoint]):
    """A UNIX socket path, HOST:PORT, or URL."""

    name = "endpoint"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        """Read it."""
        try:
            return parse_endpoint(value)
        except EndpointError as error:
            self.fail(str(error), param, ctx)


class ListenType(click.ParamType[TcpEndpoint]):
    """HOST:PORT to listen at; port 0 takes a free one."""

    name = "host:port"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> TcpEndpoint:
        """Read it."""
        try:
            return Listen(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NumberType(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):  # which is neither inside a range nor outside
            self.fail(f"{value} is not a number", param, ctx)
        return number
