"""A project at a fake with its daemon: addresses, controls and views."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cpsim.clock import STEADY_CLOCK
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake, Site
from cpsim.fake.fake import IDLE_POLL_S
from cpsim.faults.plan import FaultPlan
from cpsim.metrics.waits import Waits
from cpsim.net.control import PAGE
from cpsim.quirks import chosen
from cpsim.server.journal import JournalFull
from cpsim.system.checks import check, check_seconds
from cpsim.testing import wording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cpsim.daemon.site import Daemon
    from cpsim.faults.spec import Fault
    from cpsim.server.clock import ServerClock
    from cpsim.server.control.views import CommandView, FrameView, MachineView, Page, SlotView, UserView
    from cpsim.testing.background import Replay

    V = TypeVar("V")

PROJECT: Final = "project"
LONGEST_PATH: Final = 100
"""Bytes of a socket's path that every system takes: macOS has room for 103."""
SHORT_FOLDER: Final = Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder in it
IDLE_WAIT_S: Final = 2.0
"""The longest wait of an inspection for acknowledged commands to reach the accounts."""


class ProjectFixture:
    """The common part of `CreditPiggy` and `AsyncCreditPiggy`.

    Args:
        project: its id.
        profile: "documented" or "deployed": how the fake behaves.
        quirks: names from `cpsim quirks`, besides those of the profile.
        faults: faults from the start, as `cpsim faults` lists them.
        flush_interval_s: how long the daemon keeps commands before it delivers them.
        allow_refusals: whether refused and malformed commands are no failure.
        fake: a running fake to add the project to; by default it has a fake of its own.
        beside: another of these, started: this is then one more site of the same project.

    Raises:
        CpsimError: there is no such profile, quirk or fault, or it cannot be set here.
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
        fake: Fake | None = None,
        beside: ProjectFixture | None = None,
    ) -> None:
        check("project", project, str, "a text")
        check_seconds("flush_interval_s", flush_interval_s)
        named_quirks = chosen(profile, quirks)
        self.project: str = project if beside is None else beside.project
        self.allow_refusals = allow_refusals
        self._secret = secrets.token_hex(8) if beside is None else beside.credentials[1]
        self._owns_fake = fake is None and beside is None
        self._owns_project = beside is None
        if beside is not None:
            fake = beside.fake
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
        self._replays: list[Replay] = []
        self._final_report: tuple[str | None, str] | None = None

    # Its life

    def start(self) -> None:
        """Listen, on addresses of its own.

        Raises:
            OSError: there is no room for that.
            CpsimError: it runs, or did so before.
            ValueError: the fake has a project of that id.
        """
        if self._folder is not None:
            raise CpsimError(f"{type(self).__name__} has been started before: make another")
        self._folder = _short_folder()
        self._pid = os.getpid()
        site = Site(
            project_id=self.project,
            unix=self._folder / "daemon.sock",
            tcp=ANY_PORT,
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
        try:
            for replay in self._replays:
                replay.stop()
        finally:
            daemon, self._daemon = self._daemon, None
            self._close(daemon)

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
        self.fake.reset(None if self._owns_fake else self.project)
        self._start_us = self.fake.accounts.clock.now_us()

    def _close(self, daemon: Daemon) -> None:
        assert self._folder is not None
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

    @property
    def is_original(self) -> bool:
        """Whether this process started it, and was not forked since."""
        return os.getpid() == self._pid

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

    @property
    def environment(self) -> dict[str, str]:
        """The same for programs in any language, as environment variables; the secret is in a file."""
        assert self._running
        assert self._folder is not None
        secret_file = self._folder / "secret"
        if not secret_file.exists():
            secret_file.touch(mode=0o600)
            secret_file.write_text(f"{self._secret}\n", encoding="utf-8")
        return {
            "CREDITPIGGY_ENDPOINT": self.unix,
            "CREDITPIGGY_TCP": self.tcp,
            "CREDITPIGGY_URL": self.url,
            "CREDITPIGGY_PROJECT": self.project,
            "CREDITPIGGY_SECRET_FILE": str(secret_file),
        }

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

    # What can be seen, once what was acknowledged has reached the accounts

    @property
    def slots(self) -> dict[str, SlotView]:
        """Every slot by its id, the oldest first."""
        return {slot.slot: slot for slot in self._all(self._idle_fake.inspector.slots)}

    @property
    def machines(self) -> dict[str, MachineView]:
        """What each machine has earned, by its id."""
        return {machine.machine: machine for machine in self._all(self._idle_fake.inspector.machines)}

    @property
    def users(self) -> dict[str, UserView]:
        """What each user has, by the user's id."""
        return {user.user: user for user in self._all(self._idle_fake.inspector.users)}

    @property
    def journal(self) -> list[CommandView]:
        """Every command that reached the accounts, in that order."""
        return list(self._all(self._idle_fake.inspector.journal))

    @property
    def refusals(self) -> list[CommandView]:
        """The commands that the accounts refused; not those of a replay in the background."""
        return [command for command in self._all(self._idle_fake.inspector.refusals) if self._is_own(command)]

    @property
    def malformed(self) -> list[FrameView]:
        """The frames that the daemon answered `ER`, up to the first thousand."""
        return self._idle_fake.inspector.malformed(self.project).first

    @property
    def pending(self) -> int:
        """The number of acknowledged commands that have not reached the accounts."""
        return sum(daemon.pending for daemon in self.fake.daemons if daemon.project_id == self.project)

    def history(self, slot: str) -> list[str]:
        """The commands received for a slot, a line each, with time and reason of a refusal."""
        commands = (command for command in self.journal if str(command.arguments.get("slot")) == slot)
        lines = [(command.at_us, wording.command_line(command, self._start_us)) for command in commands]
        named = (bad for bad in self.malformed if f"slot={slot}" in bad.frame.strip().split(","))
        lines += [(bad.at_us, wording.malformed_line(bad, self._start_us)) for bad in named]
        return [line for _, line in sorted(lines, key=lambda line: line[0])]

    def complaint(self) -> str | None:
        """The refused and malformed commands, as a failure shows them; None if there are none, or they are allowed."""
        if self._final_report is not None:
            return self._final_report[0]
        if self.allow_refusals:
            return None
        return self._refused_text()

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
        refused = [command for command in own if command.refusal is not None]
        states = [str(slot.state) for slot in self.slots.values()]
        shown = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
        since = self._start_us
        parts = [
            [f"project {self.project!r}; slots: {shown}; quirks: {', '.join(sorted(self._quirks)) or 'none'}"],
            [self._pending_text()] if self.pending else [],
            [f"in the background: {replay!r}" for replay in self._replays],
            wording.block(
                f"last commands of {len(own):,} received", [wording.command_line(each, since) for each in own]
            ),
            wording.block(f"refused: {len(refused):,}", [wording.command_line(each, since) for each in refused]),
            wording.block("malformed", [wording.malformed_line(each, since) for each in self.malformed]),
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

    @property
    def _idle_fake(self) -> Fake:
        """The fake, after all acknowledged commands have reached the accounts, or `IDLE_WAIT_S`."""
        if not self.is_original:
            raise CpsimError(
                "this process was forked from the one that runs CreditPiggy: it can send commands, and only the other "
                "can look at what became of them"
            )
        clock = self.fake.clock
        deadline_s = clock.monotonic() + IDLE_WAIT_S
        while self.pending and not self._faults.refuses("server") and clock.monotonic() < deadline_s:
            self.fake.check()
            clock.sleep(IDLE_POLL_S)
        self.fake.check()
        return self.fake

    @property
    def _quirks(self) -> frozenset[str]:
        return self.fake.accounts.quirks

    def _all(self, read: Callable[..., Page[V]]) -> Iterator[V]:
        cursor: int | None = 0
        while cursor is not None:
            page = read(self.project, cursor=cursor, limit=PAGE)
            yield from page.items
            cursor = page.next

    def _is_own(self, command: CommandView) -> bool:
        """Whether a command is of the code under test, and not of a replay in the background."""
        return self._is_own_slot(str(command.arguments.get("slot")))

    def _is_own_slot(self, slot: str) -> bool:
        return not any(slot.startswith(replay.slot_prefix) for replay in self._replays)

    def _refused_text(self) -> str | None:
        refusals, malformed = self.refusals, self.malformed
        if not refusals and not malformed:
            return None
        line = partial(wording.command_line, start_us=self._start_us)
        return "\n".join(
            [
                *wording.block(f"{len(refusals)} refused by the accounts", map(line, refusals)),
                *wording.block(
                    f"{len(malformed)} malformed, answered ER by the daemon",
                    [wording.malformed_line(each, self._start_us) for each in malformed],
                ),
            ]
        )

    def _pending_text(self) -> str:
        """The number of pending commands, and the reason."""
        text = f"{self.pending:,} acknowledged commands have not reached the accounts"
        if self._faults.refuses("server"):
            return f"{text}: the server is down, by a fault"
        if self._flush_interval_s:
            return f"{text}: the daemon keeps them for flush_interval_s={self._flush_interval_s:g}"
        return text


def _short_folder() -> Path:
    """A new folder whose path leaves room for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="cp-"))
    if len(os.fsencode(folder / "daemon.sock")) > LONGEST_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="cp-", dir=SHORT_FOLDER))
    return folder
