"""`cpsim serve`: its configuration, from a file or from options, and serving until a signal."""

import json
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from socket import socket
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from cpdaemon.endpoint import TcpEndpoint
from cpsim.config import tables
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake, Site
from cpsim.faults.spec import Fault
from cpsim.net.listen import Listen, is_loopback
from cpsim.net.service_manager import PassedSocket, ServiceManager, by_kind, tcp_of
from cpsim.net.tls import ServerCertificate
from cpsim.quirks import QUIRKS, chosen
from cpsim.server.clock import LATEST_US
from cpsim.server.journal import DEFAULT_LIMIT
from cpsim.server.service import AccountServer
from cpsim.system.checks import LONGEST_S
from cpsim.system.signals import Signals
from cpsim.system.threads import on_thread_failure
from cpsim.ui.logs import LINES

log = logging.getLogger(__name__)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_YEAR: Final = (EPOCH + timedelta(microseconds=LATEST_US)).year
DEMO_PROJECT: Final = "demo"
"""Default project id and secret, for a fake on loopback."""
HTTP: Final = "http"
"""Name of a passed socket for the server."""

Text = Annotated[str, Meta(min_length=1, description="text")]
File = Annotated[str, Meta(min_length=1, description="the path of a file")]
Id = Annotated[str, Meta(pattern=r"^[^,]+$(?!\n)", description="a project id: text without commas")]
Address = Annotated[Listen, Meta(description="HOST:PORT, with a port from 0 (any free one) to 65535")]
Seconds = Annotated[float, Meta(ge=0, le=LONGEST_S, description=f"seconds, from 0 to {LONGEST_S:,}")]
Rate = Annotated[float, Meta(ge=0, le=1e6, description="a multiple of real time, from 0 (frozen) to 1,000,000")]
Count = Annotated[int, Meta(ge=0, description="a whole number from 0 up")]
Moment = Annotated[
    datetime, Meta(tz=True, description="a time with its offset, such as 2026-03-01T00:00:00Z, without quotes")
]
Profile = Annotated[Literal["documented", "deployed"], Meta(description='"documented" or "deployed"')]


class _Table(Struct, frozen=True, forbid_unknown_fields=True): ...


class ProjectTable(_Table, frozen=True):
    """A project, and its secret or the file that holds it."""

    id: Id
    secret: Text | None = None
    secret_file: File | None = None


class DaemonTable(_Table, frozen=True):
    """A daemon of a project: its addresses and its flush interval in seconds."""

    project: Id
    unix: File | None = None
    tcp: Address | None = None
    flush_interval: Seconds = 0.0


class ClockTable(_Table, frozen=True):
    """The server's clock."""

    start: Moment | None = None
    rate: Rate = 1.0


class ServeFile(_Table, frozen=True):
    """The whole file."""

    project: Annotated[list[ProjectTable], Meta(description="[[project]] tables")] = []
    daemon: Annotated[list[DaemonTable], Meta(description="[[daemon]] tables")] = []
    http: Address | None = None
    tls_cert: File | None = None
    tls_key: File | None = None
    control_token_file: File | None = None
    store: File | None = None
    journal_limit: Count = DEFAULT_LIMIT
    profile: Profile = "documented"
    quirks: Annotated[list[Text], Meta(description="a list of names that cpsim quirks lists")] = []
    faults: Annotated[list[Text], Meta(description="a list of faults; see cpsim faults")] = []
    seed: Count = 1
    clock: ClockTable = ClockTable()
    links: Annotated[dict[Text, Text], Meta(description='a table of machine = "user"')] = {}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The settings of `cpsim serve`.

    Attributes:
        projects: project id to secret.
        sites: projects and addresses of the daemons.
        http: address of the server. Without it and without sites, all listen at free addresses on loopback.
        tls_cert: file of the certificate with which the server speaks HTTPS.
        tls_key: file of its private key, unless it is in the same file.
        bound_http: a socket that listens there already.
        control_token: token of requests to the control API.
        flush_interval_s: flush interval of every daemon; overrides its own.
        store: file of the accounts.
        journal_limit: number of commands of each project that the journal keeps.
        profile: profile of quirks.
        quirks: quirks beside those of the profile.
        faults: faults, as text.
        seed: seed of the faults' probabilities.
        start_us: start of the clock, in microseconds since 1970; a later time in the store overrides it.
        rate: speed of the clock, as a multiple of real time.
        links: machine to user, for a new store.
    """

    projects: Mapping[str, str] = field(default_factory=lambda: {DEMO_PROJECT: DEMO_PROJECT})
    sites: Sequence[Site] = ()
    http: TcpEndpoint | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    bound_http: socket | None = None
    control_token: str | None = None
    flush_interval_s: float | None = None
    store: Path | None = None
    journal_limit: int = DEFAULT_LIMIT
    profile: str = "documented"
    quirks: Sequence[str] = ()
    faults: Sequence[str] = ()
    seed: int = 1
    start_us: int | None = None
    rate: float = 1.0
    links: Mapping[str, str] = field(default_factory=dict)

    def fake(self) -> Fake:
        """Return the fake of this configuration.

        Raises:
            CpsimError: a daemon has an unknown project, or a quirk, a fault, the store or a spool cannot be used.
            ValueError: a project or the start of the clock is invalid.
        """
        for site in self.sites:
            if site.project_id not in self.projects:
                known = ", ".join(map(repr, self.projects))
                raise CpsimError(f"there is a daemon for project {site.project_id!r}, and the projects are {known}")
        interval_s = self.flush_interval_s
        fake = Fake(
            self.projects,
            http=self.http,
            tls=self._certificate(),
            bound_http=self.bound_http,
            sites=[replace(site, flush_interval_s=interval_s) for site in self.sites]
            if interval_s is not None
            else self.sites,
            control_token=self.control_token,
            quirks=chosen(self.profile, self.quirks),
            journal_limit=self.journal_limit,
            store=self.store,
            faults=self.faults,
            seed=self.seed,
            crash=partial(os.kill, os.getpid(), signal.SIGKILL),
        )
        has_history = bool(fake.accounts.clock.latest_us)
        fake.accounts.clock.run(self.rate)
        if self.start_us is not None:
            fake.accounts.clock.set(max(self.start_us, fake.accounts.clock.latest_us))
        if has_history:
            self._compare_links(fake.accounts)
        else:
            fake.accounts.link(list(self.links.items()))
        return fake

    def _certificate(self) -> ServerCertificate | None:
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None:
            raise CpsimError(f"there is a private key {self.tls_key} without its certificate: give --tls-cert, too")
        if self.http is None:
            raise CpsimError(f"there is a certificate {self.tls_cert}, and no HTTP address to use it at: give --http")
        return ServerCertificate(self.tls_cert, self.tls_key)

    def _compare_links(self, accounts: AccountServer) -> None:
        """Warn of links that differ from the store's, which may have changed since the store was new."""
        with accounts.reading() as ledger:
            for machine, user in self.links.items():
                owner = ledger.owners.get(machine)
                if owner != user:
                    has = "no user" if owner is None else f"user {owner!r}"
                    log.warning(
                        "links: %r stays with %s, as the store has it, and does not go to %r",
                        machine,
                        has,
                        user,
                    )


def load(path: Path) -> Configuration:
    """Read a configuration file; paths in it are relative to its folder.

    Raises:
        CpsimError: the file has a mistake; the message names the file, the key, the value and the valid values.
        OSError: the file cannot be read.
    """
    try:
        file = tables.convert(tables.parse(path.read_text(encoding="utf-8")), ServeFile)
        folder, start_us = path.parent, _start_us(file.clock)
        projects = dict(_projects(file, folder)) or {DEMO_PROJECT: DEMO_PROJECT}
        return Configuration(
            projects=projects,
            sites=tuple(_sites(file, folder, projects)),
            http=file.http,
            tls_cert=None if file.tls_cert is None else folder / file.tls_cert,
            tls_key=None if file.tls_key is None else folder / file.tls_key,
            control_token=_secret(folder, file.control_token_file, "control_token_file"),
            store=None if file.store is None else folder / file.store,
            journal_limit=file.journal_limit,
            profile=file.profile,
            quirks=tuple(_known_quirks(file.quirks)),
            faults=tuple(_known_faults(file.faults)),
            seed=file.seed,
            start_us=start_us,
            rate=file.clock.rate,
            links=file.links,
        )
    except ValueError as error:
        raise CpsimError(f"{path}: {error}") from error


def read_secret(path: Path) -> str:
    """Return the secret in a file, without the white space around it.

    Raises:
        ValueError: the file cannot be read, or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if not secret:
        raise ValueError("is empty; write the secret into it")
    return secret


def serve(
    configuration: Configuration, on_ready: Callable[[str], None], read_again: Callable[[], Configuration]
) -> None:
    """Serve until SIGINT or SIGTERM; then stop listening and deliver acknowledged commands.

    SIGHUP has it read its secrets, and its certificate, again.

    Args:
        configuration: the settings.
        on_ready: called once the fake serves, with a line `KIND ADDRESS` for each address, daemons first and in order.
        read_again: reads the settings again, of which the secrets and the control token are used; raises CpsimError.

    Raises:
        CpsimError, ValueError: see `Configuration.fake`.
        OSError: an address cannot be bound.
        ThreadFailed: an unexpected error ended a thread.
    """
    manager = ServiceManager()
    with (
        _logging(),
        Signals() as signals,
        _with_addresses(configuration) as placed,
        on_thread_failure(lambda _: signals.end()),
        placed.fake() as fake,
    ):
        if exposed := _exposed(placed):
            hidden = str(placed.http) in exposed and placed.control_token is None
            control = "; the control API is off: --control-token-file turns it on" if hidden else ""
            reached = ", ".join(exposed)
            log.warning("other machines can reach %s%s", reached, control)
        for path, queued in fake.left_spools().items():
            log.warning("%s holds %s commands, which stay there: none of these daemons uses it", path, f"{queued:,}")
        addresses = [pair for daemon in fake.daemons for pair in daemon.addresses.items()]
        if placed.http is not None:
            addresses.append(("http", fake.addresses["http"]))
        on_ready("".join(f"{kind} {address}\n" for kind, address in addresses))
        manager.wait(signals, lambda: _read_secrets(fake, read_again), fake.after_a_turn, lambda: _status(fake))
        manager.end()


@contextmanager
def _logging() -> Iterator[None]:
    """Log what `cpsim serve` says; what its daemons say of each command is in the journal of the accounts."""
    handler = logging.StreamHandler()
    handler.setFormatter(LINES.message_formatter())
    handler.addFilter(lambda record: not record.name.startswith("cpsim.daemon."))
    log.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def with_passed(configuration: Configuration, passed: Sequence[PassedSocket]) -> Configuration:
    """Return the settings with the sockets of a service manager, in place of the addresses that they have.

    One named `http` is for the server; others have the name of a project, for its first daemon.

    Raises:
        CpsimError: a name is neither, or there are too many sockets of a kind.
    """
    named: dict[str, list[PassedSocket]] = {}
    for each in passed:
        named.setdefault(each.name, []).append(each)
    http = tcp_of(named.pop(HTTP, ()))
    if http is not None:
        configuration = replace(configuration, http=TcpEndpoint(*http.getsockname()[:2]), bound_http=http)
    for name, sockets in named.items():
        if name not in configuration.projects:
            known = ", ".join((HTTP, *configuration.projects))
            raise CpsimError(f"socket {name!r}: its FileDescriptorName= says what it is for; there are: {known}")
        own = next((site for site in configuration.sites if site.project_id == name), Site(project_id=name))
        others = [site for site in configuration.sites if site is not own]
        own = replace(own, unix=None, tcp=None, bound=by_kind(sockets))
        configuration = replace(configuration, sites=[own, *others])
    return configuration


def _status(fake: Fake) -> str:
    served = " and ".join(fake.addresses.values())
    return f"{served}: {fake.pending} commands wait"


def _read_secrets(fake: Fake, read_again: Callable[[], Configuration]) -> None:
    """Read the secrets again; if one cannot be read, all stay as they were."""
    try:
        again = read_again()
        fake.read_certificate()
        fake.set_secrets(again.projects, again.control_token)
    except (CpsimError, OSError, ValueError) as error:
        log.error("SIGHUP: the secrets stay as they were: %s", error)  # noqa: TRY400 - no traceback
    else:
        log.info("SIGHUP: the secrets were read again")


@contextmanager
def _with_addresses(configuration: Configuration) -> Iterator[Configuration]:
    """Yield the configuration, with free loopback addresses if it has none."""
    if configuration.sites or configuration.http is not None:
        yield configuration
        return
    with tempfile.TemporaryDirectory(prefix="cpsim-") as folder:
        project_id = next(iter(configuration.projects))
        site = Site(project_id=project_id, unix=Path(folder) / "daemon.sock", tcp=ANY_PORT)
        yield replace(configuration, sites=[site], http=ANY_PORT)


def _exposed(configuration: Configuration) -> list[str]:
    """Return the addresses that are not loopback."""
    bound = [TcpEndpoint(*site.bound["tcp"].getsockname()[:2]) for site in configuration.sites if "tcp" in site.bound]
    listening = [*bound, *(site.tcp for site in configuration.sites), configuration.http]
    return [str(address) for address in listening if address is not None and not is_loopback(address.host)]


def _start_us(clock: ClockTable) -> int | None:
    if clock.start is None:
        return None
    start_us = (clock.start - EPOCH) // timedelta(microseconds=1)
    if not 0 <= start_us <= LATEST_US:
        raise ValueError(f"clock.start = {clock.start.isoformat()}: expected a time from 1970 to {LATEST_YEAR}")
    return start_us


def _projects(file: ServeFile, folder: Path) -> Iterator[tuple[str, str]]:
    taken: set[str] = set()
    for index, project in enumerate(file.project):
        place = f"project[{index}]"
        if project.id.lower() in taken:
            raise ValueError(f"{place}.id = {json.dumps(project.id)}: expected an id of its own; case does not count")
        taken.add(project.id.lower())
        if (project.secret is None) == (project.secret_file is None):
            raise ValueError(f"{place}: expected secret or secret_file, and not both")
        yield project.id, project.secret or _secret(folder, project.secret_file, f"{place}.secret_file") or ""


def _sites(file: ServeFile, folder: Path, projects: Mapping[str, str]) -> Iterator[Site]:
    taken: dict[object, str] = {file.http: "http"}
    for index, daemon in enumerate(file.daemon):
        place = f"daemon[{index}]"
        if daemon.project not in projects:
            known = ", ".join(map(json.dumps, projects))
            close = tables.suggestion(daemon.project, projects)
            raise ValueError(f"{place}.project = {json.dumps(daemon.project)}: expected {known}{close}")
        if daemon.unix is None and daemon.tcp is None:
            raise ValueError(f"{place}: expected unix, tcp, or both")
        unix = None if daemon.unix is None else (folder / daemon.unix).resolve()
        tcp = daemon.tcp if daemon.tcp is not None and daemon.tcp.port else None
        for key, address in (("unix", unix), ("tcp", tcp)):
            if address is None:
                continue
            if address in taken:
                given = json.dumps(str(getattr(daemon, key)))
                raise ValueError(
                    f"{place}.{key} = {given}: expected an address of its own; {taken[address]} has the same"
                )
            taken[address] = f"{place}.{key}"
        yield Site(
            project_id=daemon.project,
            unix=None if daemon.unix is None else folder / daemon.unix,
            tcp=daemon.tcp,
            flush_interval_s=daemon.flush_interval,
        )


def _known_quirks(names: Sequence[str]) -> Sequence[str]:
    for index, name in enumerate(names):
        if name not in QUIRKS:
            known = ", ".join(QUIRKS)
            raise ValueError(f"quirks[{index}] = {json.dumps(name)}: expected {known}{tables.suggestion(name, QUIRKS)}")
    return names


def _known_faults(texts: Sequence[str]) -> Sequence[str]:
    for index, text in enumerate(texts):
        try:
            Fault.parse(text)
        except CpsimError as problem:
            raise ValueError(f"faults[{index}]: {problem}") from None
    return texts


def _secret(folder: Path, name: str | None, place: str) -> str | None:
    if name is None:
        return None
    try:
        return read_secret(folder / name)
    except ValueError as error:
        raise ValueError(f"{place} = {json.dumps(name)}: {error}") from error
