"""`cpsim verify`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint, parse_endpoint
from cpsim.cli.group import FAILED, INVALID, ExtraCommand, cli
from cpsim.cli.options import (
    FILE,
    ListenType,
    NumberType,
    accounts_option,
    known_quirk_option,
    known_quirks,
    print_json,
    project_option,
    secret_file_option,
)
from cpsim.cli.paths import PathType
from cpsim.cli.settings import SettableArgument, SettableOption
from cpsim.cli.tls import tls_options, with_tls
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cpsim.conformance.target import Target
    from cpsim.conformance.walk import Walks

WHERE: Final = ("server", "project", "secret_file", "other_project", "other_secret_file", "behind", "accounts")
"""The options for the target's addresses and credentials; the others are for the run."""
POLITE_RATE: Final = 100.0
"""The default rate, in commands/s, to a given ENDPOINT, which others may use."""


@cli.command(cls=ExtraCommand, extra="test")
@click.argument("endpoint", cls=SettableArgument, setting="target", required=False)
@click.option(
    "--server",
    cls=SettableOption,
    setting="server",
    metavar="URL",
    help="The server behind an ENDPOINT that is a daemon.",
)
@project_option
@secret_file_option
@tls_options
@accounts_option
@click.option("--other-project", metavar="ID", help="A second project there: shows whether projects are kept apart.")
@click.option("--other-secret-file", type=FILE, help="File with its secret.")
@click.option(
    "--behind",
    type=ListenType(),
    help="Be the server that an ENDPOINT which is a daemon forwards to: shows what it loses, repeats or delays.",
)
@click.option(
    "--flush-interval",
    "flush_interval_s",
    type=NumberType(0, LONGEST_S),
    default=1.0,
    show_default=True,
    metavar="S",
    help="How long that daemon keeps commands.",
)
@click.option(
    "--restart-command",
    metavar="COMMAND",
    help="Stops that daemon, or the server, and starts it again, such as 'systemctl restart creditapi'; {signal} "
    "in it becomes TERM and KILL for a daemon, KILL for a server.",
)
@click.option(
    "--failed-command",
    metavar="COMMAND",
    help="Prints the commands that daemon knows to be refused, such as 'cpsim daemon --spool FILE --failed'.",
)
@click.option(
    "--profile",
    cls=SettableOption,
    setting="profile",
    type=click.Choice(["documented", "deployed"]),
    default="documented",
    show_default=True,
    help="With deployed, the quirks that `cpsim quirks` lists are known, and count apart from other deviations.",
)
@known_quirk_option
@click.option(
    "-k", "--clause", "clauses", multiple=True, metavar="PATTERN", help="Only CLAIM-6, or 'WIRE-*'; again for more."
)
@click.option(
    "--random",
    "sequences",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Instead of the clauses, send N random sequences of commands, and shrink one that shows a deviation.",
)
@click.option(
    "--thorough",
    is_flag=True,
    help="Also check what is risky at a live system (numbers beyond 2^31 that are granted, empty ids, names of the "
    "server's own sums, bodies of a megabyte), or takes more than a minute.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True, help="Of --random.")
@click.option("--list", "only_list", is_flag=True, help="List the clauses, and exit.")
@click.option("--dry-run", is_flag=True, help="List what each clause would send, and send nothing.")
@click.option("--slot-prefix", default="verify", show_default=True, metavar="TEXT", help="Prefix of every id.")
@click.option(
    "--max-rate",
    type=NumberType(0.1, 1e6),
    metavar="R",
    help=f"Send at most R commands/s.  [default: {POLITE_RATE:g}; no limit to the embedded fake]",
)
@click.option(
    "--timeout",
    "timeout_s",
    cls=SettableOption,
    setting="timeout",
    type=NumberType(0.01, LONGEST_S),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds for a reply, and for an acknowledged command to be applied.",
)
@click.option("--junit", type=PathType(dir_okay=False), metavar="FILE", help="Write JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")
def verify(
    endpoint: str | None,
    quirks: tuple[str, ...],
    clauses: tuple[str, ...],
    sequences: int | None,
    seed: int,
    only_list: bool,
    dry_run: bool,
    slot_prefix: str,
    max_rate: float | None,
    junit: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - those of a target
) -> None:
    """Verify that ENDPOINT does what the protocol says, clause by clause.

    ENDPOINT is a daemon (PATH or HOST:PORT) or a server (URL); without one, or with embedded, the embedded fake is
    verified. The exit
    status is 0 if no verifiable clause is broken, 1 if one is, 2 if none could be verified. Clauses that are not
    verifiable are listed with the options that they need.

    \b
    cpsim verify
    cpsim verify 127.0.0.1:5667
    cpsim verify /var/run/creditapi.socket --server https://cp.example.org/api --project ID --secret-file FILE
    cpsim verify https://cp.example.org/api --project ID --secret-file FILE --profile deployed -k 'CLAIM-*'
    cpsim verify 127.0.0.1:5667 --behind 127.0.0.1:8080 --project ID --secret-file FILE
    cpsim verify --random 100

    It makes slots and machines with new ids, discards at the end the slots that are outstanding, and says what it
    leaves. It advances the clock of a server with cpsim's control API by about two hours. The clauses are also a suite
    for pytest: see docs/conformance.md.
    """
    from dataclasses import replace

    from cpsim.conformance import table
    from cpsim.conformance.clause import catalogue, is_chosen
    from cpsim.conformance.suite import SuiteResult, examine
    from cpsim.conformance.target import checked_prefix
    from cpsim.ui.terminal import Stages, console

    if sequences is not None and (
        clauses or only_list or dry_run or junit is not None or options["behind"] is not None
    ):
        raise click.UsageError("--random replaces the clauses: leave out -k, --list, --dry-run, --junit, --behind")
    _check_given(click.get_current_context())
    _check_clauses(clauses)
    if only_list and as_json:
        print_json(table.listed(clause for clause in catalogue().values() if is_chosen(clause, clauses)))
        return
    if only_list:
        table.show_clauses([clause for clause in catalogue().values() if is_chosen(clause, clauses)], console)
        return
    given = _given(endpoint, **{name: options.pop(name) for name in WHERE})
    try:
        prefix = checked_prefix(slot_prefix)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--slot-prefix") from error
    if given is not None and given.behind is None and max_rate is None:
        max_rate = POLITE_RATE
    embedding = _embedded(dry_run) if given is None else nullcontext(given)
    with embedding as where, Stages() as stages:
        known = known_quirks(options["profile"], quirks)
        target = replace(where, quirks=known, max_rate=max_rate, slot_prefix=prefix, **options)
        outcome: SuiteResult | Walks
        if sequences is None:
            outcome = examine(target, clauses, junit=junit, rehearse=dry_run, on_clause=stages.begin)
        else:
            outcome = _walk(target, sequences, seed, lambda number: stages.begin(f"sequence {number:,}"))
    if as_json:
        click.echo(json.dumps(outcome.document(), indent=2))
    elif not isinstance(outcome, SuiteResult):
        table.show_walks(outcome, console)
    elif dry_run:
        table.show_plan(outcome, console)
    else:
        table.show(outcome, console)
    if not dry_run:
        sys.exit({"valid": 0, "invalid": INVALID, "unknown": FAILED}[outcome.ruling])


def _check_given(context: click.Context) -> None:
    """Raise click.UsageError if a given option would have no effect."""
    for name, option, needed in (
        ("flush_interval_s", "--flush-interval", "behind"),
        ("failed_command", "--failed-command", "behind"),
        ("seed", "--seed", "sequences"),
    ):
        is_given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if is_given and context.params[needed] is None:
            other = "--behind HOST:PORT" if needed == "behind" else "--random N"
            raise click.UsageError(f"{option} is for {other}: add that, or leave out {option}")
    restarts = context.params["restart_command"] is not None
    if restarts and context.params["behind"] is None and "://" not in (context.params["endpoint"] or ""):
        raise click.UsageError("--restart-command is for --behind HOST:PORT, or an ENDPOINT that is a server's URL")


def _walk(target: Target, count: int, seed: int, on_sequence: Callable[[int], object]) -> Walks:
    """Send random sequences of commands to a target."""
    from cpsim.conformance.findings import CannotRun
    from cpsim.conformance.target import reach
    from cpsim.conformance.walk import COMMANDS_A_SEQUENCE, walk
    from cpsim.errors import CpsimError

    target_view = reach(target, most=1_000 + 2 * count * COMMANDS_A_SEQUENCE)
    try:
        return walk(target_view, count, seed, on_sequence)
    except CannotRun as error:
        raise CpsimError(str(error)) from error


def _given(endpoint: str | None, **options: Any) -> Target | None:  # noqa: ANN401 - those of `parse_target`
    """The target of the options, or None without an endpoint."""
    from dataclasses import replace

    from cpsim.config.settings import EMBEDDED
    from cpsim.conformance.target import parse_target

    if endpoint is None or endpoint == EMBEDDED:
        if any(value is not None for value in options.values()):
            raise click.UsageError("--server, --project and the like go with an ENDPOINT")
        return None
    try:
        target = parse_target(endpoint, **options)
        server = None if target.server is None else with_tls(target.server, click.get_current_context())
        return replace(target, server=server)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _check_clauses(patterns: Sequence[str]) -> None:
    """Raise click.BadParameter if a pattern is for no clause."""
    from cpsim.conformance.clause import catalogue, is_chosen

    known = catalogue()
    for pattern in patterns:
        if not any(is_chosen(clause, [pattern]) for clause in known.values()):
            close = get_close_matches(pattern.upper(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "`cpsim verify --list` lists them"
            raise click.BadParameter(f"no clause {pattern!r}; {hint}", param_hint="--clause")


@contextmanager
def _embedded(dry_run: bool) -> Iterator[Target]:
    """A fake in a process of its own; none is started for a dry run."""
    import secrets
    import tempfile

    from cpsim.conformance.target import Target
    from cpsim.fake import FakeProcess

    credentials, other = ((name, secrets.token_hex(16)) for name in ("cpsim", "cpsim-other"))
    if dry_run:
        yield Target(
            daemon=UnixEndpoint("daemon.sock"),
            server=UrlEndpoint("http", "127.0.0.1", 8080, "/api"),
            credentials=credentials,
            other=other,
        )
        return
    with tempfile.TemporaryDirectory(prefix="cpsim-") as folder:
        socket_path = Path(folder) / "daemon.sock"
        with FakeProcess() as process:
            addresses = process.serve(dict([credentials, other]), socket_path)
            server = parse_endpoint(addresses["http"])
            assert isinstance(server, UrlEndpoint)
            yield Target(daemon=UnixEndpoint(addresses["unix"]), server=server, credentials=credentials, other=other)
