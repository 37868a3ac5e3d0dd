"""The ledger: the effect of each command on slots, machines and users.

`TRANSITIONS` is the life cycle of a slot. An allocated slot also expires, `expire` minutes after its allocation and not
before. A settled slot (claimed, discarded, expired) refuses every further command. The credit of a claim goes to the
machine, and to the user that the machine is linked to; without a user, the credit waits on the machine.

The ledger is pure: time is an argument, in integer microseconds, and must not go backwards.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import count
from sys import intern
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from cpsim.server.accounts import (
    ALLOCATED,
    CLAIMED,
    DISCARDED,
    EXPIRED,
    Account,
    Machine,
    ProjectAccounts,
    Slot,
    State,
    add_up,
    hashed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

DEFAULT_CREDITS: Final = 1
DEFAULT_REASON: Final = "unspecified"
LARGEST_INTEGER: Final = 2**53 - 1
"""The largest number accepted: every JSON reader holds it exactly."""

MINUTE_US: Final = 60_000_000
DEFAULT_LIFETIME_US: Final = 1440 * MINUTE_US
LAST_US: Final = 2**63 - 1
"""The latest expiry: the largest 64-bit integer. A later expiry is set to it."""

LONGEST_QUOTE: Final = 80
MOST_DIGITS: Final = 17
"""The most characters of a number given as text, with its sign."""
NUMBERS_KEPT: Final = 1_024


class Transition(NamedTuple):
    """A command's transition of a slot from one state to another; `before` is None for an unused id."""

    kind: str
    before: State | None
    after: State


TRANSITIONS: Final = (
    Transition("alloc", None, ALLOCATED),
    Transition("counters", ALLOCATED, ALLOCATED),
    Transition("meta", ALLOCATED, ALLOCATED),
    Transition("discard", ALLOCATED, DISCARDED),
    Transition("claim", ALLOCATED, CLAIMED),
)
"""The life cycle of a slot; any other command is refused. The method of the kind's name does the rest."""
MAKING: Final = frozenset(row.kind for row in TRANSITIONS if row.before is None)
AFTER: Final = {row.kind: row.after for row in TRANSITIONS if row.before is not None}


class CommandRefused(Exception):
    """The command was refused and changed nothing; the message gives the reason."""


class Refusal(NamedTuple):
    """A refused command of a batch: its position, and the reason."""

    position: int
    message: str


class Ledger:
    """The accounts of every project, and which user owns which machine."""

    def __init__(self) -> None:
        self.projects: dict[str, ProjectAccounts] = {}
        self.owners: dict[str, str] = {}
        self._due: list[tuple[int, int, ProjectAccounts, int]] = []
        """A heap of the next expiry of each lifetime of each project."""
        self._serial = count()
        self._changes: dict[str, Callable[[Any, ProjectAccounts, Any, Mapping[str, object], int], None]] = {
            row.kind: getattr(type(self), f"_{row.kind}") for row in TRANSITIONS
        }
        """Functions, not bound methods, whose cycle would delay freeing the ledger."""

    def restore(self, projects: dict[str, ProjectAccounts], owners: dict[str, str]) -> None:
        """Take over the accounts of an earlier ledger."""
        self.projects, self.owners = projects, owners
        self._due = []
        for project in projects.values():
            project.slots = hashed(project.slots)
            project.lifetimes = {}
            for machine in project.machines.values():
                machine.waiting_slots = []
            for slot in project.slots.values():
                if slot.state is ALLOCATED:
                    self._await(project, slot)
                elif slot.machine is not None and slot.user is None:
                    project.machines[slot.machine].waiting_slots.append(slot)

    def project(self, project_id: str) -> ProjectAccounts:
        """The project of an id; a new id makes a new project."""
        try:
            return self.projects[project_id]
        except KeyError:
            return self.projects.setdefault(project_id, ProjectAccounts())

    def apply(self, project_id: str, kind: str, arguments: Mapping[str, object], now_us: int) -> None:
        """Apply one command of a project.

        Args:
            project_id: the project.
            kind: the kind of command.
            arguments: by wire name; numbers are integers or text.
            now_us: the time, in microseconds; never before that of an earlier call.

        Raises:
            CommandRefused: the command was refused and changed nothing.
        """
        for refusal in self.apply_all(project_id, [(kind, arguments)], now_us):
            raise CommandRefused(refusal.message)

    def apply_all(
        self, project_id: str, calls: Iterable[tuple[str, Mapping[str, object]]], now_us: int
    ) -> list[Refusal]:
        """Apply commands of a project at one time, in the order given; a refusal does not stop the others."""
        self.expire(now_us)
        project = self.project(project_id)
        slots, changes = project.slots, self._changes
        refusals: list[Refusal] = []
        for position, (kind, arguments) in enumerate(calls):
            try:
                slot_id = arguments.get("slot")
                if type(slot_id) is not str or not slot_id:
                    slot_id = _text(arguments, "slot")
                slot = slots.get(slot_id)
                if slot is None and kind in MAKING:
                    changes[kind](self, project, slot_id, arguments, now_us)
                elif slot is not None and kind in AFTER and (slot.state is ALLOCATED or self._admits(slot, kind)):
                    changes[kind](self, project, slot, arguments, now_us)
                    if (after := AFTER[kind]) is not ALLOCATED:
                        settle(project, slot, after, now_us)
                else:
                    self._refuse(kind, slot_id, slot)
            except CommandRefused as refused:
                refusals.append(Refusal(position, str(refused)))
        return refusals

    def _refuse(self, kind: str, slot_id: str, slot: Slot | None) -> NoReturn:
        """Raise the reason why a command of a kind is refused for a slot."""
        if kind in MAKING:
            raise CommandRefused(f"slot {slot_id!r} was already allocated")
        if kind not in AFTER:
            raise CommandRefused(f"unknown command {kind!r}")
        if slot is None:
            raise CommandRefused(f"slot {slot_id!r} was never allocated")
        raise CommandRefused(f"slot {slot_id!r} is settled: it was {slot.state}")

    def expire(self, now_us: int) -> bool:
        """Expire every slot that is due; returns whether there was one."""
        expired = False
        while self._due and self._due[0][0] <= now_us:
            _, _, project, lifetime_us = heappop(self._due)
            slots = project.lifetimes[lifetime_us]
            while slots and (slots[0].state is not ALLOCATED or slots[0].expires_us <= now_us):
                slot = slots.popleft()
                if slot.state is ALLOCATED:
                    settle(project, slot, EXPIRED, slot.expires_us)
                    expired = True
            if slots:
                heappush(self._due, (slots[0].expires_us, next(self._serial), project, lifetime_us))
            else:
                del project.lifetimes[lifetime_us]
        return expired

    def housekeep(self, now_us: int) -> None:
        """Run the operator's housekeeping job: expire every slot that is due."""
        self.expire(now_us)

    def forget(self, project_id: str) -> None:
        """Remove a project's slots and accounts; links stay."""
        project = self.projects.pop(project_id, None)
        self._due = [due for due in self._due if due[2] is not project]
        heapify(self._due)

    def link(self, machine_id: str, user_id: str) -> None:
        """Link a machine to a user, who gets all that waits on it, in every project.

        Raises:
            CommandRefused: the machine is linked to another user; release it first.
        """
        owner = self.owners.setdefault(machine_id, user_id)
        if owner != user_id:
            raise CommandRefused(f"machine {machine_id!r} is linked to user {owner!r}; release it first")
        for project in self.projects.values():
            machine = project.machines.get(machine_id)
            if machine is not None:
                waiting, machine.waiting = machine.waiting, Account()
                for slot in machine.waiting_slots:
                    slot.user = user_id
                machine.waiting_slots = []
                project.users.setdefault(user_id, Account()).add(waiting.credits, waiting.counters)

    def release(self, machine_id: str) -> None:
        """Release a machine from its user, who keeps all credit.

        Raises:
            CommandRefused: the machine is linked to no user.
        """
        if self.owners.pop(machine_id, None) is None:
            raise CommandRefused(f"machine {machine_id!r} is linked to no user")

    def outstanding(self, project_id: str, now_us: int) -> list[str]:
        """The ids of a project's outstanding slots, oldest first."""
        self.expire(now_us)
        slots = self.project(project_id).slots
        return [slot_id for slot_id, slot in slots.items() if self._is_outstanding(slot)]

    def violations(self) -> Iterator[str]:
        """The violated conservation laws, each as a sentence."""
        for project_id, project in self.projects.items():
            yield from (f"project {project_id!r}: {law}" for law in project.violations())

    def _alloc(self, project: ProjectAccounts, slot_id: str, arguments: Mapping[str, object], now_us: int) -> None:
        exactly = arguments.get("credits")
        if exactly is not None and (type(exactly) is not int or not 0 <= exactly <= LARGEST_INTEGER):
            exactly = self._whole(arguments, "credits")
        least = most = None
        lifetime_us = DEFAULT_LIFETIME_US
        if len(arguments) > 2 or exactly is None:
            least = self._whole(arguments, "min") if "min" in arguments else None
            most = self._whole(arguments, "max") if "max" in arguments else None
            if least is not None and most is not None:
                self._check_range(least, most)
            if "expire" in arguments:
                expire = self._whole(arguments, "expire")
                if expire == 0:
                    raise CommandRefused("expire=0 is not a positive number of minutes")
                if expire is not None:
                    lifetime_us = expire * MINUTE_US
        if now_us + lifetime_us > LAST_US:
            lifetime_us = LAST_US - now_us
        project.slots[slot_id] = slot = Slot(now_us, now_us + lifetime_us, exactly, least, most)
        try:
            project.lifetimes[lifetime_us].append(slot)
        except KeyError:
            self._await(project, slot)

    def _await(self, project: ProjectAccounts, slot: Slot) -> None:
        """Schedule the expiry of an allocated slot."""
        lifetime_us = slot.expires_us - slot.allocated_us
        slots = project.lifetimes.get(lifetime_us)
        if slots is None:
            slots = project.lifetimes[lifetime_us] = deque()
            heappush(self._due, (slot.expires_us, next(self._serial), project, lifetime_us))
        slots.append(slot)

    def _counters(self, _: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], __: int) -> None:
        given: dict[str, Any] = {**arguments}
        given.pop("slot", None)
        for name, value in given.items():
            if type(value) is not int or not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
                given[name] = _integer(name, value)
        if not given:
            raise CommandRefused("counters without a counter")
        if slot.counters is None:
            slot.counters = given
        else:
            add_up(given, slot.counters)

    def _meta(self, _: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], __: int) -> None:
        given = {name: "" if arguments[name] == "" else _text(arguments, name) for name in arguments if name != "slot"}
        if not given:
            raise CommandRefused("meta without a name")
        slot.meta = given if slot.meta is None else slot.meta | given

    def _discard(self, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], _: int) -> None:
        reason = _text(arguments, "reason") if "reason" in arguments else DEFAULT_REASON
        slot.reason = reason
        project.reasons[reason] = project.reasons.get(reason, 0) + 1

    def _claim(self, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], _: int) -> None:
        machine_id = arguments.get("machine")
        if type(machine_id) is not str or not machine_id:
            machine_id = _text(arguments, "machine")
        machine_id = intern(machine_id)  # one string for all slots of a machine
        granted = slot.credits
        if granted is None:
            asked = self._whole(arguments, "credits")
            granted = DEFAULT_CREDITS if asked is None else asked
            if slot.min is not None:
                granted = max(granted, slot.min)
            if slot.max is not None:
                granted = min(granted, slot.max)
        slot.machine, slot.granted = machine_id, granted
        machine = project.machines.get(machine_id)
        if machine is None:
            machine = project.machines[machine_id] = Machine()
        owner = self.owners.get(machine_id)
        slot.user = owner
        if owner is None:
            account = machine.waiting
            machine.waiting_slots.append(slot)
        else:
            account = project.users.get(owner) or project.users.setdefault(owner, Account())
        total, earned = project.granted, machine.earned
        total.credits += granted
        earned.credits += granted
        account.credits += granted
        if slot.counters:  # `add_up` for three accounts at once: a claim is a twelfth quicker
            totals, earns, accounts = total.counters, earned.counters, account.counters
            for name, value in slot.counters.items():
                totals[name] = totals.get(name, 0) + value
                earns[name] = earns.get(name, 0) + value
                accounts[name] = accounts.get(name, 0) + value

    def _admits(self, slot: Slot, kind: str) -> bool:  # noqa: ARG002 - for quirks
        """Whether a settled slot admits a command of a kind."""
        return False

    def _is_outstanding(self, slot: Slot) -> bool:
        return slot.state is ALLOCATED

    def _whole(self, arguments: Mapping[str, object], name: str) -> int | None:
        value = arguments.get(name)
        if value is None or (type(value) is int and 0 <= value <= LARGEST_INTEGER):
            return value
        number = _integer(name, value)
        if number < 0:
            raise CommandRefused(f"{name}={number} is negative")
        return number

    def _check_range(self, least: int, most: int) -> None:
        if least > most:
            raise CommandRefused(f"min={least} is above max={most}")


def shown(value: object) -> str:
    """A value as messages quote it: short, whatever its size or depth."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 1]}…"


def settle(project: ProjectAccounts, slot: Slot, state: State, now_us: int) -> None:
    """Settle a slot in a state, and count it."""
    if slot.state is not ALLOCATED:  # only a quirk settles a settled slot
        project.settled[slot.state] -= 1
    slot.state = state
    slot.settled_us = now_us
    project.settled[state] += 1


def _text(arguments: Mapping[str, object], name: str) -> str:
    value = arguments.get(name)
    if type(value) is str and value:
        return value
    if value is None or value == "":
        raise CommandRefused(f"missing argument {name!r}")
    if type(value) is int:
        return str(value)
    raise CommandRefused(f"{name} must be text, not {shown(value)}")


def _integer(name: str, value: object) -> int:
    number = None
    if type(value) is int:
        number = value
    elif type(value) is str and len(value) <= MOST_DIGITS:
        number = _number(value)
    if number is None and not (type(value) is str and _is_whole(value)):
        raise CommandRefused(f"{name}={shown(value)} is not a whole number")
    if number is None or abs(number) > LARGEST_INTEGER:
        raise CommandRefused(f"{name}={shown(value)} is beyond {LARGEST_INTEGER}")
    return number


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()


@lru_cache(NUMBERS_KEPT)
def _number(text: str) -> int | None:
    """The whole number in a short text, or None; cached, because few texts recur often."""
    return int(text) if _is_whole(text) else None
