"""`cpsim serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpsim.cli.announce import announcing
from cpsim.cli.group import cli
from cpsim.cli.options import FILE, LONGEST_S, ListenType, NumberType, fault_option, quirk_option, secret_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpdaemon.endpoint import TcpEndpoint


def _secrets(project_ids: Sequence[str], secret_files: Sequence[Path]) -> dict[str, str]:
    """The secret of each project, from the file of the same place in the list."""
    from cpsim.fake.settings import DEMO_PROJECT

    ids = project_ids or (DEMO_PROJECT,)
    if secret_files and len(secret_files) != len(ids):
        raise click.UsageError(f"{len(ids)} --project and {len(secret_files)} --secret-file: give one for each")
    repeated = {name for name in ids if ids.count(name) > 1}
    if repeated:
        raise click.BadParameter(f"{', '.join(sorted(repeated))} is given twice", param_hint="--project")
    return dict(zip(ids, map(secret_in, secret_files) if secret_files else [DEMO_PROJECT] * len(ids), strict=True))


@cli.command()
@click.option("--config", type=FILE, metavar="FILE", help="TOML; what the options say takes the place of it.")
@click.option("--unix", type=click.Path(path_type=Path), metavar="PATH", help="A daemon on a UNIX socket.")
@click.option("--tcp", type=ListenType(), help="The same daemon on TCP; port 0 takes a free one.")
@click.option("--http", type=ListenType(), help="The server on HTTP; port 0 takes a free one.")
@click.option(
    "--project",
    "projects",
    multiple=True,
    metavar="ID",
    help="Project id; again for more. The daemon works for the first.  [default: demo]",
)
@click.option(
    "--secret-file",
    "secret_files",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="File with the project's secret, one for each --project; without any, secrets are 'demo'.",
)
@click.option(
    "--control-token-file",
    type=FILE,
    metavar="FILE",
    help="File with the token that a request to /__cpsim/ has to show; beyond loopback there is none without it.",
)
@click.option(
    "--flush-interval",
    "flush_interval_s",
    type=NumberType(0, LONGEST_S),
    metavar="S",
    help="Seconds that daemons keep commands before they pass them on.  [default: 0]",
)
@click.option(
    "--profile",
    type=click.Choice(["documented", "deployed"]),
    help="Behave as the protocol's document says (the default), or as the system in production does.",
)
@quirk_option
@fault_option
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Same seed, same faults where they are a matter of chance."
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Written once it serves: a line 'KIND ADDRESS' for each address.",
)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the ledger in FILE, and what a daemon has in FILE.PROJECT.spool (a project's second one in "
    "FILE.PROJECT+2.spool): they survive a crash.",
)
def serve(
    config: Path | None,
    unix: Path | None,
    tcp: TcpEndpoint | None,
    projects: tuple[str, ...],
    secret_files: tuple[Path, ...],
    control_token_file: Path | None,
    ready_file: Path | None,
    **options: Any,  # noqa: ANN401 - those that are a configuration's own
) -> None:
    """Serve a fake daemon and its account server, until Ctrl-C.

    Without an address, it serves all three on free addresses of this machine.

    \b
    cpsim serve --unix /tmp/creditapi.socket --http 127.0.0.1:8080
    echo "alloc,slot=job-1,credits=5" | nc -U /tmp/creditapi.socket
    curl http://127.0.0.1:8080/__cpsim/totals

    A browser shows what goes on at http://127.0.0.1:8080/, and what there is under /__cpsim/ is described by
    /__cpsim/openapi.json. All of this can be in a file, and several
    daemons only there:

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

    There are also control_token_file, store, journal_limit, profile, quirks, faults and seed.
    """
    from dataclasses import replace

    from cpsim.fake import Site
    from cpsim.fake.settings import Configuration, load
    from cpsim.fake.settings import serve as perform
    from cpsim.system.process import settle_in

    changes = {name: value for name, value in options.items() if value not in {None, ()}}
    if projects or secret_files:
        changes["projects"] = _secrets(projects, secret_files)
    if control_token_file is not None:
        changes["control_token"] = secret_in(control_token_file, "--control-token-file")
    configuration = replace(Configuration() if config is None else load(config), **changes)
    if unix is not None or tcp is not None:
        site = Site(project_id=next(iter(configuration.projects)), unix=unix, tcp=tcp)
        configuration = replace(configuration, sites=[site])

    settle_in()
    with announcing(ready_file) as announce:
        try:
            perform(configuration, announce)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--project") from error
