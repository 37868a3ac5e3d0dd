"""`cpsim exec`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cpsim.cli.expect import ExpectationType
from cpsim.cli.group import cli
from cpsim.cli.options import (
    FILE,
    DurationType,
    ListenType,
    NumberType,
    fault_option,
    quirk_option,
    secret_in,
)
from cpsim.cli.paths import PathType
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.fake import Fake

REFUSALS: Final = "no-refusals"
FAULTS_FIRED: Final = "faults-fired"
RULES_BROKEN: Final = 65


@cli.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.option("--unix", type=PathType(), metavar="PATH", help="UNIX socket of the daemon.  [default: a new one]")
@click.option("--tcp", type=ListenType(), help="TCP address of the daemon.  [default: a free one]")
@click.option("--http", type=ListenType(), help="HTTP address of the server.  [default: a free one]")
@click.option("--project", default="demo", show_default=True, metavar="ID", help="Project id.")
@click.option(
    "--secret-file", type=FILE, metavar="FILE", help="File with the project's secret.  [default: a new secret]"
)
@click.option(
    "--flush-interval",
    "flush_interval_s",
    type=NumberType(0, LONGEST_S),
    default=0.0,
    metavar="S",
    help="Seconds that the daemon keeps commands before it delivers them.  [default: 0]",
)
@click.option(
    "--profile",
    type=click.Choice(["documented", "deployed"]),
    default="documented",
    help="Follow the protocol's document (the default), or have all quirks of the system in production.",
)
@quirk_option
@fault_option
@click.option("--seed", type=click.IntRange(0), default=1, metavar="N", help="Seed of the faults' probabilities.")
@click.option(
    "--rule",
    "rules",
    type=ExpectationType(),
    multiple=True,
    metavar="RULE",
    help="A rule that all commands have to keep, beside no-refusals; again for more: cpsim expect --help lists them.",
)
@click.option(
    "--longest-wait",
    "longest_wait_s",
    type=DurationType(),
    metavar="TIME",
    help="Longest time that a client may wait for an answer, at this daemon or at the server: 500ms, 1s.",
)
@click.option("--allow-refusals", is_flag=True, help="Let refused and malformed commands pass.")
def exec_command(
    command: tuple[str, ...],
    project: str,
    secret_file: Path | None,
    rules: tuple[str, ...],
    longest_wait_s: float | None,
    allow_refusals: bool,
    **options: Any,  # noqa: ANN401 - of the fake
) -> None:
    """Run COMMAND beside a fake daemon and server of its own, and check at its end what it has sent.

    \b
    COMMAND, which may be any test runner, has in its environment
    CREDITPIGGY_ENDPOINT   the UNIX socket of the daemon
    CREDITPIGGY_TCP        HOST:PORT of the same daemon
    CREDITPIGGY_URL        the URL of the server's API, for signed requests
    CREDITPIGGY_PROJECT    the id that signs them, with the secret in CREDITPIGGY_SECRET_FILE
    CREDITPIGGY_CONTROL    the URL of the control API

    The exit status is that of COMMAND if it is not 0, or 128 and the signal's number if a signal has ended it; else 65
    if what it sent was refused or malformed, a --rule is broken, or that cannot be known. It is 126 or 127 if COMMAND
    cannot be started, 64 for wrong usage, and 2 if the fake fails. Rules are about each project, also those that the
    tests have added.

    COMMAND gets Ctrl-C and SIGTERM. It is terminated when the process that has started cpsim exec ends, unless that was
    done with nohup.

    \b
    cpsim exec -- make test
    cpsim exec --rule settled-once --rule no-slot-leaked -- npm test
    cpsim exec --profile deployed --fault late=0.1:kind=claim --flush-interval 0.5 -- prove -r t
    """
    from tempfile import TemporaryDirectory

    from cpsim.clock import SYSTEM_CLOCK
    from cpsim.fake.environment import environment_of
    from cpsim.metrics.waits import Waits
    from cpsim.server.control import wording
    from cpsim.system.command import CannotExecute, run_command

    waits = Waits()
    with TemporaryDirectory(prefix="cpsim-") as folder:
        if secret_file is None:
            secret_file = _new_secret(Path(folder, "secret"))
        with _fake(Path(folder), project, secret_in(secret_file), waits=waits, **options) as fake:
            environment = os.environ | environment_of(fake.addresses, project, secret_file)
            try:
                status = run_command(command, environment, SYSTEM_CLOCK)
            except CannotExecute as error:
                click.echo(f"cpsim: {error}", err=True)
                sys.exit(error.status)
    broken = _broken(fake, rules if allow_refusals else (REFUSALS, *rules))
    if longest_wait_s is not None and (blocked := wording.blocked(waits.longest(), longest_wait_s)):
        broken.append(blocked)
    for text in [*broken, *(_reports(fake) if status else _silent(fake))]:
        click.echo(f"cpsim: {text}", err=True)
    sys.exit(status or (RULES_BROKEN if broken else 0))


def _new_secret(file: Path) -> Path:
    """Write a new secret into a file that only its owner can read."""
    from secrets import token_hex

    file.touch(0o600)
    file.write_text(token_hex(16), encoding="utf-8")
    return file


def _fake(
    folder: Path,
    project: str,
    secret: str,
    *,
    unix: Path | None,
    tcp: TcpEndpoint | None,
    http: TcpEndpoint | None,
    profile: str,
    quirks: tuple[str, ...],
    **options: Any,  # noqa: ANN401 - passed on unchanged
) -> Fake:
    """The fake of the options, not started yet; raises click.BadParameter."""
    from cpsim.fake import ANY_PORT, Fake
    from cpsim.quirks import chosen

    try:
        return Fake(
            {project: secret},
            unix=unix or folder / "daemon.sock",
            tcp=tcp or ANY_PORT,
            http=http or ANY_PORT,
            quirks=chosen(profile, quirks),
            **options,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--project") from error


def _broken(fake: Fake, rules: Sequence[Any]) -> list[str]:
    """How each project breaks the rules, after all that could be delivered has been."""
    from cpsim.errors import CpsimError
    from cpsim.server.control.expectations import broken
    from cpsim.server.journal import JournalFull

    texts = []
    for number, project in enumerate(fake.inspector.projects()):
        if rules and (pending := fake.inspector.sites.pending(project)):
            texts.append(f"project {project!r}: {pending:,} commands were not delivered: nobody knows if rules hold")
        for rule in rules:
            if rule == FAULTS_FIRED and number:
                continue  # faults are those of all projects
            try:
                message, _ = broken(fake.inspector, project, rule)
            except (JournalFull, CpsimError) as error:  # more came than is kept
                message = str(error)
            if message:
                texts.append(f"project {project!r} breaks the rule {rule}:\n{message}")
    return texts


def _silent(fake: Fake) -> Iterator[str]:
    """A warning if nothing was sent: then all rules hold."""
    inspector = fake.inspector
    projects = inspector.totals().projects.items()
    if not any(each.allocated or each.refused or inspector.malformed(name).count for name, each in projects):
        yield "warning: no command has come: does COMMAND use CREDITPIGGY_ENDPOINT?"


def _reports(fake: Fake) -> Iterator[str]:
    """What each project has received."""
    from cpsim.errors import CpsimError
    from cpsim.server.control.expectations import report
    from cpsim.server.journal import JournalFull

    for project in fake.inspector.projects():
        try:
            yield report(fake.inspector, project)
        except (JournalFull, CpsimError) as error:
            yield f"project {project!r}: {error}"
