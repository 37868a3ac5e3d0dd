"""A project at a fake with its daemon: addresses, controls and views."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import ExitStack, suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint
from cpsim.clock import STEADY_CLOCK
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake, Site
from cpsim.fake.environment import environment_of
from cpsim.faults.plan import FaultPlan, as_fault
from cpsim.metrics.waits import Waits
from cpsim.quirks import chosen
from cpsim.server.control import wording
from cpsim.server.journal import JournalFull
from cpsim.system.checks import check, check_seconds
from cpsim.testing.reach import obstacles, short_folder, socket_path
from cpsim.testing.views import Views

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cpsim.daemon.site import Daemon
    from cpsim.faults.spec import Fault
    from cpsim.server.clock import ServerClock
    from cpsim.testing.background import Replay

PROJECT: Final = "project"


class ProjectFixture(Views):
    """The common part of `CreditPiggy` and `AsyncCreditPiggy`.

    Args:
        project: its id.
        profile: "documented" or "deployed": how the fake behaves.
        quirks: names from `cpsim quirks`, besides those of the profile.
        faults: faults from the start, as `cpsim faults` lists them.
        flush_interval_s: how long the daemon keeps commands before it delivers them.
        allow_refusals: whether refused and malformed commands are no failure.
        allow_unfired: whether a fault that never fires is no failure; or the faults for which that is so.
        path: of the daemon's UNIX socket; by default one of its own, in a folder that is closed to other users.
        port: of the daemon on 127.0.0.1; by default a free one.
        mode: permissions of the socket file, such as 0o666 for all users to connect; of its own folder, too.
        fake: a running fake to add the project to; by default it has a fake of its own.
        beside: another of these, started: this is then one more site of the same project.
        at: another of these, started: this then begins its accounts anew, with these faults and quirks, and has its
            addresses.

    Raises:
        CpsimError: there is no such profile, quirk or fault, or it cannot be set here, or no socket can have the path.
    """

    def __init__(
        self,
        *,
        project: str = PROJECT,
        profile: str = "documented",
        quirks: Iterable[str] = (),
        faults: Iterable[Fault | str] = (),
        flush_interval_s: float = 0.0,
        allow_refusals: bool = False,
        allow_unfired: bool | Iterable[Fault | str] = False,
        path: str | Path | None = None,
        port: int | None = None,
        mode: int | None = None,
        fake: Fake | None = None,
        beside: ProjectFixture | None = None,
        at: ProjectFixture | None = None,
    ) -> None:
        check("project", project, str, "a text")
        check_seconds("flush_interval_s", flush_interval_s)
        if at is not None and (path, port, mode) != (None, None, None):
            raise CpsimError("path, port and mode are those of the one that this is at")
        self._path, self._port, self._mode = None if path is None else socket_path(path), port, mode
        named_quirks = chosen(profile, quirks)
        known = beside if at is None else at
        self.project: str = project if known is None else known.project
        self.allow_refusals = allow_refusals
        self._may_not_fire = None if allow_unfired is True else set(map(as_fault, allow_unfired or ()))
        self._secret = secrets.token_hex(8) if known is None else known.credentials[1]
        self._owns_fake = self._resets_all = fake is None and known is None
        self._owns_project = known is None
        self._at = at
        if known is not None:
            fake = known.fake
        self._waits = Waits(STEADY_CLOCK if fake is None else fake.clock)
        if fake is None:
            fake = Fake(
                {project: self._secret},
                http=ANY_PORT,
                quirks=named_quirks,
                faults=faults,
                waits=self._waits,
                clock=STEADY_CLOCK,
            )
            self._faults = fake.faults
        elif at is not None:
            self._faults, self._waits = at.faults, at._waits  # noqa: SLF001 - of this class
            self._resets_all = at._resets_all  # noqa: SLF001 - likewise
            self._settings = named_quirks, tuple(faults)
        elif named_quirks - fake.accounts.quirks:
            raise CpsimError("the profile and the quirks are those of the fake that the project is added to")
        else:
            self._faults = FaultPlan(faults, clock=fake.clock)
        self.fake: Fake = fake
        self._flush_interval_s = flush_interval_s
        self._daemon: Daemon | None = None
        self._folder: Path | None = None
        self._pid = os.getpid()
        self._start_us = 0
        self._linked: set[str] = set()
        self._more: list[Daemon] = []
        self._replays: list[Replay] = []
        self._final_report: tuple[str | None, str] | None = None

    def start(self) -> None:
        """Listen, on addresses of its own.

        Raises:
            OSError: there is no room for that.
            CpsimError: it runs, or did so before.
            ValueError: the fake has a project of that id.
        """
        if self._folder is not None:
            raise CpsimError(f"{type(self).__name__} has been started before: make another")
        self._pid = os.getpid()
        if self._at is not None:
            self._daemon, self._folder = self._at._running, self._at._folder  # noqa: SLF001 - of this class
            self.reset()
            return
        self._folder = short_folder()
        if self._mode is not None:
            self._folder.chmod(0o700 | (self._mode & 0o022) >> 1)  # who may connect may enter
        site = Site(
            project_id=self.project,
            unix=self._path or self._folder / "daemon.sock",
            mode=self._mode,
            tcp=ANY_PORT if self._port is None else TcpEndpoint(ANY_PORT.host, self._port),
            flush_interval_s=self._flush_interval_s,
        )
        self._start_us = self.clock.now_us()
        try:
            if self._owns_fake:
                self._daemon = self.fake.add_site(site, waits=self._waits)
                self.fake.start()
            else:
                if self._owns_project:
                    self.fake.add_project(self.project, self._secret)
                try:
                    self._daemon = self.fake.add_site(site, faults=self._faults, waits=self._waits)
                except BaseException:
                    if self._owns_project:
                        self.fake.remove_project(self.project)
                    raise
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def stop(self) -> None:
        """Deliver acknowledged commands, and release every address; does nothing in a forked process."""
        if not self.is_original or self._daemon is None:
            return
        with ExitStack() as last_first:
            daemon, self._daemon = self._daemon, None
            last_first.callback(self._close, daemon)
            for site in self._more:
                last_first.callback(self.fake.remove_site, site)
            for replay in self._replays:
                last_first.callback(replay.stop)

    def reset(self) -> None:
        """Begin anew, at the same addresses; no fault prevents it.

        Everything is as after `start`: accounts, journal, faults, quirks and clock. Connections are closed, commands
        that are pending or that a fault holds are dropped, and replays in the background end. With a shared fake, its
        quirks, its clock and others' links stay.

        Raises:
            CpsimError: it is not running.
            ValueError: the daemon is too busy.
        """
        assert self._running
        for replay in self._replays:
            with suppress(CpsimError):  # it could not go on, by a fault
                replay.stop()
        self._replays.clear()
        self.fake.accounts.release(sorted(self._linked))
        self._linked.clear()
        self.fake.reset(None if self._resets_all else self.project)
        if self._at is not None:
            quirks, faults = self._settings
            if self.fake.accounts.quirks != quirks:
                self.fake.set_quirks(quirks)
            self._faults.restart(faults)
            self._running.set_flush_interval(self._flush_interval_s)
        self._start_us = self.fake.accounts.clock.now_us()

    def _close(self, daemon: Daemon) -> None:
        assert self._folder is not None
        if self._at is not None:
            self._final_report = self.complaint(), self.report()
            self.fake.accounts.release(sorted(self._linked))
            return
        try:
            if self._owns_fake:
                self.fake.stop()
            else:
                self.fake.remove_site(daemon)
                complaint = self.complaint() if self._owns_project else None
                self._final_report = complaint, self.report()
        finally:
            if not self._owns_fake:
                self.fake.accounts.release(sorted(self._linked))
            if self._owns_project and not self._owns_fake:
                self.fake.remove_project(self.project)
            shutil.rmtree(self._folder)

    # Where it is

    @property
    def endpoint(self) -> str:
        """The daemon's UNIX socket, which is where a job manager is pointed by default."""
        return self.unix

    @property
    def unix(self) -> str:
        """The path of the daemon's UNIX socket."""
        return self._running.addresses["unix"]

    @property
    def tcp(self) -> str:
        """HOST:PORT of the daemon."""
        return self._running.addresses["tcp"]

    @property
    def url(self) -> str:
        """The URL of the server's API, which takes signed requests."""
        assert self._running
        return self.fake.addresses["http"]

    @property
    def credentials(self) -> tuple[str, str]:
        """The project's id and its secret, for `url`."""
        return self.project, self._secret

    def listen_at(self, path: str | Path, *, mode: int | None = None) -> str:
        """Listen at one more UNIX socket, until this ends.

        It is one more site of the same project, with the same faults; commands to the other addresses may overtake its.

        Args:
            path: of the socket.
            mode: its permissions, such as 0o666 for all users; by default as the process's umask has it.

        Returns:
            The path, absolute.

        Raises:
            CpsimError: no socket can have this path, or it is not running.
            OSError: the path is taken, or cannot be created.
        """
        assert self._running
        site = Site(
            project_id=self.project,
            unix=socket_path(path),
            mode=mode,
            flush_interval_s=self._flush_interval_s,
        )
        self._more.append(self.fake.add_site(site, faults=self._faults, waits=self._waits))
        return self._more[-1].addresses["unix"]

    @property
    def environment(self) -> dict[str, str]:
        """The same for programs in any language, as environment variables; the secret is in a file."""
        assert self._running
        assert self._folder is not None
        secret_file = self._folder / "secret"
        if not secret_file.exists():
            secret_file.touch(mode=0o600)
            secret_file.write_text(f"{self._secret}\n", encoding="utf-8")
        return environment_of(self._running.addresses | {"http": self.url}, self.project, secret_file)

    # What can be changed

    @property
    def clock(self) -> ServerClock:
        """The server's clock: `clock.advance(hours=25)` expires slots. A fake has one, for all its projects.

        Commands acknowledged before are applied at the time before.
        """
        return self._idle_fake.accounts.clock

    @property
    def faults(self) -> FaultPlan:
        """The faults: `with faults.hang(kind="claim"): ...`. With a shared fake, those of this daemon alone."""
        return self._faults

    def link(self, machine: str, user: str) -> None:
        """Link a machine to a user, who gets all that waits on it.

        Raises:
            ValueError: it belongs to another user.
        """
        self.link_all([(machine, user)])

    def link_all(self, links: Iterable[tuple[str, str]]) -> None:
        """Link each machine to its user.

        Raises:
            ValueError: one belongs to another user; the others are linked.
        """
        links = list(links)
        with self.fake.accounts.reading() as ledger:
            owned = ledger.owners.keys() & {machine for machine, _ in links}
        refusals = self.fake.accounts.link(links)
        self._linked |= {machine for machine, _ in links} - owned
        for refusal in refusals:
            raise ValueError(refusal.message)

    def complaint(self) -> str | None:
        """The refused and malformed commands and the faults that never fired, as a failure shows them.

        None if there are none, or they are allowed.
        """
        if self._final_report is not None:
            return self._final_report[0]
        refused = [] if self.allow_refusals else self._refused_lines()
        allowed = self._may_not_fire
        unfired = [] if allowed is None else [each for each in self._faults.unfired() if each[0] not in allowed]
        return wording.complaint(refused, unfired)

    def deliver(self) -> None:
        """Have the daemon deliver what is pending, and what comes, without waiting for its flush interval."""
        if self._daemon is not None and self._flush_interval_s:
            self._daemon.set_flush_interval(0)

    def report(self) -> str:
        """The last commands received, refusals, malformed frames and the faults that fired."""
        if self._final_report is not None:
            return self._final_report[1]
        try:
            return self._report()
        except (JournalFull, CpsimError) as error:  # more came than is kept
            return f"project {self.project!r}: {error}"

    def _report(self) -> str:
        own = [command for command in self.journal if self._is_own(command)]
        states = [str(slot.state) for slot in self.slots.values()]
        shown = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
        parts = [
            [f"project {self.project!r}; slots: {shown}; quirks: {', '.join(sorted(self._quirks)) or 'none'}"],
            [self._pending_text()] if self.pending else [],
            [f"in the background: {replay!r}" for replay in self._replays],
            wording.received_lines(own, self.malformed, self._start_us),
            wording.block("faults fired", map(wording.firing_line, self._faults.firings)),
        ]
        return "\n".join(chain.from_iterable(parts))

    def __repr__(self) -> str:
        where = self._daemon.addresses["unix"] if self._daemon is not None else "nowhere"
        return f"<{type(self).__name__} {self.project!r} at {where}>"

    # For the parts of it

    @property
    def _running(self) -> Daemon:
        if self._daemon is None:
            raise CpsimError(f"{type(self).__name__} is not running: use it in a `with`, or call start() first")
        return self._daemon

    def _refused_lines(self) -> list[str]:
        accounts = self._idle_fake.accounts
        malformed, _ = accounts.journal.malformed(self.project)
        if not accounts.refused_of(self.project) and not malformed and self.project not in accounts.journal.overflows:
            return []
        return wording.refused_lines(self.refusals, self.malformed, self._start_us)

    def _nothing_text(self) -> list[str]:
        """That nothing has come for a slot; and if nothing has come at all, what can be the reason."""
        if self._has_come:
            return ["nothing has come for it"]
        daemons = [daemon for daemon in (self._daemon, *self._more) if daemon is not None]
        refused = [line for at_us, line in self.fake.accounts.journal.turned_away if at_us >= self._start_us]
        heading = "nothing has come for it, nor for any other"
        return wording.block(heading, obstacles(daemons, refused, self._faults)) or [heading]

    def _pending_text(self) -> str:
        """The number of pending commands, and the reason."""
        text = f"{self.pending:,} acknowledged commands have not reached the accounts"
        if self._faults.refuses("server"):
            return f"{text}: the server is down, by a fault"
        if self._flush_interval_s:
            return f"{text}: the daemon keeps them for flush_interval_s={self._flush_interval_s:g}"
        return text
