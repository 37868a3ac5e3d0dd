"""What can be seen of a project at a fake, once what was acknowledged has reached the accounts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

from cpsim.errors import CpsimError
from cpsim.fake.fake import IDLE_POLL_S
from cpsim.server.control import wording
from cpsim.server.control.views import command_view, slot_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cpsim.fake import Fake
    from cpsim.faults.plan import FaultPlan
    from cpsim.server.control.views import CommandView, FrameView, MachineView, Page, SlotView, UserView
    from cpsim.testing.background import Replay

    V = TypeVar("V")

IDLE_WAIT_S: Final = 2.0
"""The longest wait of an inspection for acknowledged commands to reach the accounts."""
PAGE: Final = 10_000


class Views:
    """The views of a project's accounts and journal.

    Attributes:
        project: its id.
        fake: where it is.
    """

    project: str
    fake: Fake
    _faults: FaultPlan
    _pid: int
    _replays: list[Replay]
    _start_us: int

    @property
    def is_original(self) -> bool:
        """Whether this process started it, and was not forked since."""
        return os.getpid() == self._pid

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
        commands = self._commands_for(slot)
        lines = [(command.at_us, wording.command_line(command, self._start_us)) for command in commands]
        named = (bad for bad in self.malformed if f"slot={slot}" in bad.frame.strip().split(","))
        lines += [(bad.at_us, wording.malformed_line(bad, self._start_us)) for bad in named]
        return [line for _, line in sorted(lines, key=lambda line: line[0])]

    # For the parts of it

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

    @property
    def _has_come(self) -> bool:
        """Whether any command has come, even a malformed one."""
        return bool(self._idle_fake.inspector.journal(self.project, limit=1).items or self.malformed)

    def _slot(self, slot: str) -> SlotView | None:
        """One slot; None if there is none of this id."""
        with self._idle_fake.accounts.reading() as ledger:
            project = ledger.projects.get(self.project)
            found = None if project is None else project.slots.get(slot)
            return None if found is None else slot_view(self.project, slot, found)

    def _commands_for(self, slot: str) -> list[CommandView]:
        """The commands received for a slot, in order; without a look at all others."""
        accounts = self._idle_fake.accounts
        with accounts.reading():
            commands = [command_view(self.project, entry) for entry in accounts.journal.about(self.project, slot)]
        return [command for command in commands if str(command.arguments.get("slot")) == slot]

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
