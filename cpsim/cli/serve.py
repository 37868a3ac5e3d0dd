"""`cpsim serve`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cpsim.cli.announce import announcing, ready
from cpsim.cli.group import cli
from cpsim.cli.options import (
    FILE,
    ListenType,
    NumberType,
    cpsim_errors,
    fault_option,
    quirk_option,
    secret_in,
)
from cpsim.cli.paths import PathType
from cpsim.cli.serving import log_format_option, refuse_replaced
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.fake.settings import Configuration


def _secrets(project_ids: Sequence[str], secret_files: Sequence[Path]) -> dict[str, str]:
    """Return the secret of each project; projects and files are in the same order."""
    from cpsim.fake.settings import DEMO_PROJECT

    ids = project_ids or (DEMO_PROJECT,)
    if secret_files and len(secret_files) != len(ids):
        raise click.UsageError(f"{len(ids)} --project and {len(secret_files)} --secret-file: give one for each")
    repeated = {name for name in ids if ids.count(name) > 1}
    if repeated:
        raise click.BadParameter(f"{', '.join(sorted(repeated))} is given twice", param_hint="--project")
    return dict(zip(ids, map(secret_in, secret_files) if secret_files else [DEMO_PROJECT] * len(ids), strict=True))


def _variables(configuration: Configuration, lines: str, secret_files: Sequence[Path]) -> str:
    """The lines of `--ready-env`, from those of `--ready-file`, of which the first of a kind counts."""
    import shlex

    from cpsim.fake.environment import environment_of

    addresses = dict(line.split(" ", 1) for line in reversed(lines.splitlines()))
    project = next((site.project_id for site in configuration.sites), next(iter(configuration.projects)))
    variables = environment_of(addresses, project, next(iter(secret_files), None))
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _configuration(
    file: Path | None,
    projects: Sequence[str],
    secret_files: Sequence[Path],
    control_token_file: Path | None,
    options: Mapping[str, Any],
) -> Configuration:
    """Return the settings of a file, overridden by those of the options."""
    from dataclasses import replace

    from cpsim.fake.settings import Configuration, load

    changes = {name: value for name, value in options.items() if value not in {None, ()}}
    if projects or secret_files:
        changes["projects"] = _secrets(projects, secret_files)
    if control_token_file is not None:
        changes["control_token"] = secret_in(control_token_file, "--control-token-file")
    return replace(Configuration() if file is None else load(file), **changes)


def _back_up(configuration: Configuration, copy: Path) -> None:
    """Copy the store; exit with 1 if a record is damaged."""
    from cpsim.fake.backup import back_up_store

    if configuration.store is None:
        raise click.UsageError("give --store FILE, the store to copy")
    copies, damaged = back_up_store(configuration.store, copy)
    for each in copies:
        click.echo(f"copied to {each}")
    for record in damaged:
        click.echo(f"damaged: {record} is not what was written")
    if damaged:
        sys.exit(1)


@cli.command()
@click.option("--config", type=FILE, metavar="FILE", help="TOML file; options override it.")
@click.option("--unix", type=PathType(), metavar="PATH", help="UNIX socket of a daemon.")
@click.option("--tcp", type=ListenType(), help="TCP address of the same daemon; port 0 takes a free one.")
@click.option("--http", type=ListenType(), help="HTTP address of the server; port 0 takes a free one.")
@click.option(
    "--tls-cert",
    type=FILE,
    metavar="FILE",
    help="Serve HTTPS with the certificate in FILE, and those between it and its authority behind it; PEM.",
)
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its private key, if it is not in the same file.")
@click.option(
    "--project",
    "projects",
    multiple=True,
    metavar="ID",
    help="Project id; repeat it for more. The daemon belongs to the first.  [default: demo]",
)
@click.option(
    "--secret-file",
    "secret_files",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="File with the project's secret, one for each --project; the default secret is 'demo'.",
)
@click.option(
    "--control-token-file",
    type=FILE,
    metavar="FILE",
    help="File with the token of requests to /__cpsim/; without it, the control API is off beyond loopback.",
)
@click.option(
    "--flush-interval",
    "flush_interval_s",
    type=NumberType(0, LONGEST_S),
    metavar="S",
    help="Seconds that daemons keep commands before they deliver them.  [default: 0]",
)
@click.option(
    "--profile",
    type=click.Choice(["documented", "deployed"]),
    help="Follow the protocol's document (the default), or have all quirks of the system in production.",
)
@quirk_option
@fault_option
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of the faults' probabilities.")
@click.option(
    "--ready-file",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="File to write once the server is ready: a line 'KIND ADDRESS' for each address.",
)
@log_format_option
@click.option(
    "--ready-env",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="The same for a shell to source: CREDITPIGGY_ENDPOINT=PATH, ..._TCP, ..._URL, ..._CONTROL and ..._PROJECT of "
    "the first daemon, and ..._SECRET_FILE, if --secret-file names it.",
)
@click.option(
    "--store",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Keep the ledger in FILE, and each daemon's commands in FILE.PROJECT.spool (a project's second daemon: "
    "FILE.PROJECT+2.spool); both survive a crash.",
)
@click.option(
    "--backup",
    type=PathType(dir_okay=False),
    metavar="COPY",
    help="Copy the store and its spools, whether or not a server runs, to a new COPY and COPY.PROJECT.spool, and exit: "
    "with 1 if a record is damaged.",
)
def serve(
    config: Path | None,
    unix: Path | None,
    tcp: TcpEndpoint | None,
    projects: tuple[str, ...],
    secret_files: tuple[Path, ...],
    control_token_file: Path | None,
    ready_file: Path | None,
    ready_env: Path | None,
    backup: Path | None,
    log_format: str,
    **options: Any,  # noqa: ANN401 - fields of `Configuration`
) -> None:
    """Serve a fake daemon and its account server, until Ctrl-C or SIGTERM.

    Without an address, it serves UNIX, TCP and HTTP on free addresses on loopback. At SIGHUP, it reads its secrets, the
    control token and the certificate again; all connections stay. Sockets that systemd passes replace addresses: the
    server's if one is named `http`, and those of a project's first daemon if it is named after the project.

    \b
    cpsim serve --unix /tmp/creditapi.socket --http 127.0.0.1:8080
    echo "alloc,slot=job-1,credits=5" | nc -U /tmp/creditapi.socket  # OpenBSD's nc
    curl http://127.0.0.1:8080/__cpsim/totals

    A dashboard is at http://127.0.0.1:8080/; /__cpsim/openapi.json describes the control API under /__cpsim/. A file
    can hold all of these options; several daemons need one:

    \b
    http = "127.0.0.1:8080"
    [[project]]
    id = "physics"
    secret_file = "physics.secret"    # or secret = "..."; paths are relative to this file
    [[daemon]]
    project = "physics"
    unix = "/tmp/creditapi.socket"    # or tcp = "127.0.0.1:5667", or both
    flush_interval = 0.5              # seconds
    [clock]
    start = 2026-03-01T00:00:00Z
    rate = 60                         # times real time; 0 freezes
    [links]
    worker-7 = "alice"                # machine = user

    Further keys: tls_cert, tls_key, control_token_file, store, journal_limit, profile, quirks, faults and seed.
    """
    from dataclasses import replace

    from cpsim.fake import Site
    from cpsim.fake.settings import HTTP, with_passed
    from cpsim.fake.settings import serve as perform
    from cpsim.net.service_manager import passed_sockets
    from cpsim.system.process import do_without_pandas, tune_process
    from cpsim.ui.logs import LINES

    LINES.format = log_format
    read = partial(_configuration, config, projects, secret_files, control_token_file, options)
    configuration = read()
    if backup is not None:
        return _back_up(configuration, backup)
    if unix is not None or tcp is not None:
        site = Site(project_id=next(iter(configuration.projects)), unix=unix, tcp=tcp)
        configuration = replace(configuration, sites=[site])
    passed = passed_sockets()
    first = next(iter(configuration.projects))
    replaced = {first: {"--unix": unix, "--tcp": tcp}, HTTP: {"--http": options["http"]}}
    refuse_replaced(passed, lambda name: replaced.get(name, {}))
    configuration = with_passed(configuration, passed)

    tune_process()
    do_without_pandas()
    with ready(ready_env, "--ready-env") as write, announcing(ready_file) as announce:

        def on_ready(lines: str) -> None:
            write(_variables(configuration, lines, secret_files))
            announce(lines)

        try:
            perform(configuration, on_ready, cpsim_errors(read))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--project") from error
