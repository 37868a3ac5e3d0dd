"""What a random sequence does, and what machines and users are to have after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cpdaemon.commands import COMMANDS, NAMED, Command, command_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cpsim.judge.model import SlotState


class Bulk(NamedTuple):
    """Commands that go in one request, where they go to a server."""

    commands: tuple[Command, ...]

    def in_order(self) -> list[Command]:
        """The commands in the order in which they are applied."""
        return sorted(self.commands, key=lambda command: [*COMMANDS].index(command.kind))


class Linking(NamedTuple):
    """A machine is linked to a user, unless it has one."""

    machine: str
    user: str


class Releasing(NamedTuple):
    """A machine is released, if it has a user."""

    machine: str


Action: TypeAlias = Command | Bulk | Linking | Releasing


def renamed(action: Action, rename: Callable[[str], str]) -> Action:
    """The same with other ids of slots and of whatever else it names."""
    if isinstance(action, Bulk):
        return Bulk(tuple(_renamed_command(command, rename) for command in action.commands))
    if isinstance(action, Linking):
        return Linking(rename(action.machine), rename(action.user))
    if isinstance(action, Releasing):
        return Releasing(rename(action.machine))
    return _renamed_command(action, rename)


def _renamed_command(command: Command, rename: Callable[[str], str]) -> Command:
    arguments = command.arguments()
    ids = {name: rename(str(arguments[name])) for name in NAMED[command.kind]}
    return command_of(command.kind, {**arguments, **ids})


def said(tie: Linking | Releasing) -> str:
    """A link or a release in words."""
    return f"link {tie.machine} to {tie.user}" if isinstance(tie, Linking) else f"release {tie.machine}"


@dataclass
class _Held:
    """What a machine, or a user, is to have."""

    credits: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    waiting_credits: int = 0
    waiting_counters: dict[str, int] = field(default_factory=dict)

    def earn(self, credits: int, counters: Mapping[str, int]) -> None:
        self.credits += credits
        self.counters = _sum(self.counters, counters)

    def wait(self, credits: int, counters: Mapping[str, int]) -> None:
        self.waiting_credits += credits
        self.waiting_counters = _sum(self.waiting_counters, counters)


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums, without those that come to nothing."""
    sums = {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
    return {name: value for name, value in sums.items() if value}


class ExpectedBooks:
    """What machines and users are to have, after claims, links and releases."""

    def __init__(self) -> None:
        self.machines: dict[str, _Held] = {}
        self.users: dict[str, _Held] = {}
        self._owners: dict[str, str] = {}
        self._paid: set[str] = set()

    def pay(self, slot: str, state: SlotState) -> None:
        """Pay for a slot, if it is claimed and not paid for."""
        if state.machine is None or slot in self._paid:
            return
        self._paid.add(slot)
        credits, counters = state.granted or 0, dict(state.counters)
        machine = self.machines.setdefault(state.machine, _Held())
        machine.earn(credits, counters)
        if state.machine in self._owners:
            self.users[self._owners[state.machine]].earn(credits, counters)
        else:
            machine.wait(credits, counters)

    def admits(self, tie: Linking | Releasing) -> bool:
        """Linking a machine that has no user, or release one that has; whether it was so."""
        if isinstance(tie, Releasing):
            return self._owners.pop(tie.machine, None) is not None
        if tie.machine in self._owners:
            return False
        self._owners[tie.machine] = tie.user
        machine = self.machines.setdefault(tie.machine, _Held())
        self.users.setdefault(tie.user, _Held()).earn(machine.waiting_credits, machine.waiting_counters)
        machine.waiting_credits, machine.waiting_counters = 0, {}
        return True
