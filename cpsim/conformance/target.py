"""The target: a daemon, a server, or a daemon and the server behind it; and which needs of clauses it meets."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UrlEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpdaemon.signing import token
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.accounts import AccountsView
from cpsim.conformance.clause import Need
from cpsim.conformance.exchange import HttpRequest
from cpsim.conformance.findings import CannotRun
from cpsim.conformance.frames import connect
from cpsim.conformance.leavings import Leavings, Left
from cpsim.conformance.rehearsal import Rehearsal
from cpsim.conformance.transport import Network
from cpsim.conformance.upstream import Upstream
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from pathlib import Path

    from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint
    from cpsim.accounts.sources import AccountsSource
    from cpsim.clock import Clock
    from cpsim.conformance.transport import Transport

DEFAULT_PREFIX: Final = "verify"
LONGEST_PREFIX_BYTES: Final = 80
MOST_COMMANDS: Final = 5_000
"""The most that one run sends; it usually sends about a fifth."""
MOST_COMMANDS_TO_US: Final = 20_000
"""The most that one run sends where the server is ours, and nobody else is disturbed."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The addresses, credentials and limits of a target.

    Attributes:
        daemon: takes frames.
        server: takes requests: the endpoint itself, or what stands behind the daemon.
        behind: where the daemon's server is to be, which is then ours.
        credentials: (project id, secret) at the server.
        other: those of a second project, which shows whether projects are kept apart.
        profile: `documented`, or `deployed`, where all quirks are known and do not count.
        quirks: names of the quirks that are known; with `deployed`, all that the fake has.
        timeout_s: for a reply, and for what was acknowledged to take effect.
        max_rate: commands/s at most; None for no limit.
        slot_prefix: begins the ids of slots, machines and users.
        flush_interval_s: for how long the daemon keeps commands.
        restart_command: for a shell; stops the daemon or server, by `{signal}` if it has that, and starts it again.
        failed_command: for a shell; prints the commands that the daemon knows to be refused.
        accounts: shows the server's accounts, in place of its control API; None if there is nothing else.
        thorough: whether what is risky at a live system, or takes long, may be sent too.
    """

    daemon: UnixEndpoint | TcpEndpoint | None = None
    server: UrlEndpoint | None = None
    behind: TcpEndpoint | None = None
    credentials: tuple[str, str] | None = None
    other: tuple[str, str] | None = None
    profile: str = "documented"
    quirks: frozenset[str] = frozenset()
    timeout_s: float = 10.0
    max_rate: float | None = None
    slot_prefix: str = DEFAULT_PREFIX
    flush_interval_s: float = 1.0
    restart_command: str | None = None
    failed_command: str | None = None
    accounts: AccountsSource | None = None
    thorough: bool = False

    def __str__(self) -> str:
        places = " and ".join(str(place) for place in (self.daemon, self.server) if place is not None)
        return places if self.behind is None else f"{places} in front of {self.behind}"


def parse_target(
    endpoint: str,
    *,
    server: str | None = None,
    project: str | None = None,
    secret_file: Path | None = None,
    other_project: str | None = None,
    other_secret_file: Path | None = None,
    behind: TcpEndpoint | None = None,
    accounts: AccountsSource | None = None,
) -> Target:
    """Make a target of a user's options.

    Raises:
        ValueError: an option is missing, or excludes another; the message names the option.
    """
    try:
        where = parse_endpoint(endpoint)
        at = None if server is None else parse_endpoint(server)
    except EndpointError as error:
        raise ValueError(str(error)) from error
    if isinstance(where, UrlEndpoint):
        if at is not None:
            raise ValueError("--server is for an endpoint that is a daemon; this one is a server itself")
        at, daemon = where, None
    else:
        daemon = where
    if at is not None and not isinstance(at, UrlEndpoint):
        raise ValueError(f"--server must be a URL such as http://127.0.0.1:8080/api, not {at}")
    if behind is not None and daemon is None:
        raise ValueError("--behind is for an endpoint that is a daemon; this one is a server itself")
    if behind is not None and at is not None:
        raise ValueError("--server and --behind exclude one another: either there is a server, or it is ours")
    credentials = _credentials(project, secret_file, "")
    other = _credentials(other_project, other_secret_file, "other-")
    if at is None and behind is None and credentials is not None:
        raise ValueError("--project and --secret-file are for a server: add --server URL, or --behind HOST:PORT")
    if (at is not None or behind is not None) and credentials is None:
        raise ValueError(f"{at or behind} needs --project ID and --secret-file FILE")
    if accounts is not None and at is None:
        raise ValueError("--accounts goes with a server: an endpoint that is a URL, or --server URL")
    if other is not None and credentials is None:
        raise ValueError("--other-project goes with --project")
    if other is not None and credentials is not None and other[0].lower() == credentials[0].lower():
        raise ValueError(f"--other-project {other[0]} is the --project itself")
    return Target(daemon=daemon, server=at, behind=behind, credentials=credentials, other=other, accounts=accounts)


def _credentials(project: str | None, secret_file: Path | None, prefix: str) -> tuple[str, str] | None:
    if project is None and secret_file is None:
        return None
    if project is None or secret_file is None:
        raise ValueError(f"--{prefix}project ID and --{prefix}secret-file FILE go together")
    try:
        secret = secret_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--{prefix}secret-file {secret_file} cannot be read: {error}") from error
    try:
        token((project, secret), b"")
    except EndpointError as error:
        raise ValueError(f"--{prefix}project {project}: {error}") from error
    return project, secret


def checked_prefix(text: str) -> str:
    """The text, if ids of slots can begin with it.

    Raises:
        ValueError: they cannot; the message says why.
    """
    if not text or not text.isprintable() or set(text) & set(",=") or text != text.strip():
        raise ValueError(f"{text!r} cannot begin the id of a slot: use printable characters other than ',' and '='")
    if len(text.encode()) > LONGEST_PREFIX_BYTES:
        raise ValueError(f"it has {len(text.encode())} bytes; at most {LONGEST_PREFIX_BYTES} leave room for the rest")
    return text


class Traffic:
    """Counts commands and requests, and limits their rate.

    Args:
        max_rate: commands/s at most; None for no limit.
        most: how many commands at most.
        clock: waits between commands.
    """

    def __init__(self, max_rate: float | None, most: int = MOST_COMMANDS, clock: Clock = SYSTEM_CLOCK) -> None:
        self.sent = 0
        self._most = most
        self._lock = threading.Lock()
        self._interval_s = 0.0 if max_rate is None else 1 / max_rate
        self._next = 0.0
        self._clock = clock

    def pass_on(self) -> None:
        """Wait until one more may be sent.

        Raises:
            CannotRun: as much as a run may send has been sent.
        """
        with self._lock:
            if self.sent >= self._most:
                raise CannotRun(f"{self._most:,} commands and requests were sent, the most of one run")
            self.sent += 1
            now = self._clock.monotonic()
            due = max(self._next, now)
            self._next = due + self._interval_s
        if due > now:
            self._clock.sleep(due - now)


@dataclass
class TargetView:
    """A connected target, and the needs that it meets.

    Attributes:
        target: the target.
        needs: the needs that it meets.
        transport: the way to it.
        run: part of every id, different for each run.
        listing_bytes: the size of the first reply of `/batch/slots`.
        leavings: what has been made there so far.
        left: what is left there, after the last clause; None before, and where the server is ours.
    """

    target: Target
    needs: frozenset[Need]
    transport: Transport
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    listing_bytes: int = 0
    leavings: Leavings = field(default_factory=Leavings)
    left: Left | None = None

    def __post_init__(self) -> None:
        source = self.target.accounts
        if source is None or isinstance(self.transport, Rehearsal):
            self.accounts = AccountsView(self.transport.ask)
            return
        from cpsim.conformance.sources import SourceView  # noqa: PLC0415 - it needs an extra more

        self.accounts = SourceView(self.transport.ask, source, self.target.timeout_s)

    def close(self) -> None:
        """Stop the server behind the daemon, if it is ours."""
        if self.transport.upstream is not None:
            self.transport.upstream.stop()

    def missing(self, needs: tuple[Need, ...]) -> list[Need]:
        """The needs that the target does not meet."""
        return [need for need in needs if need not in self.needs]


def expected_needs(target: Target) -> frozenset[Need]:
    """The needs that a target may meet, by its options alone."""
    needs = set()
    if target.daemon is not None:
        needs.add(Need.DAEMON)
    if target.server is not None:
        needs |= {Need.SERVER, Need.ACCOUNTS}
    for there, need in (
        (target.other, Need.OTHER),
        (target.behind, Need.BEHIND),
        (target.restart_command, Need.RESTART),
        (target.failed_command, Need.FAILED),
        (target.thorough or None, Need.THOROUGH),
    ):
        if there is not None:
            needs.add(need)
    return frozenset(needs)


def rehearsed(target: Target) -> TargetView:
    """The view of a target to which nothing is sent."""
    return TargetView(target, expected_needs(target), Rehearsal(target))


def reach(target: Target, workers: int = 1, most: int | None = None) -> TargetView:
    """Connect to a target, and find out which needs it meets.

    Args:
        target: the target.
        workers: the number of processes that share the rate.
        most: how many commands and requests may be sent; by default what the suite may.

    Raises:
        CpsimError: an address does not answer, or the server does not accept the credentials.
    """
    rate = None if target.max_rate is None else target.max_rate / workers
    if most is None:
        most = MOST_COMMANDS if target.behind is None else MOST_COMMANDS_TO_US
    upstream = None
    if target.behind is not None:
        assert target.credentials is not None
        upstream = Upstream(target.behind, target.credentials, knows_batches=True)
        try:
            upstream.start()
        except OSError as error:
            raise CpsimError(f"cannot be the server at {target.behind}: {error.strerror}") from error
    target_view = TargetView(target, expected_needs(target), Network(target, Traffic(rate, most), upstream))
    try:
        if target.daemon is not None:
            connect(target.daemon, target.timeout_s).close()
        if target.server is not None:
            for credentials in filter(None, (target.credentials, target.other)):
                _check_credentials(target_view, credentials)
            if target_view.accounts.exists():
                for project, _ in filter(None, (target.credentials, target.other)):
                    target_view.accounts.note_ends(project)
            else:
                target_view.needs -= {Need.ACCOUNTS}
    except CannotRun as error:
        raise CpsimError(f"{error}; is it running there?") from error
    return target_view


def _check_credentials(target_view: TargetView, credentials: tuple[str, str]) -> None:
    assert target_view.target.server is not None
    path = f"{target_view.target.server.path}/batch/slots"
    reply = target_view.transport.ask(HttpRequest("POST", path, headers={"Authorization": token(credentials, b"")}))
    if reply.status in {401, 403}:
        raise CpsimError(f"{target_view.target.server} does not accept the secret of project {credentials[0]}: {reply}")
    if reply.status == 404:
        raise CpsimError(f"{target_view.target.server} has no {path}: a server's URL usually ends in /api")
    if not reply.status:
        raise CpsimError(f"{target_view.target.server} takes connections and gives no HTTP reply: {reply}")
    target_view.listing_bytes = max(target_view.listing_bytes, len(reply.body))
