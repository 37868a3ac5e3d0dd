"""Reads bounded parts of the accounts for a page, at a cost that does not grow with the accounts.

Lists begin with the newest item, or with the most credits. A page scans at most `ITEMS_SCANNED` items, and the next
page goes on from there; it ranks at most `RANKED` accounts, and a search reads at most `SEARCHED` ids.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from cpsim.server.accounts import ProjectAccounts
from cpsim.server.control.inspection import Unknown
from cpsim.server.control.views import machine_view, slot_view, user_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.protocol.slots import State
    from cpsim.server.accounts import Account, Machine, Slot
    from cpsim.server.control.views import MachineView, SlotView, UserView
    from cpsim.server.ledger import Ledger
    from cpsim.server.service import AccountServer

K = TypeVar("K")
V = TypeVar("V")

ROWS: Final = 50
"""Rows of a list on one page."""
ITEMS_SCANNED: Final = 5_000
"""The most items scanned for the rows of a page."""
RANKED: Final = 100_000
"""The most accounts that are ranked by credits: the newest."""
SEARCHED: Final = 250_000
"""The most ids that a search reads: the newest."""
PROJECTS: Final = 100
"""Projects that a page shows or searches."""


class Part(NamedTuple, Generic[V]):
    """Rows of a list, and the list's length; `next` is where the next page begins, if there is one."""

    rows: list[V]
    total: int
    next: int | None


class Hits(NamedTuple):
    """The hits of a search: pairs of a project and an id; and how many ids were read, of how many."""

    slots: list[tuple[str, str]]
    machines: list[tuple[str, str]]
    users: list[tuple[str, str]]
    searched: int
    total: int

    @property
    def all(self) -> list[tuple[str, str, str]]:
        """Each hit with the page that shows it."""
        groups = (("slot", self.slots), ("machine", self.machines), ("user", self.users))
        return [(page, *hit) for page, hits in groups for hit in hits]


class Finder:
    """Reads parts of the accounts.

    A method that takes the id of a project, slot, machine or user raises Unknown if there is none.

    Args:
        accounts: whose ledger it is.
        searched: the most ids that a search reads.
        ranked: the most accounts that are ranked.
    """

    def __init__(self, accounts: AccountServer, searched: int = SEARCHED, ranked: int = RANKED) -> None:
        self._accounts = accounts
        self._searched = searched
        self._ranked = ranked

    def projects(self) -> list[str]:
        """The ids of the first projects."""
        with self._accounts.reading() as ledger:
            return list(islice(dict.fromkeys((*self._accounts.projects, *ledger.projects)), PROJECTS))

    def slots(
        self, project: str, before: int | None, state: State | None = None, machine: str | None = None
    ) -> Part[SlotView]:
        """A project's slots, or those in one state or of one machine."""

        def show(slot_id: str, slot: Slot) -> SlotView | None:
            fits = (state is None or slot.state is state) and (machine is None or slot.machine == machine)
            return slot_view(project, slot_id, slot) if fits else None

        with self._accounts.reading() as ledger:
            return _part(self._project(ledger, project).slots, before, show)

    def slot(self, project: str, slot_id: str) -> SlotView:
        """A slot of a project."""
        with self._accounts.reading() as ledger:
            found = self._project(ledger, project).slots.get(slot_id)
            if found is None:
                raise Unknown(f"no slot {slot_id!r} was ever allocated in project {project!r}")
            return slot_view(project, slot_id, found)

    def machines(self, project: str, place: int | None, *, ranked: bool) -> Part[MachineView]:
        """The machines that claimed slots of a project, by credits or the newest first."""
        with self._accounts.reading() as ledger:
            owners = ledger.owners

            def show(machine_id: str, machine: Machine) -> MachineView:
                return machine_view(project, machine_id, machine, owners.get(machine_id))

            machines = self._project(ledger, project).machines
            return (
                self._rank(machines, place, lambda machine: machine.earned.credits, show)
                if ranked
                else _part(machines, place, show)
            )

    def users(self, project: str, place: int | None, *, ranked: bool) -> Part[UserView]:
        """The users who have an account in a project, by credits or the newest first."""
        with self._accounts.reading() as ledger:

            def show(user_id: str, account: Account) -> UserView:
                return user_view(project, user_id, account)

            users = self._project(ledger, project).users
            return (
                self._rank(users, place, lambda account: account.credits, show) if ranked else _part(users, place, show)
            )

    def machine(self, project: str, machine_id: str) -> MachineView:
        """A machine of a project; one that is only linked to a user has earned nothing."""
        with self._accounts.reading() as ledger:
            found = self._project(ledger, project).machines.get(machine_id)
            owner = ledger.owners.get(machine_id)
            if found is None:
                raise Unknown(f"no machine {machine_id!r} has claimed a slot of project {project!r}")
            return machine_view(project, machine_id, found, owner)

    def user(self, project: str, user_id: str) -> UserView:
        """A user's account in a project."""
        with self._accounts.reading() as ledger:
            found = self._project(ledger, project).users.get(user_id)
            if found is None:
                raise Unknown(f"no user {user_id!r} has an account in project {project!r}")
            return user_view(project, user_id, found)

    def machines_of(self, user_id: str, before: int | None) -> Part[str]:
        """The machines that are linked to a user."""
        with self._accounts.reading() as ledger:
            return _part(ledger.owners, before, lambda machine_id, owner: machine_id if owner == user_id else None)

    def search(self, text: str) -> Hits:
        """Slots, machines and users with this id, and of the newest those whose ids contain it, in any case."""
        slots, machines, users = list[tuple[str, str]](), list[tuple[str, str]](), list[tuple[str, str]]()
        part = text.casefold()
        with self._accounts.reading() as ledger:
            projects = list(islice(ledger.projects.items(), PROJECTS))
            groups: list[tuple[list[tuple[str, str]], str, dict[str, Any]]] = [
                *((users, name, project.users) for name, project in projects),
                *((machines, name, project.machines) for name, project in projects),
                *((slots, name, project.slots) for name, project in projects),
            ]
            left = self._searched
            for place, (found, name, items) in enumerate(groups):
                share = left // (len(groups) - place)
                left -= min(share, len(items))
                newest = islice(reversed(items), share)
                others = islice((key for key in newest if part in key.casefold() and key != text), ROWS)
                beginning_first = sorted(others, key=lambda key: not key.casefold().startswith(part))
                found += [(name, key) for key in (*([text] if text in items else []), *beginning_first)]
        total = sum(len(items) for _, _, items in groups)
        return Hits(slots, machines, users, self._searched - left, total)

    def _rank(
        self, items: dict[str, K], place: int | None, credits_of: Callable[[K], int], show: Callable[[str, K], V]
    ) -> Part[V]:
        """Accounts with the most credits, after `place` others; of those with as many, the first by id."""
        begin = min(place or 0, self._ranked)
        newest = islice(reversed(items.items()), self._ranked)
        end = begin + ROWS
        first = nsmallest(end + 1, newest, key=lambda item: (-credits_of(item[1]), item[0]))
        return Part([show(*item) for item in first[begin:end]], len(items), end if len(first) > end else None)

    def _project(self, ledger: Ledger, project_id: str) -> ProjectAccounts:
        project = ledger.projects.get(project_id)
        if project is None and project_id not in self._accounts.projects:
            raise Unknown(f"there is no project {project_id!r}")
        return project or ProjectAccounts()


def _part(items: dict[str, K], before: int | None, show: Callable[[str, K], V | None]) -> Part[V]:
    """The newest of a dictionary's items that `show` shows, of those that came before the `before`-th."""
    total = len(items)
    end = total if before is None else min(before, total)
    rows: list[V] = []
    for scanned, (key, value) in enumerate(islice(reversed(items.items()), total - end, None)):
        if len(rows) == ROWS or scanned == ITEMS_SCANNED:
            return Part(rows, total, end - scanned)
        row = show(key, value)
        if row is not None:
            rows.append(row)
    return Part(rows, total, None)
