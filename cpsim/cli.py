"""The command line. What a command needs is imported inside it, so that `cpsim --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from cpdaemon.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpdaemon.errors import CreditPiggyError, InvalidCommand
from cpsim.options import FILE, EndpointType, ListenType, NumberType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.replay.clock import Pace
    from cpsim.run import Target

INVALID: Final = 1
FAILED: Final = 2
WRONG_USAGE: Final = 64
LONGEST_S: Final = 86_400


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cpsim")
def cli() -> None:
    """Test harness and simulator for CreditPiggy.

    \b
    cpsim run smoke                  replay a synthetic workload against an embedded CreditPiggy
    cpsim run challenge --target /var/run/creditapi.socket
    cpsim serve                      a fake daemon and server to point a job manager at
    cpsim daemon --config FILE       store commands and forward them to a server
    """


@cli.command()
@click.argument("scenario")
@click.option(
    "--target",
    type=EndpointType(),
    help="A daemon (PATH or HOST:PORT) or a server (URL); without it, an embedded fake.",
)
@click.option("--server", type=EndpointType(), help="URL of the server behind the --target daemon, to see the effect.")
@click.option("--project", metavar="ID", help="Project id at the server.")
@click.option("--secret-file", type=FILE, help="File with the project's secret.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True, help="Same seed, same workload."
)
@click.option("--rate", type=NumberType(1e-6, 1e9), metavar="R", help="Send R operations/s.")
@click.option(
    "--speed",
    type=NumberType(1e-6, 1e9),
    metavar="X",
    help="Keep the scenario's times, X times faster.",
)
@click.option("--asap", is_flag=True, help="Send as fast as possible (the default).")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Operations under way at once.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=NumberType(0.001, LONGEST_S),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds for an answer, and for its effect to show.",
)
@click.option("--slot-prefix", metavar="TEXT", help="Begin slot ids with TEXT; by default they are new with every run.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The run folder; by default a new one under runs/.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the summary.")
def run(
    scenario: str,
    target: Endpoint | None,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    seed: int,
    rate: float | None,
    speed: float | None,
    asap: bool,
    in_flight: int,
    timeout_s: float,
    slot_prefix: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Replay SCENARIO, verify the effect, and measure.

    SCENARIO is a name (smoke, challenge), a scenario file (.toml) or a workload log (.swf, .swf.gz). The exit status is
    0 if the verdict is valid, 1 if invalid, 2 if unknown.

    \b
    cpsim run smoke
    cpsim run smoke --target 127.0.0.1:5667
    cpsim run smoke --target https://cp.example.org/api --project ID --secret-file FILE
    """
    from cpsim import run_folder
    from cpsim.catalog import find_scenario
    from cpsim.run import check_prefix
    from cpsim.run import run as perform
    from cpsim.scenario import load_workload
    from cpsim.summary import show, summarise
    from cpsim.terminal import Stages, console

    pace = _pace(rate, speed, asap)
    where = _target(target, server, project, secret_file)
    if slot_prefix is not None:
        try:
            check_prefix(slot_prefix)
        except InvalidCommand as error:
            raise click.BadParameter(str(error), param_hint="--slot-prefix") from error
    path = find_scenario(scenario)
    folder = output or run_folder.new_name(path)
    partial = run_folder.claim_folder(folder)
    try:
        with Stages() as stages:
            result = perform(
                lambda: load_workload(path, seed),
                where,
                pace,
                in_flight=in_flight,
                timeout_s=timeout_s,
                slot_prefix=slot_prefix,
                on_stage=stages.begin,
                on_progress=stages.progress,
            )
            stages.begin("writing the run folder")
            summary = summarise(result)
            run_folder.write(result, summary, partial, folder)
    finally:
        run_folder.abandon(partial)
    if as_json:
        click.echo(
            run_folder.json_text(run_folder.run_document(result, summary) | result.verdict.document()),
            nl=False,
        )
    else:
        show(result, summary, console)
        console.print(f"run folder    {folder}", highlight=False, markup=False)
    sys.exit({"valid": 0, "invalid": INVALID, "unknown": FAILED}[result.verdict.ruling])


def _pace(rate: float | None, speed: float | None, asap: bool) -> Pace:
    from cpsim.replay.clock import AsFastAsPossible, Rate, Speed

    if (rate is not None) + (speed is not None) + asap > 1:
        raise click.UsageError("--rate, --speed and --asap exclude one another")
    if rate is not None:
        return Rate(rate)
    return AsFastAsPossible() if speed is None else Speed(speed)


def _target(
    target: Endpoint | None, server: Endpoint | None, project: str | None, secret_file: Path | None
) -> Target | None:
    from cpsim.run import Target

    if server is not None and not isinstance(server, UrlEndpoint):
        raise click.UsageError(f"--server must be a URL such as http://127.0.0.1:8080/api, not {server}")
    if target is None:
        if server is not None or project is not None or secret_file is not None:
            raise click.UsageError("--server, --project and --secret-file go with --target")
        return None
    if isinstance(target, UrlEndpoint):
        if server is not None:
            raise click.UsageError("--server is for a --target that is a daemon; this one is a server itself")
        server = target
    if server is None:
        if project is not None or secret_file is not None:
            raise click.UsageError("--project and --secret-file are for a server: add --server URL")
        return Target(target)
    if project is None or secret_file is None:
        raise click.UsageError(f"{server} needs --project ID and --secret-file FILE")
    return Target(target, server, (project, _secret(secret_file)))


def _secret(path: Path, option: str = "--secret-file") -> str:
    from cpsim.serve import read_secret

    try:
        return read_secret(path)
    except ValueError as error:
        raise click.UsageError(f"{option} {path} {error}") from error


def _secrets(project_ids: Sequence[str], secret_files: Sequence[Path]) -> dict[str, str]:
    """The secret of each project, from the file of the same place in the list."""
    from cpsim.serve import DEMO_PROJECT

    ids = project_ids or (DEMO_PROJECT,)
    if secret_files and len(secret_files) != len(ids):
        raise click.UsageError(f"{len(ids)} --project and {len(secret_files)} --secret-file: give one for each")
    repeated = {name for name in ids if ids.count(name) > 1}
    if repeated:
        raise click.BadParameter(f"{', '.join(sorted(repeated))} is given twice", param_hint="--project")
    return dict(zip(ids, map(_secret, secret_files) if secret_files else [DEMO_PROJECT] * len(ids), strict=True))


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
@click.option("--quirk", "quirks", multiple=True, metavar="NAME", help="One difference alone; see cpsim quirks.")
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help="Something to go wrong; see cpsim faults.")
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
    from cpsim.serve import Configuration, load
    from cpsim.serve import serve as perform

    changes = {name: value for name, value in options.items() if value not in {None, ()}}
    if projects or secret_files:
        changes["projects"] = _secrets(projects, secret_files)
    if control_token_file is not None:
        changes["control_token"] = _secret(control_token_file, "--control-token-file")
    configuration = replace(Configuration() if config is None else load(config), **changes)
    if unix is not None or tcp is not None:
        site = Site(project_id=next(iter(configuration.projects)), unix=unix, tcp=tcp)
        configuration = replace(configuration, sites=[site])

    def on_ready(lines: str) -> None:
        click.echo(lines, nl=False)
        if ready_file is not None:
            _write_whole(ready_file, lines)

    try:
        perform(configuration, on_ready)
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
    """
    from dataclasses import replace

    from cpsim.daemon import main
    from cpsim.daemon.config import Config, read_config

    config = Config() if config_file is None else read_config(config_file)
    if unix is not None and tcp is not None:
        raise click.UsageError("--unix and --tcp exclude one another: a daemon listens at one address")
    if server is not None and not isinstance(server, UrlEndpoint):
        raise click.UsageError(f"--server must be a URL such as http://127.0.0.1:8080/api, not {server}")
    said: dict[str, Any] = {
        "listen": UnixEndpoint(unix) if unix is not None else tcp,
        "server": server,
        "project": project,
        "secret": None if secret_file is None else _secret(secret_file),
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

    def ready(address: str) -> None:
        if ready_file is not None:
            _write_whole(ready_file, f"{address}\n")
        click.echo(address)

    main.run(config, when_unknown, ready)


@cli.command("quirks")
def list_quirks() -> None:
    """List how the system in production differs from its document.

    \b
    cpsim serve --quirk reclaim          with this difference alone
    cpsim serve --profile deployed       with all of them
    """
    from cpsim.quirks import QUIRKS

    width = max(map(len, QUIRKS))
    for quirk in QUIRKS.values():
        click.echo(f"{quirk.name:<{width}}  {quirk.tier}  {quirk.effect}")


@cli.command("faults")
def list_faults() -> None:
    """List what can go wrong, at the daemon and at the server.

    \b
    cpsim serve --fault daemon.hang:kind=claim,slot=job-*,nth=3
    cpsim serve --fault server.status=503:probability=0.1,from=10,until=20
    """
    from cpsim.faults import ACTIONS, KEYS

    for name, action in ACTIONS.items():
        text = f"{name}={action.value.upper()}" if action.value else name
        click.echo(f"{text:<19} {' '.join(action.stages):<13}  {action.effect}")
    click.echo("\nAfter a colon, what it is for:")
    for key, attribute in KEYS.items():
        click.echo(f"{key:<19} {attribute.allowed}")


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> NoReturn:
    """Run the command line; a problem is one line on standard error, and never a traceback."""
    from cpsim.errors import Problem

    try:
        cli.main(prog_name="cpsim", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(WRONG_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("cpsim: interrupted", err=True)
        sys.exit(FAILED)
    except OSError as error:
        what = error.strerror or str(error)
        click.echo(f"cpsim: {error.filename}: {what}" if error.filename else f"cpsim: {what}", err=True)
        sys.exit(FAILED)
    except (Problem, CreditPiggyError) as error:
        click.echo(f"cpsim: {error}", err=True)
        sys.exit(FAILED)
    sys.exit(0)
