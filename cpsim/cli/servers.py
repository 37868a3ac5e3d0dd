"""`cpsim serve` and `cpsim daemon`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpdaemon.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpsim.cli.group import cli
from cpsim.cli.options import FILE, LONGEST_S, EndpointType, FaultType, ListenType, NumberType, QuirkType, secret_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def _secrets(project_ids: Sequence[str], secret_files: Sequence[Path]) -> dict[str, str]:
    """The secret of each project, from the file of the same place in the list."""
    from cpsim.serve import DEMO_PROJECT

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
@click.option(
    "--quirk", "quirks", type=QuirkType(), multiple=True, metavar="NAME", help="One difference; see cpsim quirks."
)
@click.option(
    "--fault", "faults", type=FaultType(), multiple=True, metavar="FAULT", help="What goes wrong; see cpsim faults."
)
@click.option("--seed", type=int, metavar="N", help="Same seed, same faults where they are a matter of chance.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Written once it serves: a line 'KIND ADDRESS' for each address.",
)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the ledger in FILE, and what a daemon has in FILE.PROJECT.spool: they survive a crash.",
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

    What there is under /__cpsim/ is described by /__cpsim/openapi.json. All of this can be in a file, and several
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
    from cpsim.process import settle_in
    from cpsim.serve import Configuration, load
    from cpsim.serve import serve as perform

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
    with _announcing(ready_file) as announce:
        try:
            perform(configuration, announce)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--project") from error


@cli.command()
@click.option("--config", "config_file", type=FILE, help="The deployed daemon's INI; options here go before it.")
@click.option("--unix", metavar="PATH", help="Listen at a UNIX socket.")
@click.option("--tcp", type=ListenType(), help="Listen on TCP; port 0 takes a free one.")
@click.option("--server", type=EndpointType(), help="URL of the server that commands go to.")
@click.option("--project", metavar="ID", help="Project id at the server.")
@click.option("--secret-file", type=FILE, help="File with the project's secret.")
@click.option(
    "--spool",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keeps commands until they are delivered; not on a RAM disk.",
)
@click.option(
    "--flush-interval",
    "flush_interval_s",
    type=NumberType(0, LONGEST_S),
    metavar="S",
    help="Seconds that a command waits for others; 1 by default.",
)
@click.option(
    "--when-unknown",
    type=click.Choice(["set-aside", "resend"]),
    default="set-aside",
    show_default=True,
    help="When a reply is lost and the server does not know batch ids: keep the commands for a person, so that no "
    "credit doubles, or send them again, so that none is missing.",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Written once it serves: a line 'KIND ADDRESS'.",
)
@click.option("--status", is_flag=True, help="Show what the spool holds, whether or not a daemon runs, and exit.")
@click.option("--failed", is_flag=True, help="List the commands that were refused or set aside, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print --status or --failed as one JSON document.")
def daemon(
    config_file: Path | None,
    unix: str | None,
    tcp: TcpEndpoint | None,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    spool: Path | None,
    flush_interval_s: float | None,
    when_unknown: str,
    ready_file: Path | None,
    status: bool,
    failed: bool,
    as_json: bool,
) -> None:
    """Store commands and forward them to a server, until Ctrl-C.

    A command that was answered OK survives a crash. It is delivered once where the server knows batch ids, as
    `cpsim serve` does.

    \b
    cpsim daemon --config /etc/creditapi.ini --spool /var/lib/cpsim.spool
    cpsim daemon --spool /var/lib/cpsim.spool --status

    \b
    [api]
    api_url = https://cp.example.org/api
    api_key = physics                 ; the project's id
    api_secret = ...
    flush_interval = 1                ; seconds
    [server]
    socket = unix                     ; or tcp
    bind = /var/run/creditapi.socket  ; or HOST:PORT
    """
    from dataclasses import replace

    from cpsim.daemon import main
    from cpsim.daemon.config import Config, read_config
    from cpsim.process import settle_in

    config = Config() if config_file is None else read_config(config_file)
    if unix is not None and tcp is not None:
        raise click.UsageError("--unix and --tcp exclude one another: a daemon listens at one address")
    if server is not None and not isinstance(server, UrlEndpoint):
        raise click.UsageError(f"--server must be a URL such as http://127.0.0.1:8080/api, not {server}")
    said: dict[str, Any] = {
        "listen": UnixEndpoint(unix) if unix is not None else tcp,
        "server": server,
        "project": project,
        "secret": None if secret_file is None else secret_in(secret_file),
        "spool": spool,
        "flush_interval_s": flush_interval_s,
    }
    config = replace(config, **{name: value for name, value in said.items() if value is not None})
    if config.spool is None:
        raise click.UsageError("give --spool FILE: it keeps commands until they are delivered")
    if status or failed:
        show = main.shown_status if status else main.shown_failed
        click.echo(show(config.spool, as_json), nl=False)
        return
    for value, option in zip(
        (config.listen, config.server, config.project, config.secret),
        ("--unix or --tcp", "--server", "--project", "--secret-file"),
        strict=True,
    ):
        if not value:
            raise click.UsageError(f"give {option}, or a --config that says it")

    settle_in()
    with _announcing(ready_file) as announce:
        main.run(config, when_unknown, lambda address: announce(f"{address}\n"))


@contextmanager
def _announcing(ready_file: Path | None) -> Iterator[Callable[[str], None]]:
    """What to call with the lines that say where a server serves.

    They stand in the ready file, never half written, until the context ends, and are printed. A ready file that another
    server has written is left alone.
    """
    with ExitStack() as written:

        def announce(lines: str) -> None:
            if ready_file is not None:
                partial = ready_file.with_name(f"{ready_file.name}.partial")
                partial.write_text(lines, encoding="utf-8")
                partial.replace(ready_file)
                written.callback(ready_file.unlink, missing_ok=True)
            click.echo(lines, nl=False)

        yield announce
