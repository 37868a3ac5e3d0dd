"""`cpsim proxy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cpdaemon.endpoint import Endpoint, TcpEndpoint, UrlEndpoint
from cpsim.cli.group import cli
from cpsim.cli.options import FILE, ListenType, fault_option, secret_in
from cpsim.cli.paths import PathType
from cpsim.cli.record import (
    check_addresses,
    forward,
    listen_option,
    new_recording,
    print_recording,
    pseudonymise_option,
    target_option,
)
from cpsim.errors import CpsimError
from cpsim.system.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from cpsim.cli.record import Place
    from cpsim.faults.plan import FaultPlan
    from cpsim.record.control import FaultControl


@cli.command()
@listen_option
@target_option
@fault_option
@click.option("--seed", type=click.IntRange(0), default=1, metavar="N", help="Seed of the faults' probabilities.")
@click.option(
    "--control", type=ListenType(), help="Address at which the faults are shown and changed; port 0 takes a free one."
)
@click.option(
    "--control-token-file",
    type=FILE,
    metavar="FILE",
    help="File with the token of requests to /__cpsim/; needed beyond loopback.",
)
@click.option(
    "-o",
    "--output",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Record what clients send and are answered, .parquet or .csv, as cpsim record does.",
)
@pseudonymise_option
@click.option(
    "--ready-file",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="File to write once the proxy listens: a line 'KIND ADDRESS', and one for --control.",
)
def proxy(
    listen: Place,
    target: Endpoint,
    faults: tuple[str, ...],
    seed: int,
    control: TcpEndpoint | None,
    control_token_file: Path | None,
    output: Path | None,
    pseudonymise: bool,
    ready_file: Path | None,
) -> None:
    """Put faults in front of somebody else's daemon or server, until Ctrl-C.

    Clients connect to --listen instead of --target. What meets no fault is forwarded unchanged. At a daemon, faults of
    the daemon work, and at a server those of the server, but for those that end a process: late, rate, hang, close,
    reset and lose-reply, refuse, error and pieces at a daemon, down, status, cut and not-json at a server.

    \b
    cpsim proxy --listen ./faulty.socket --target /var/run/creditapi.socket --fault lose-reply:kind=claim,nth=3
    cpsim proxy --listen :8080 --target https://cp.example.org/api --fault status=503:probability=0.1
    cpsim proxy --listen :5668 --target 127.0.0.1:5667 --control 127.0.0.1:8081
    cpsim faults add 'late=2:slot=job-*,count=5' --at http://127.0.0.1:8081
    """
    from cpsim.faults.plan import FaultPlan
    from cpsim.record.faulty import check_fault
    from cpsim.system.process import tune_process

    check_addresses(listen, target)
    if pseudonymise and output is None:
        raise click.UsageError("--pseudonymise is of a recording: give --output too")
    stage = "server" if isinstance(target, UrlEndpoint) else "daemon"
    try:
        for fault in faults:
            check_fault(fault, stage)
    except CpsimError as error:
        raise click.BadParameter(str(error), param_hint="--fault") from error
    plan = FaultPlan(faults, seed=seed)
    served = None if control is None else (_control(plan, stage, control, control_token_file), control)
    tune_process()
    if output is not None:
        require("run", "--output")
    recording = None if output is None else new_recording(output, pseudonymise=pseudonymise)
    forward(listen, target, ready_file, recording, plan, served)
    for text, selected, fired in plan.describe():
        click.echo(f"{text}   selected {selected:,}, fired {fired:,}")
    if recording is not None:
        print_recording(recording, as_json=False)


def _control(plan: FaultPlan, stage: str, address: TcpEndpoint, token_file: Path | None) -> FaultControl:
    """Return the control API of a plan. Raises click.BadParameter."""
    from cpsim.record.control import FaultControl
    from cpsim.record.faulty import check_fault

    token = None if token_file is None else secret_in(token_file, "--control-token-file")
    try:
        return FaultControl(plan, lambda fault: check_fault(fault, stage), address.host, token)
    except ValueError as error:
        raise click.BadParameter(f"{error}: give --control-token-file", param_hint="--control") from error
