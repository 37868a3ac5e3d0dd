"""`cpsim load`."""

from __future__ import annotations

import itertools
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cpsim.cli.group import cli
from cpsim.cli.options import (
    FILE,
    EndpointType,
    NumberType,
    RateType,
    ThresholdType,
    complete_scenario,
    seed_option,
    timeout_option,
)
from cpsim.cli.run import target_at
from cpsim.errors import Problem

if TYPE_CHECKING:
    from cpdaemon.endpoint import Endpoint
    from cpsim.thresholds import Threshold

START: Final = "import cpsim.replay.connect, locust.main; locust.main.main()"
"""The engine comes first: what its modules use must not be gevent's."""


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("scenario", shell_complete=complete_scenario)
@click.option("--target", type=EndpointType(), required=True, help="A daemon (PATH or HOST:PORT) or a server (URL).")
@click.option("--server", type=EndpointType(), help="URL of the server behind the --target daemon, to see the effect.")
@click.option("--project", metavar="ID", help="Project id at the server.")
@click.option("--secret-file", type=FILE, help="File with the project's secret.")
@seed_option
@click.option("--rate", type=RateType(), metavar="R", help="Send R operations/s in all; or a profile, as in cpsim run.")
@click.option("--speed", type=NumberType(1e-6, 1e9), metavar="X", help="Keep the scenario's times, X times faster.")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Operations under way at once, of all workers.",
)
@timeout_option
@click.option(
    "--assert",
    "thresholds",
    type=ThresholdType(),
    multiple=True,
    metavar="METRIC<N",
    help="Exit with 1 unless a figure keeps to this, as in cpsim run.",
)
@click.option(
    "--slot-prefix", metavar="TEXT", help="Begin slot ids with TEXT; by default they are new with every load."
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="The run folder; by default under runs/."
)
@click.argument("locust", nargs=-1, type=click.UNPROCESSED)
def load(
    scenario: str,
    target: Endpoint,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    seed: int | None,
    rate: str | None,
    speed: float | None,
    in_flight: int,
    timeout_s: float,
    thresholds: tuple[Threshold, ...],
    slot_prefix: str | None,
    output: Path | None,
    locust: tuple[str, ...],
) -> None:
    """Replay SCENARIO under Locust, with any number of processes and machines.

    What follows -- is Locust's: --headless, --processes N, --master, --worker, --web-port N, ... Workers elsewhere
    are started with the same command line and -- --worker --master-host HOST. The exit status is that of cpsim run.

    \b
    cpsim load challenge --target 127.0.0.1:5667
    cpsim load challenge --target 127.0.0.1:5667 -- --headless --processes 2
    """
    from cpsim.catalog import find_scenario

    if find_spec("locust") is None:
        raise Problem("cpsim load needs Locust: pip install 'cpsim[load]'")
    if rate is not None and speed is not None:
        raise click.UsageError("--rate and --speed exclude one another")
    where = target_at(target, server, project, secret_file)
    assert where is not None
    plan = {
        "scenario": str(find_scenario(scenario)),
        "seed": seed,
        "target": str(target),
        "server": None if where.server is None else str(where.server),
        "project": project,
        "secret_file": None if secret_file is None else str(secret_file),
        "rate": rate,
        "speed": speed,
        "in_flight": in_flight,
        "timeout_s": timeout_s,
        "slot_prefix": slot_prefix,
        "output": None if output is None else str(output),
        "thresholds": [str(threshold) for threshold in thresholds],
    }
    import cpsim

    locustfile = Path(cpsim.__file__).parent / "load" / "locustfile.py"
    command = [
        sys.executable,
        "-P",
        "-c",
        START,
        "-f",
        str(locustfile),
        "--host",
        str(target),
        *_users(locust),
        *locust,
    ]
    os.execve(  # noqa: S606 - no shell is wanted
        sys.executable, command, os.environ | {"CPSIM_LOAD": json.dumps(plan)}
    )


def _users(locust: tuple[str, ...]) -> list[str]:
    """How many users Locust has unless it is told: one for each worker."""
    if "--worker" in locust:
        return []
    words = dict(itertools.pairwise(word for option in locust for word in option.split("=", 1)))
    workers = words.get("--processes") or words.get("--expect-workers") or "1"
    count = str(os.cpu_count() or 1) if workers == "-1" else workers
    return ["--users", count, "--spawn-rate", count]
