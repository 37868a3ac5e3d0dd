"""`cpsim record`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cpdaemon.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.cli.announce import announcing
from cpsim.cli.group import ExtraCommand, cli
from cpsim.cli.options import EndpointType, complete_path, print_json
from cpsim.cli.paths import PathType
from cpsim.errors import CpsimError
from cpsim.net.listen import Listen, is_loopback

if TYPE_CHECKING:
    from pathlib import Path

    from cpsim.faults.plan import FaultPlan
    from cpsim.record.control import FaultControl
    from cpsim.record.recording import Recording

    Place = UnixEndpoint | TcpEndpoint


class PlaceType(click.ParamType["Place"]):
    """A listening address: PATH, HOST:PORT, or :PORT on loopback; port 0 takes a free one."""

    name = "addr"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Parse the address."""
        if value.startswith(":"):
            value = f"127.0.0.1{value}"
        try:
            return Listen(value)
        except ValueError as error:
            if "/" not in value and not value.startswith("unix:"):
                self.fail(f"{error}, nor a PATH, which has a '/'", param, ctx)
        try:
            endpoint = parse_endpoint(value)
        except EndpointError as error:
            self.fail(str(error), param, ctx)
        if isinstance(endpoint, UrlEndpoint):
            self.fail(f"{value}: write HOST:PORT, without a scheme: the target determines the protocol", param, ctx)
        return endpoint


listen_option = click.option(
    "--listen",
    type=PlaceType(),
    required=True,
    shell_complete=complete_path,
    help="Address for clients: PATH, HOST:PORT, or :PORT on loopback; port 0 takes a free one.",
)
target_option = click.option(
    "--target",
    type=EndpointType(),
    required=True,
    help="The daemon (PATH or HOST:PORT) or server (URL) to forward to.",
)
pseudonymise_option = click.option(
    "--pseudonymise",
    is_flag=True,
    help="Replace slots, machines and the texts of metadata by pseudonyms, each name always by the same.",
)


@cli.command(cls=ExtraCommand, extra="run")
@listen_option
@target_option
@click.option(
    "-o",
    "--output",
    type=PathType(dir_okay=False),
    required=True,
    metavar="FILE",
    help="The recording, .parquet or .csv: a trace for cpsim run.",
)
@pseudonymise_option
@click.option(
    "--ready-file",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="File to write once the recorder listens: a line 'KIND ADDRESS'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary, after the address, as one JSON document.")
def record(
    listen: Place, target: Endpoint, output: Path, pseudonymise: bool, ready_file: Path | None, as_json: bool
) -> None:
    """Record the traffic of a live daemon or server, until Ctrl-C.

    Clients connect to --listen instead of --target: every byte is forwarded unchanged, in both directions. Secrets and
    signatures are never written. The recording is a scenario:

    \b
    cpsim record --listen ./record.socket --target /var/run/creditapi.socket -o traffic.parquet
    cpsim record --listen :5668 --target 127.0.0.1:5667 -o traffic.csv --pseudonymise
    cpsim record --listen :8080 --target https://cp.example.org/api -o traffic.parquet
    cpsim run traffic.parquet --speed 10
    """
    from cpsim.system.process import tune_process

    check_addresses(listen, target)
    tune_process()
    recording = new_recording(output, pseudonymise=pseudonymise)
    forward(listen, target, ready_file, recording)
    print_recording(recording, as_json=as_json)


def check_addresses(listen: Place, target: Endpoint) -> None:
    """Check that a proxy is not its own target. Raises click.UsageError."""
    if str(listen) == str(target):
        raise click.UsageError(f"--listen and --target are both {listen}: give two addresses")


def new_recording(output: Path, *, pseudonymise: bool) -> Recording:
    """Begin a recording. Raises CpsimError, OSError."""
    from cpsim.record.pseudonyms import Pseudonyms
    from cpsim.record.recording import Recording
    from cpsim.system.process import prepare_arrow

    prepare_arrow()
    return Recording(output, Pseudonyms() if pseudonymise else None)


def forward(
    listen: Place,
    target: Endpoint,
    ready_file: Path | None,
    recording: Recording | None,
    faults: FaultPlan | None = None,
    control: tuple[FaultControl, TcpEndpoint] | None = None,
) -> None:
    """Forward to a target until a signal; close the recording, or remove it if the proxy has never listened.

    Raises CpsimError, OSError.
    """
    from cpsim.record import proxy

    listened = False

    with announcing(ready_file) as announce:

        def on_ready(addresses: str) -> None:
            nonlocal listened
            if isinstance(listen, TcpEndpoint) and not is_loopback(listen.host):
                address = addresses.partition("\n")[0].partition(" ")[2]
                click.echo(f"cpsim: warning: other machines can reach {address}", err=True)
            announce(f"{addresses}\n")
            listened = True

        try:
            proxy.forward(listen, target, on_ready, recording=recording, faults=faults, control=control)
        except (OSError, CpsimError):
            if recording is not None:
                _close(recording) if listened else recording.abandon()
            raise
        if recording is not None:
            _close(recording)


def _close(recording: Recording) -> None:
    try:
        recording.close()
    except OSError as error:
        raise CpsimError(f"{recording.path} cannot be written: {error.strerror or error}") from error


def print_recording(recording: Recording, *, as_json: bool) -> None:
    """Print what was recorded."""
    figures = {
        "recording": str(recording.path),
        "commands": dict(recording.commands),
        "frames": recording.frames,
        "left_out": dict(recording.left_out),
    }
    if as_json:
        print_json(figures)
        return
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in recording.commands.items())
    click.echo(f"recorded      {recording.commands.total():,} commands{outcomes and f' ({outcomes})'}")
    if recording.frames:
        click.echo(f"              {recording.frames:,} malformed frames")
    for why, count in recording.left_out.items():
        click.echo(f"left out      {why}: {count:,}")
    click.echo(f"recording     {recording.path}")
