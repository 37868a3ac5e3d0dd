"""Option types, and options that several commands share."""

from __future__ import annotations

import json
import math
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from cpdaemon.endpoint import Endpoint, TcpEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError, InvalidCommand
from cpsim.cli.paths import PathType
from cpsim.cli.settings import SettableOption
from cpsim.cli.tls import with_tls
from cpsim.errors import CpsimError, UsageError
from cpsim.faults.spec import ACTIONS, Fault
from cpsim.net.listen import Listen
from cpsim.system.checks import LONGEST_S
from cpsim.system.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cpsim.accounts.sources import AccountsSource
    from cpsim.net.control import ControlClient
    from cpsim.replay.pace import Pace

T = TypeVar("T")
UNIT_S: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
CONNECT_S: Final = 10.0
"""Seconds within which a control API has to be reached, and to answer unless it is asked to wait."""
LONGEST_LOOK_S: Final = 20.0
"""Seconds that one request to a control API may wait; who waits longer asks again."""
FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def complete_path(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The files that the shell finds."""
    return [CompletionItem(incomplete, type="file")]


class EndpointType(click.ParamType[Endpoint]):
    """A UNIX socket path, HOST:PORT, or URL."""

    name = "endpoint"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        """Parse the value; an https URL has the files of `tls_options`."""
        try:
            endpoint = parse_endpoint(value)
            return with_tls(endpoint, ctx) if isinstance(endpoint, UrlEndpoint) and ctx is not None else endpoint
        except EndpointError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The files that the shell finds, for one may be a socket."""
        return complete_path(ctx, param, incomplete)


class TargetType(click.ParamType["Endpoint | None"]):
    """The address of a target, or `embedded`, which is None."""

    name = "endpoint"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint | None:
        """Parse the value."""
        from cpsim.config.settings import EMBEDDED

        return None if value == EMBEDDED else EndpointType().convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The files that the shell finds, for one may be a socket."""
        return complete_path(ctx, param, incomplete)


class UrlType(EndpointType):
    """The URL of a server."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> UrlEndpoint:
        """Parse the value."""
        endpoint = super().convert(value, param, ctx)
        if not isinstance(endpoint, UrlEndpoint):
            self.fail(f"expected the server's URL, such as http://127.0.0.1:8080, not {endpoint}", param, ctx)
        return endpoint


class ListenType(click.ParamType[TcpEndpoint]):
    """HOST:PORT to listen at; port 0 takes a free one. With a default host, a port alone will do."""

    name = "host:port"

    def __init__(self, default_host: str | None = None) -> None:
        self._default_host = default_host

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> TcpEndpoint:
        """Parse the value."""
        try:
            return Listen(f"{self._default_host}:{value}" if self._default_host and value.isdigit() else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NumberType(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the value."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):  # NaN passes every range check
            self.fail(f"{value} is not a number", param, ctx)
        return number


class DurationType(click.ParamType[float]):
    """A duration in seconds: a number, perhaps with its unit."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the value."""
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|min|h)?", value)
        seconds = float(found[1]) * UNIT_S[found[2] or "s"] if found else LONGEST_S + 1.0
        if seconds > LONGEST_S:
            self.fail(f"{value!r} is not a duration up to 24h, such as 500ms, 5s or 2min", param, ctx)
        return seconds


class QuirkType(click.ParamType[str]):
    """The name of a quirk."""

    name = "quirk"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse the value."""
        from cpsim.quirks import QUIRKS

        if value not in QUIRKS:
            close = get_close_matches(value, QUIRKS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`cpsim quirks` lists them"
            self.fail(f"no quirk {value!r}; {hint}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The quirks whose names begin with the text."""
        del ctx, param
        from cpsim.quirks import QUIRKS

        return [
            CompletionItem(name, help=quirk.effect) for name, quirk in QUIRKS.items() if name.startswith(incomplete)
        ]


class FaultType(click.ParamType[str]):
    """A fault in its text form."""

    name = "fault"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse the value."""
        try:
            Fault.parse(value)
        except CpsimError as error:
            self.fail(str(error), param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The stages and actions that begin with the text."""
        del ctx, param
        names = ((f"{stage}.{name}", action.effect) for name, action in ACTIONS.items() for stage in action.stages)
        return [CompletionItem(name, help=effect) for name, effect in names if name.startswith(incomplete)]


class RateType(click.ParamType[str]):
    """A rate or a profile of rates; `pace_at` parses it."""

    name = "rate"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value."""
        try:
            pace_at(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        except click.BadParameter as error:
            hint = "operations/s, or FROM..TO:10s,R:5s for ramps and steps"
            self.fail(f"{error.message.rstrip('.')}: expected {hint}", param, ctx)
        return value


def pace_at(rate: str) -> Pace:
    """The pace of a rate, such as `1000` or `100..1000:30s,1000:10s`. Raises ValueError."""
    from cpsim.replay.pace import Profile, Rate

    if ":" in rate:
        return Profile.parse(rate)
    return Rate(NumberType(1e-6, 1e9)(rate))


class AccountsType(click.ParamType["AccountsSource"]):
    """A source of accounts, in its text form."""

    name = "source"

    def convert(
        self, value: str | AccountsSource, param: click.Parameter | None, ctx: click.Context | None
    ) -> AccountsSource:
        """Parse the value."""
        if not isinstance(value, str):
            return value
        require("run", "--accounts")
        from cpsim.accounts.sources import parse_source

        try:
            return parse_source(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The files that the shell finds."""
        return complete_path(ctx, param, incomplete)


class SlotPrefixType(click.ParamType[str]):
    """A prefix of slot ids."""

    name = "slot prefix"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value."""
        from cpsim.run.pipeline import check_prefix

        try:
            check_prefix(value)
        except InvalidCommand as error:
            self.fail(str(error), param, ctx)
        return value


settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the scenario, as population.machines=500.",
)
server_option = click.option(
    "--server",
    cls=SettableOption,
    setting="server",
    type=EndpointType(),
    help="URL of the server behind the --target daemon, to verify what was applied.",
)
project_option = click.option(
    "--project", cls=SettableOption, setting="project", metavar="ID", help="Project id at the server."
)
secret_file_option = click.option(
    "--secret-file", cls=SettableOption, setting="secret_file", type=FILE, help="File with the project's secret."
)
accounts_option = click.option(
    "--accounts",
    cls=SettableOption,
    setting="accounts",
    type=AccountsType(),
    metavar="SOURCE",
    help="What shows the accounts: a folder or file, an http:// URL, sql:FILE or program:COMMAND; see "
    "docs/how-to/accounts.md.",
)


def processes_option(help_text: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An option --processes, which says in its help what they do."""
    return click.option(
        "--processes", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help=help_text
    )


scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS", help="Address of the Dask cluster, such as tcp://127.0.0.1:8786."
)
rate_option = click.option(
    "--rate",
    type=RateType(),
    metavar="R",
    help="Send R operations/s; or FROM..TO:10s,R:5s for ramps, steps and spikes.",
)
speed_option = click.option(
    "--speed", type=NumberType(1e-6, 1e9), metavar="X", help="Keep the scenario's times, X times as fast."
)
in_flight_option = click.option(
    "--in-flight",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Most operations in flight at once, in all processes together.",
)
slot_prefix_option = click.option(
    "--slot-prefix",
    type=SlotPrefixType(),
    metavar="TEXT",
    help="Begin slot ids with TEXT; by default, a new prefix for each run.",
)
output_option = click.option(
    "--output",
    type=PathType(),
    metavar="DIR",
    help="The run folder; by default, a new one under runs/.",
)
page_option = click.option(
    "--page",
    type=ListenType(default_host="127.0.0.1"),
    metavar="[HOST:]PORT",
    help="Show the run's page in a browser while it goes on, on loopback without a HOST; port 0 takes a free one.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Same seed, same workload; by default the scenario's seed, or 1."
)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    cls=SettableOption,
    setting="timeout",
    type=NumberType(0.001, LONGEST_S),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for an answer, and for a command to be applied.",
)
known_profile_option = click.option(
    "--profile",
    cls=SettableOption,
    setting="profile",
    type=click.Choice(["documented", "deployed"]),
    help="With deployed, the quirks that cpsim quirks lists are known: what one explains is counted apart.",
)
known_quirk_option = click.option(
    "--quirk",
    "quirks",
    cls=SettableOption,
    setting="quirks",
    type=QuirkType(),
    multiple=True,
    metavar="NAME",
    help="A quirk that the target is known to have; again for more.",
)
quirk_option = click.option(
    "--quirk", "quirks", type=QuirkType(), multiple=True, metavar="NAME", help="Turn on one quirk; see cpsim quirks."
)
control_token_option = click.option(
    "--control-token-file", type=FILE, metavar="FILE", help="File with the token of the server's control API."
)
fault_option = click.option(
    "--fault", "faults", type=FaultType(), multiple=True, metavar="FAULT", help="Inject a fault; see cpsim faults."
)


_LOG_OPTIONS: Final = (
    click.option("--jobs", type=click.IntRange(1), metavar="N", help="Of a job log, only the first N jobs."),
    click.option(
        "--since",
        metavar="TIME",
        help="Of a job log, only what was submitted from TIME on: 2026-03-01T12:00:00, or 36h after the first job.",
    ),
    click.option("--until", metavar="TIME", help="Of a job log, only what was submitted before TIME."),
    click.option("--skip-bad", type=click.IntRange(0), metavar="N", help="Skip up to N bad rows of a job log."),
)


def log_options(command: Callable[..., T]) -> Callable[..., T]:
    """The options that read a part of a job log, `jobs`, `since`, `until` and `skip_bad`; see `log_settings`."""
    for option in reversed(_LOG_OPTIONS):
        command = option(command)
    return command


def log_settings(**given: int | str | None) -> tuple[str, ...]:
    """The settings of a job log that its options are."""
    return tuple(f"log.{name}={json.dumps(value)}" for name, value in given.items() if value is not None)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def print_json(document: object) -> None:
    """Print a document as JSON."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def complete_scenario(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The built-in scenarios that begin with the text, else files."""
    from cpsim.config.catalog import scenario_names

    names = [name for name in scenario_names() if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def secret_in(path: Path, option: str = "--secret-file") -> str:
    """The secret that a file holds. Raises click.UsageError."""
    from cpsim.fake.settings import read_secret

    try:
        return read_secret(path)
    except ValueError as error:
        raise click.UsageError(f"{option} {path} {error}") from error


def control_of(server: UrlEndpoint, token_file: Path | None = None) -> ControlClient:
    """A client of the control API of a server, whatever the path of its URL."""
    from cpsim.net.control import ControlClient
    from cpsim.net.http.client import fetch

    token = None if token_file is None else secret_in(token_file, "--control-token-file")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(method: str, path: str, body: bytes, *, slowly: bool) -> tuple[int, bytes]:
        timeout_s = 2 * LONGEST_LOOK_S if slowly else CONNECT_S
        return fetch(server, method, path, body, headers=headers, connect_s=CONNECT_S, timeout_s=timeout_s)

    return ControlClient(ask, CpsimError, f" on {server}")


def cpsim_errors(read: Callable[[], T]) -> Callable[[], T]:
    """Return a function that raises click's errors as CpsimErrors, where nobody is at the command line."""

    def call() -> T:
        try:
            return read()
        except click.ClickException as error:
            raise CpsimError(error.message) from error

    return call


def known_quirks(profile: str | None, names: Iterable[str]) -> frozenset[str]:
    """The quirks that a target is known to have."""
    from cpsim.quirks import chosen

    return chosen(profile or "documented", names)


def check_engine(engine: str, scheduler: str | None) -> None:
    """Raise click.UsageError if the engine is Dask and there is no scheduler, or the other way round."""
    if (engine == "dask") != (scheduler is not None):
        raise click.UsageError("--engine dask and --scheduler ADDRESS go together")
