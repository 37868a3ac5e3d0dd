"""`cpsim daemon`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cpdaemon.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpsim.cli.announce import announcing
from cpsim.cli.group import cli
from cpsim.cli.options import (
    FILE,
    EndpointType,
    ListenType,
    NumberType,
    complete_path,
    cpsim_errors,
    fault_option,
    project_option,
    quirk_option,
    secret_file_option,
    secret_in,
)
from cpsim.cli.paths import PathType
from cpsim.cli.serving import log_format_option, metrics_option, refuse_replaced
from cpsim.cli.tls import tls_options, with_tls
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.daemon.config import Config

ACTS: Final = ("status", "failed", "requeue", "forget", "export", "import_", "backup", "drain")
"""Options that have the command do one thing to the spool, and exit."""


@cli.command()
@click.option("--config", "config_file", type=FILE, help="The deployed daemon's INI file; options override it.")
@click.option("--unix", metavar="PATH", shell_complete=complete_path, help="Listen at a UNIX socket.")
@click.option("--tcp", type=ListenType(), help="Listen on TCP; port 0 takes a free one.")
@click.option("--server", type=EndpointType(), help="URL of the server that receives the commands.")
@project_option
@secret_file_option
@tls_options
@click.option(
    "--spool",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Stores commands until they are delivered; FILE.reserve keeps 16 MiB of the disk free. Not on a RAM disk.",
)
@click.option(
    "--flush-interval",
    "flush_interval_s",
    type=NumberType(0, LONGEST_S),
    metavar="S",
    help="Longest time that a command waits for its batch to fill, in seconds; 1 by default, 5 with a --config FILE.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=NumberType(0.01, LONGEST_S),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds that the server may take to answer a batch.",
)
@click.option(
    "--when-unknown",
    type=click.Choice(["dead-letter", "resend", "set-aside"]),
    metavar="[dead-letter|resend]",
    default="dead-letter",
    show_default=True,
    help="When a reply is lost and the server does not know batch ids: make the commands dead letters, so that no "
    "credit doubles, or resend them, so that none is missing.",
)
@click.option(
    "--profile",
    type=click.Choice(["documented", "deployed"]),
    default="documented",
    show_default=True,
    help="Follow the protocol's document, or have all quirks of the daemon in production.",
)
@quirk_option
@fault_option
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the faults' probabilities.")
@click.option(
    "--ready-file",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="File to write once the daemon accepts commands: a line 'KIND ADDRESS', and one for --metrics.",
)
@metrics_option
@log_format_option
@click.option(
    "--status",
    is_flag=True,
    help="Show the state of the spool, whether or not a daemon runs, and exit: with 1 if a part has failed.",
)
@click.option("--failed", is_flag=True, help="List refused commands and dead letters, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print --status or --failed as one JSON document.")
@click.option(
    "--requeue",
    multiple=True,
    metavar="N",
    help="Queue command N of --failed (or all) for delivery again, and exit.",
)
@click.option("--forget", multiple=True, metavar="N", help="Delete command N of --failed (or all), and exit.")
@click.option(
    "--export",
    type=PathType(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Move what the spool holds to a new FILE (or - for standard output), to be imported elsewhere, and exit.",
)
@click.option(
    "--import",
    "import_",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Add what FILE (or - for standard input) holds to the spool, all of it or nothing, and exit.",
)
@click.option(
    "--backup",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Copy the spool, whether or not a daemon runs, to a new FILE, and exit: with 1 if a record is damaged.",
)
@click.option(
    "--drain",
    is_flag=True,
    help="Take no commands, deliver what the spool holds, and exit. A running daemon does so at SIGUSR1.",
)
@click.option(
    "--drain-timeout",
    "drain_timeout_s",
    type=NumberType(0, LONGEST_S),
    metavar="S",
    help="Seconds after which a drain ends, with 1 and the number of commands that remain.  [default: no limit]",
)
def daemon(
    config_file: Path | None,
    unix: str | None,
    tcp: TcpEndpoint | None,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    spool: Path | None,
    flush_interval_s: float | None,
    metrics: TcpEndpoint | None,
    drain_timeout_s: float | None,
    ready_file: Path | None,
    log_format: str,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - passed on unchanged
) -> None:
    """Store commands and forward them to a server, until Ctrl-C or SIGTERM.

    A command that was answered OK survives a crash. A server that knows batch ids, such as `cpsim serve`, applies it
    exactly once. With --profile deployed, the daemon has the quirks of production: a crash loses commands. At SIGHUP,
    it opens its log file anew and reads its secret again; all connections stay. Sockets that systemd passes replace
    its addresses; one named `metrics` is for --metrics.

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

    from cpsim.daemon.config import METRICS, Config, read_config, with_passed
    from cpsim.net.service_manager import passed_sockets
    from cpsim.ui.logs import LINES

    LINES.format = log_format
    config = Config() if config_file is None else read_config(config_file)
    for sentence in config.warnings:
        LINES.warning(f"{config_file}: {sentence}")
    if unix is not None and tcp is not None:
        raise click.UsageError("--unix and --tcp exclude one another: a daemon listens at one address")
    if unix is not None and not unix:
        raise click.BadParameter("the path is empty", param_hint="--unix")
    if server is not None and not isinstance(server, UrlEndpoint):
        raise click.UsageError(f"--server must be a URL such as http://127.0.0.1:8080/api, not {server}")
    given: dict[str, Any] = {
        "listen": UnixEndpoint(unix) if unix is not None else tcp,
        "server": server,
        "project": project,
        "secret": None if secret_file is None else secret_in(secret_file),
        "spool": spool,
        "flush_interval_s": flush_interval_s,
        "metrics": metrics,
        "drain_timeout_s": drain_timeout_s,
    }
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    if config.server is not None:
        config = replace(config, server=with_tls(config.server, click.get_current_context()))
    acts = {name: value for name in ACTS if (value := options.pop(name))}
    _check_exclusive([f"--{name.rstrip('_')}" for name in acts], as_json=as_json)
    if acts and "drain" not in acts:
        _manage_spool(config, *acts.items(), as_json=as_json)
    else:
        config = replace(config, drain="drain" in acts)
        passed = passed_sockets()
        listening = {"--unix": unix, "--tcp": tcp}
        refuse_replaced(passed, lambda name: {"--metrics": metrics} if name == METRICS else listening)
        config = with_passed(config, passed)
        _serve(config, config_file, ready_file, partial(_read_secret, config_file, secret_file), **options)


def _check_exclusive(acts: Sequence[str], *, as_json: bool) -> None:
    """Raise UsageError for options about the spool that do not go together."""
    if len(acts) > 1:
        raise click.UsageError(f"{acts[0]} and {acts[1]} exclude one another: run them one by one")
    if as_json and acts not in (["--status"], ["--failed"]):
        raise click.UsageError("--json is a format of --status and --failed: add one of them")


def _read_secret(config_file: Path | None, secret_file: Path | None) -> str:
    """Read the secret again; raises CpsimError."""
    from cpsim.daemon.config import read_config
    from cpsim.errors import CpsimError

    if secret_file is not None:
        return cpsim_errors(partial(secret_in, secret_file))()
    secret = None if config_file is None else read_config(config_file).secret
    if not secret:
        raise CpsimError(f"{config_file} has no api_secret any more")
    return secret


def _manage_spool(config: Config, act: tuple[str, Any], *, as_json: bool) -> None:
    """Show, change, move or copy a spool."""
    from cpsim.daemon import inspection, moves

    name, value = act
    has_failed = False
    if config.spool is None:
        raise click.UsageError("give --spool FILE, the spool to look at or change")
    if name in {"requeue", "forget"}:
        change = inspection.requeue if name == "requeue" else inspection.forget
        shown = change(config.spool, None if "all" in value else [_number(text) for text in value])
    elif name == "export":
        is_stream = str(value) == "-"
        done = moves.export_to(config.spool, sys.stdout.buffer if is_stream else value)
        click.echo(f"exported {done.counts} to {'standard output' if is_stream else value}", err=is_stream)
        return
    elif name == "import_":
        shown = _import(config.spool, value)
    elif name == "backup":
        shown, has_failed = inspection.back_up(config.spool, value)
    elif name == "status":
        shown, has_failed = inspection.shown_status(config.spool, as_json)
    else:
        shown = inspection.shown_failed(config.spool, as_json)
    click.echo(shown, nl=False)
    if has_failed:
        sys.exit(1)


def _import(spool: Path, file: Path) -> str:
    from cpsim.daemon.export_file import read_export
    from cpsim.daemon.moves import import_into

    if str(file) == "-":
        return import_into(spool, read_export(sys.stdin.buffer, "standard input"))
    with file.open("rb") as lines:
        return import_into(spool, read_export(lines, str(file)))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise click.BadParameter(f"{text!r} is neither a number that --failed shows nor all")
    return int(text)


def _serve(
    config: Config,
    config_file: Path | None,
    ready_file: Path | None,
    read_secret: Callable[[], str],
    *,
    profile: str,
    quirks: Sequence[str],
    **options: Any,  # noqa: ANN401 - passed on unchanged
) -> None:
    """Run the daemon; raise UsageError if a setting is missing."""
    from cpsim.daemon import main
    from cpsim.daemon.spool_status import existing
    from cpsim.quirks import QUIRKS, chosen
    from cpsim.system.process import tune_process

    for name in quirks:
        if QUIRKS[name].tier == "server":
            raise click.UsageError(f"--quirk {name} is a quirk of a server: give it to the server behind this daemon")
    all_quirks = chosen(profile, quirks)
    needed = {
        "--spool FILE, which stores commands until they are delivered, or [server] spool": config.spool
        or ("ack-before-delivery" in all_quirks and not config.drain),
        "--unix, --tcp, or [server] bind": config.bound or config.listen or config.drain,
        "--server, or [api] api_url": config.server,
        "--project, or [api] api_key": config.project,
        "--secret-file, or [api] api_secret": config.secret,
    }
    for way, value in needed.items():
        if not value:
            raise click.UsageError(f"give {way} in {config_file or 'a --config FILE'}")
    if config.drain and config.spool is not None:
        existing(config.spool)
    if config.spool is not None and "ack-before-delivery" in all_quirks:
        _warn_unused_spool(config.spool)
    tune_process()
    with announcing(ready_file) as announce:
        left = main.run(
            config,
            announce,
            read_secret,
            quirks=all_quirks,
            **options,
        )
    if left:
        click.echo(f"cpsim: the drain has left {left:,} commands in {config.spool or 'memory'}, undelivered", err=True)
        sys.exit(1)


def _warn_unused_spool(spool: Path) -> None:
    """Warn that a spool is not used; raise CpsimError if it holds commands, which nobody would deliver."""
    from cpsim.daemon.spool_status import read_status
    from cpsim.errors import CpsimError
    from cpsim.ui.logs import LINES

    queued = read_status(spool).queued if spool.exists() and spool.stat().st_size else 0
    if queued:
        raise CpsimError(
            f"spool {spool} holds {queued:,} commands, and with the quirk ack-before-delivery nothing delivers them: "
            "run the daemon without that quirk until they are delivered, or name another file"
        )
    LINES.warning(f"spool {spool} is not used: the quirk ack-before-delivery works without")
