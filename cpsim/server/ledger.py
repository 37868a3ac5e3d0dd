"""The ledger: the effect of each command on slots, machines and users.

`TRANSITIONS` is the life cycle of a slot. An allocated slot also expires, `expire` minutes after its allocation and not
before. A settled slot (claimed, discarded, expired) refuses every further command. The credit of a claim goes to the
machine, and to the user that the machine is linked to; without a user, the credit waits on the machine.

The ledger is pure: time is an argument, in integer microseconds, and must not go backwards.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count
from sys import intern
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from cpsim.protocol.slots import (
    ALLOCATED,
    CLAIMED,
    DISCARDED,
    EXPIRED,
    CommandRefused,
    MalformedArgument,
    State,
    Transition,
)
from cpsim.quirks.policies.ledger import LARGEST_INTEGER, LedgerPolicy, read_text
from cpsim.server.accounts import NO_COUNTERS, Account, Machine, ProjectAccounts, Slot, add_up, hashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

DEFAULT_CREDITS: Final = 1
DEFAULT_REASON: Final = "unspecified"
MINUTE_US: Final = 60_000_000
DEFAULT_LIFETIME_US: Final = 1440 * MINUTE_US
LAST_US: Final = 2**63 - 1
"""The latest expiry: the largest 64-bit integer. A later expiry is set to it."""

HALF_MADE_US: Final = 15 * DEFAULT_LIFETIME_US
"""The lifetime of a slot that an alloc made which was refused."""
EXPIRED_REASON: Final = "expired"
"""The reason of a discard that is the housekeeping of `expire-live`."""
TRANSITIONS: Final = (
    Transition("alloc", None, ALLOCATED),
    Transition("counters", ALLOCATED, ALLOCATED),
    Transition("meta", ALLOCATED, ALLOCATED),
    Transition("discard", ALLOCATED, DISCARDED),
    Transition("claim", ALLOCATED, CLAIMED),
)
"""The life cycle of a slot; any other command is refused. The method of the kind's name does the rest."""
DOCUMENTED: Final = LedgerPolicy()
MAKING: Final = frozenset(row.kind for row in TRANSITIONS if row.before is None)
AFTER: Final = {row.kind: row.after for row in TRANSITIONS if row.before is not None}


class Refusal(NamedTuple):
    """A refused command of a batch: its position, and the reason."""

    position: int
    message: str


class MalformedRefusal(Refusal):
    """A command that was refused because an argument cannot be read."""

    __slots__ = ()


class Ledger:
    """The accounts of every project, and which user owns which machine.

    Args:
        rules: those that quirks replace.
    """

    def __init__(self, rules: LedgerPolicy = DOCUMENTED) -> None:
        self.projects: dict[str, ProjectAccounts] = {}
        self.owners: dict[str, str] = {}
        self._due: list[tuple[int, int, ProjectAccounts, int]] = []
        """A heap of the next expiry of each lifetime of each project."""
        self._serial = count()
        self._rules = rules
        self._shares_ids = rules.ids == "server"
        self._settled_rows = {(row.kind, row.before): row for row in rules.transitions}
        self._changes: dict[str, Callable[[Any, ProjectAccounts, Any, Mapping[str, object], int], None]] = {
            row.kind: _change_nothing if row.kind in rules.unread else getattr(type(self), f"_{row.kind}")
            for row in TRANSITIONS
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
        self,
        project_id: str,
        calls: Iterable[tuple[str, Mapping[str, object]]],
        now_us: int,
        *,
        breaks_off: bool = False,
    ) -> list[Refusal]:
        """Apply commands of a project at one time, in the order given; a refusal does not stop the others.

        With `breaks_off`, a command that is refused for a malformed argument does, and so does one for an unknown slot
        whose id is not ASCII: the last refusal is then a `MalformedRefusal`, and what comes behind it is not looked at.
        """
        self.expire(now_us)
        project = self.project(project_id)
        slots, changes = project.slots, self._changes
        refusals: list[Refusal] = []
        for position, (kind, arguments) in enumerate(calls):
            try:
                slot_id = arguments.get("slot")
                if type(slot_id) is not str or not slot_id:
                    slot_id = self._rules.text(arguments, "slot")
                slot = slots.get(slot_id)
                if slot is None and kind in MAKING:
                    changes[kind](self, project, slot_id, arguments, now_us)
                elif slot is not None and kind in AFTER and slot.state is ALLOCATED:
                    changes[kind](self, project, slot, arguments, now_us)
                    if (after := AFTER[kind]) is not ALLOCATED:
                        settle(project, slot, after, now_us)
                elif slot is not None and (row := self._settled_row(kind, slot)) is not None:
                    self._change_settled(row, project, slot, arguments, now_us)
                else:
                    self._refuse(kind, slot_id, slot)
            except CommandRefused as refused:
                refusal = self._refusal(position, kind, refused)
                if refusal is None:
                    continue
                if isinstance(refused, MalformedArgument) and kind in MAKING and self._rules.half_made:
                    self._half_make(project, arguments, now_us)
                if breaks_off and (type(refusal) is MalformedRefusal or _is_beyond_ascii(kind, slots, arguments)):
                    return [*refusals, MalformedRefusal(*refusal)]
                refusals.append(refusal)
        return refusals

    def _refusal(self, position: int, kind: str, refused: CommandRefused) -> Refusal | None:
        """The refusal of a command; None if it counts as accepted all the same."""
        if kind in self._rules.unread:
            return None
        if not isinstance(refused, MalformedArgument):
            return Refusal(position, str(refused))
        return MalformedRefusal(position, str(refused))

    def _half_make(self, project: ProjectAccounts, arguments: Mapping[str, object], now_us: int) -> None:
        """Make the slot of a refused alloc, without its terms; it does not count as allocated."""
        try:
            slot_id = self._rules.text(arguments, "slot")
        except CommandRefused:
            return
        project.slots[slot_id] = slot = Slot(now_us, now_us + HALF_MADE_US, None, None, None)
        project.repeat(ALLOCATED, -1)
        self._await(project, slot)

    def _settled_row(self, kind: str, slot: Slot) -> Transition | None:
        """The row by which a quirk has a settled slot admit a command of a kind."""
        row = self._settled_rows.get((kind, slot.state))
        return None if row is None or (row.waiting and slot.user is not None) else row

    def _change_settled(
        self, row: Transition, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int
    ) -> None:
        """Apply a command to a settled slot, as a quirk has it."""
        getattr(self, f"_{row.kind}_settled")(row.quirk, project, slot, arguments, now_us)
        if row.after is not slot.state:
            settle(project, slot, row.after, now_us)

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
        """Run the operator's housekeeping job: expire every slot that is due; with `expire-live`, all others."""
        if self._rules.expires:
            self.expire(now_us)
            return
        for project in self.projects.values():
            live = [item for item in project.slots.items() if item[1].expires_us > now_us and item[1].user is None]
            for slot_id, slot in live:
                _delete(project, slot_id, slot)
                project.repeat(DISCARDED)
                project.reasons[EXPIRED_REASON] = project.reasons.get(EXPIRED_REASON, 0) + 1
                if slot.machine is not None:
                    _take_back("expire-live", project, slot, slot.machine)

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
                if not self._rules.keeps_paid and machine.waiting_slots:
                    paid = set(map(id, machine.waiting_slots))
                    for slot_id, slot in [item for item in project.slots.items() if id(item[1]) in paid]:
                        _vanish(project, slot_id, slot)
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
        slots, listed = self.project(project_id).slots, self._rules.listed
        return [slot_id for slot_id, slot in slots.items() if listed(slot.state, slot.user is not None)]

    def differences(self) -> Iterator[str]:
        """What quirks have made of the sums, each as a sentence."""
        for project_id, project in self.projects.items():
            yield from (f"project {project_id!r}: {difference}" for difference in project.differences())

    def violations(self) -> Iterator[str]:
        """The violated conservation laws, each as a sentence."""
        for project_id, project in self.projects.items():
            yield from (f"project {project_id!r}: {law}" for law in project.violations())

    def _alloc(self, project: ProjectAccounts, slot_id: str, arguments: Mapping[str, object], now_us: int) -> None:
        if self._shares_ids and self._is_taken(slot_id):
            raise CommandRefused(f"slot {slot_id!r} was already allocated")
        exactly = arguments.get("credits")
        if exactly is not None and (type(exactly) is not int or not 0 <= exactly <= LARGEST_INTEGER):
            exactly = self._rules.term("credits", exactly)
        least = most = None
        lifetime_us = DEFAULT_LIFETIME_US
        if len(arguments) > 1 and (exactly is None or len(arguments) > 2):
            exactly, least, most, expire = self._terms(arguments)
            self._rules.check_terms(least, most, expire)
            if expire is not None:
                lifetime_us = expire * MINUTE_US
        if now_us + lifetime_us > LAST_US:
            lifetime_us = LAST_US - now_us
        alike = project.lifetimes.get(lifetime_us)
        expires_us = now_us + lifetime_us
        if alike and alike[-1].allocated_us == now_us:
            expires_us = alike[-1].expires_us  # one number for all slots that come together
        project.slots[slot_id] = slot = Slot(now_us, expires_us, exactly, least, most)
        if alike is None:
            self._await(project, slot)
        else:
            alike.append(slot)

    def _await(self, project: ProjectAccounts, slot: Slot) -> None:
        """Schedule the expiry of an allocated slot."""
        lifetime_us = slot.expires_us - slot.allocated_us
        if not self._rules.expires:
            return
        slots = project.lifetimes.get(lifetime_us)
        if slots is None:
            slots = project.lifetimes[lifetime_us] = deque()
            heappush(self._due, (slot.expires_us, next(self._serial), project, lifetime_us))
        slots.append(slot)
        if lifetime_us <= 0:
            self.expire(slot.allocated_us)

    def _counters(self, _: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], __: int) -> None:
        given: dict[str, Any] = {**arguments}
        given.pop("slot", None)
        for name, value in given.items():
            if type(value) is not int or not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
                given[name] = self._rules.integer(name, value)
        if not given and self._rules.needs_counters:
            raise CommandRefused("counters without a counter")
        if slot.counters is None:
            slot.counters = given
        else:
            add_up(given, slot.counters)

    def _meta(self, _: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], __: int) -> None:
        given = {
            name: "" if arguments[name] == "" else read_text(arguments, name) for name in arguments if name != "slot"
        }
        if not given:
            raise CommandRefused("meta without a name")
        slot.meta = given if slot.meta is None else slot.meta | given

    def _discard(self, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], _: int) -> None:
        reason = self._rules.reason(arguments, "reason") if "reason" in arguments else DEFAULT_REASON
        slot.reason = reason
        project.reasons[reason] = project.reasons.get(reason, 0) + 1

    def _claim(self, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int) -> None:
        machine_id = arguments.get("machine")
        if type(machine_id) is not str or not machine_id:
            machine_id = self._rules.text(arguments, "machine")
        machine_id = intern(machine_id)  # one string for all slots of a machine
        granted = slot.credits
        if granted is None:
            asked = self._term(arguments, "credits")
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

        if owner is not None and not self._rules.keeps_paid:
            if slot.state is ALLOCATED:
                settle(project, slot, CLAIMED, now_us)
            _vanish(project, self._rules.text(arguments, "slot"), slot)

    def _counters_settled(
        self, quirk: str, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int
    ) -> None:
        """Counters that no project gets; while the slot waits, its machine does."""
        before = dict(slot.counters or NO_COUNTERS)
        self._counters(project, slot, arguments, now_us)
        if slot.machine is not None and slot.user is None:
            added = {name: value - before.get(name, 0) for name, value in (slot.counters or NO_COUNTERS).items()}
            add_up(added, project.machines[slot.machine].waiting.counters)
            project.allow(quirk, 0, {name: -value for name, value in added.items()})

    def _discard_settled(
        self, _: str, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int
    ) -> None:
        """A discard beside the claim or discard that there was."""
        self._discard(project, slot, arguments, now_us)
        project.repeat(slot.state)

    def _claim_settled(
        self, quirk: str, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int
    ) -> None:
        """A claim beside an earlier claim or discard, which moves what waits to the newest machine."""
        machine_id, granted, credits = slot.machine, slot.granted, slot.credits
        if machine_id is not None:
            slot.credits = granted  # the terms of the first claim stay
        try:
            self._claim(project, slot, arguments, now_us)
        except CommandRefused:
            slot.credits = credits
            raise
        project.repeat(CLAIMED)
        if machine_id is not None:
            _take_back(quirk, project, slot, machine_id)

    def _is_taken(self, slot_id: str) -> bool:
        return any(slot_id in project.slots for project in self.projects.values())

    def _terms(self, arguments: Mapping[str, object]) -> list[int | None]:
        """Credits, least, most and minutes of an alloc."""
        return [self._term(arguments, name) for name in ("credits", "min", "max", "expire")]

    def _term(self, arguments: Mapping[str, object], name: str) -> int | None:
        """Credits, a bound or minutes; None if they are not given."""
        return self._rules.term(name, arguments[name]) if name in arguments else None


def settle(project: ProjectAccounts, slot: Slot, state: State, now_us: int) -> None:
    """Settle a slot in a state, and count it."""
    if slot.state is not ALLOCATED:  # only a quirk settles a settled slot
        project.settled[slot.state] -= 1
    slot.state = state
    slot.settled_us = now_us
    project.settled[state] += 1


def _change_nothing(*_: object) -> None:
    """The change of a command that is accepted unread."""


def _delete(project: ProjectAccounts, slot_id: str, slot: Slot) -> None:
    """Delete a slot, as quirks do; what it was counted as stays counted."""
    del project.slots[slot_id]
    project.repeat(ALLOCATED)
    if slot.state is not ALLOCATED:
        project.settled[slot.state] -= 1
        project.repeat(slot.state)


def _vanish(project: ProjectAccounts, slot_id: str, slot: Slot) -> None:
    """Delete a slot that a user was paid for."""
    _delete(project, slot_id, slot)
    project.vanished.add(slot.granted or 0, slot.counters or NO_COUNTERS)


def _take_back(quirk: str, project: ProjectAccounts, slot: Slot, machine_id: str) -> None:
    """Take what waits for a slot from a machine; what the project was granted for it stays granted."""
    machine, granted, counters = project.machines[machine_id], slot.granted or 0, slot.counters or NO_COUNTERS
    place = next(place for place, waiting in enumerate(machine.waiting_slots) if waiting is slot)
    del machine.waiting_slots[place]
    machine.waiting.add(-granted, {name: -value for name, value in counters.items()})
    project.allow(quirk, granted, counters)


def _is_beyond_ascii(kind: str, slots: Mapping[str, Slot], arguments: Mapping[str, object]) -> bool:
    """Whether a command is for an unknown slot whose id is not ASCII."""
    slot_id = str(arguments.get("slot"))
    return kind not in MAKING and slot_id not in slots and not slot_id.isascii()
