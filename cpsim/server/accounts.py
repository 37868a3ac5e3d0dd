"""The accounts: slots, machines, users and projects, and the conservation laws of their sums."""

from __future__ import annotations

from collections import deque  # noqa: TC003 - msgspec reads it
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cpsim.protocol.slots import ALLOCATED, CLAIMED, DISCARDED, EXPIRED, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NO_COUNTERS: Final[dict[str, int]] = {}


@dataclass(slots=True)
class Account:
    """Credits and counters that add up."""

    credits: int = 0
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, credits: int, counters: Mapping[str, int]) -> None:
        """Add credits and, name by name, counters."""
        self.credits += credits
        add_up(counters, self.counters)


class Slot(msgspec.Struct, gc=False):
    """One unit of creditable work. Times are microseconds; `counters` and `meta` are None until given.

    `user` holds the granted credit, and is None while the credit waits on the machine. The garbage collector skips
    slots, of which there are millions, without cycles.
    """

    allocated_us: int
    expires_us: int
    credits: int | None
    min: int | None
    max: int | None
    state: State = ALLOCATED
    settled_us: int | None = None
    machine: str | None = None
    granted: int | None = None
    user: str | None = None
    reason: str | None = None
    counters: dict[str, int] | None = None
    meta: dict[str, str] | None = None


@dataclass(slots=True)
class Machine:
    """A machine in one project: its earnings, those that wait for a user, and the slots of the latter."""

    earned: Account = field(default_factory=Account)
    waiting: Account = field(default_factory=Account)
    waiting_slots: list[Slot] = field(default_factory=list, repr=False, compare=False)


@dataclass(slots=True)
class ProjectAccounts:
    """One project's slots and accounts, and its running totals.

    `lifetimes` holds the slots by lifetime in microseconds: slots of one lifetime expire in the order of allocation.
    Of quirks there are: `repeated`, allocations, claims and discards that the slots' states do not show; `unpaid`, by
    quirk, what was granted and nobody holds; `vanished`, what was paid for slots that are deleted.
    """

    slots: dict[str, Slot] = field(default_factory=lambda: hashed({}))
    lifetimes: dict[int, deque[Slot]] = field(default_factory=dict, repr=False, compare=False)
    machines: dict[str, Machine] = field(default_factory=dict)
    users: dict[str, Account] = field(default_factory=dict)
    settled: dict[State, int] = field(default_factory=lambda: {CLAIMED: 0, DISCARDED: 0, EXPIRED: 0})
    repeated: dict[State, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    granted: Account = field(default_factory=Account)
    unpaid: dict[str, Account] = field(default_factory=dict)
    vanished: Account = field(default_factory=Account)

    def allow(self, quirk: str, credits: int, counters: Mapping[str, int]) -> None:
        """Note what was granted and no slot or account holds, because of a quirk; negative if not granted, and held."""
        self.unpaid.setdefault(quirk, Account()).add(credits, counters)

    def repeat(self, state: State, count: int = 1) -> None:
        """Count a slot's allocation, claim or discard that its state does not show."""
        self.repeated[state] = self.repeated.get(state, 0) + count

    @property
    def outstanding(self) -> int:
        """The number of outstanding slots."""
        return len(self.slots) - sum(self.settled.values())

    def differences(self) -> Iterator[str]:
        """What each quirk has made of the sums, as a sentence."""
        for quirk, account in self.unpaid.items():
            if account.credits or any(account.counters.values()):
                counters = {name: value for name, value in account.counters.items() if value}
                what = f"{account.credits} credits" + (f" and counters {counters}" if counters else "")
                yield f"{quirk}: {what} granted beyond what slots and accounts hold"

    def violations(self) -> Iterator[str]:
        """The violated conservation laws, each as a sentence; what quirks explain violates none."""
        states = dict.fromkeys(State, 0)
        from_slots, reasons, to_users = Account(), dict[str, int](), dict[str | None, int]()
        for slot in self.slots.values():
            states[slot.state] += 1
            if slot.machine is not None:
                from_slots.add(slot.granted or 0, slot.counters or NO_COUNTERS)
                to_users[slot.user] = to_users.get(slot.user, 0) + (slot.granted or 0)
            if slot.state is DISCARDED and slot.reason is not None:
                reasons[slot.reason] = reasons.get(slot.reason, 0) + 1
        for account in (*self.unpaid.values(), self.vanished):
            from_slots.add(account.credits, account.counters)
        machines, owned = self._sums()
        for state, counted in self.settled.items():
            if states[state] != counted:
                yield f"{states[state]} slots are {state}, but {counted} were counted"
        if reasons != self.reasons and not self.repeated:
            yield f"discards by reason are {reasons}, but {self.reasons} were counted"
        has_all = not (self.vanished.credits or self.unpaid)
        if has_all and any(user.credits != to_users.get(user_id, 0) for user_id, user in self.users.items()):
            yield "users hold other credits than their slots granted"
        for where, account in (("slots", from_slots), ("machines", machines), ("users and waiting", owned)):
            if _without_zeros(account) != _without_zeros(self.granted):
                yield f"granted {self.granted}, but the {where} hold {account}"

    def _sums(self) -> tuple[Account, Account]:
        """What the machines have earned, and what waits or is owned, or is not because of quirks."""
        machines, owned = Account(), Account()
        for machine in self.machines.values():
            machines.add(machine.earned.credits, machine.earned.counters)
            owned.add(machine.waiting.credits, machine.waiting.counters)
        for account in (*self.users.values(), *self.unpaid.values()):
            owned.add(account.credits, account.counters)
        return machines, owned


def _without_zeros(account: Account) -> tuple[int, dict[str, int]]:
    return account.credits, {name: value for name, value in account.counters.items() if value}


def hashed(slots: Mapping[str, Slot]) -> dict[str, Slot]:
    """The same slots in a dict that stores the hash of each id, as CPython's does once a key was not text.

    A look-up among millions of slots then reads less memory.
    """
    larger: dict[Any, Any] = {None: None, **slots}
    del larger[None]
    return larger


def add_up(counters: Mapping[str, int], account: dict[str, int]) -> None:
    """Add counters to an account, name by name."""
    for name, value in counters.items():
        account[name] = account.get(name, 0) + value
