"""What a clause looks for in a server's accounts, and what it does there: links, releases, and the clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cpsim.conformance.findings import Deviation, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cpsim.conformance.accounts import AccountsView
    from cpsim.conformance.clause import Known

NOT_THERE: Final = {"state": "not there"}
CONTROL: Final = ", through the control API"


class AccountsExaminer(ABC):
    """The part of an examiner that needs a server's accounts."""

    @property
    @abstractmethod
    def accounts(self) -> AccountsView:
        """The server's accounts."""

    @property
    @abstractmethod
    def project(self) -> tuple[str, str]:
        """The project that is examined: its id, and its secret."""

    @abstractmethod
    def check(self, what: str, expected: object, got: object, *known: Known) -> None:
        """Compare; raises Deviation if they differ."""

    @abstractmethod
    def note_sent(self, line: str, by: str = "") -> None:
        """Add what is sent to the transcript."""

    @abstractmethod
    def note_seen(self, line: str) -> None:
        """Add what is seen to the transcript."""

    @abstractmethod
    def give_up(self, why: str) -> NoReturn:
        """End the clause as not verifiable."""

    def see_slot(self, slot: str, *known: Known, project: tuple[str, str] | None = None, **expected: object) -> None:
        """A slot has to look like this in the accounts."""
        view = self.accounts.slot((project or self.project)[0], slot)
        got = NOT_THERE if view is None else {name: view.get(name) for name in expected}
        self.note_seen(f"slot {slot} is {shown(got)}")
        self.check(f"slot {slot}", expected, got, *known)

    def see_machine(
        self, machine: str, *known: Known, project: tuple[str, str] | None = None, **expected: object
    ) -> None:
        """A machine has to have this in the accounts; one that has nothing need not be there."""
        self._see("machine", machine, self.accounts.machine((project or self.project)[0], machine), known, expected)

    def see_user(self, user: str, *known: Known, project: tuple[str, str] | None = None, **expected: object) -> None:
        """A user has to have this in the accounts; one who has nothing need not be there."""
        self._see("user", user, self.accounts.user((project or self.project)[0], user), known, expected)

    def _see(
        self, kind: str, id: str, view: Mapping[str, Any] | None, known: tuple[Known, ...], expected: dict[str, object]
    ) -> None:
        nothing: dict[str, object] = {"credits": 0, "counters": {}, "waiting_credits": 0, "waiting_counters": {}}
        view = nothing if view is None else view
        got = {name: view.get(name) for name in expected}
        for name, counters in got.items():  # a counter that came to nothing may be shown or not
            if isinstance(counters, dict):
                got[name] = {counter: value for counter, value in counters.items() if value}
        self.note_seen(f"{kind} {id} has {shown(got)}")
        self.check(f"{kind} {id}", expected, got, *known)

    def see_total(self, name: str, key: str, expected: object, *known: Known) -> None:
        """A project's totals have to hold this: `reasons` or `counters`, by name."""
        got = self.accounts.totals(self.project[0]).get(name, {}).get(key)
        self.note_seen(f"{name} {key} of the project: {shown(got)}")
        self.check(f"{name} {key} of the project", expected, got, *known)

    def link(self, machine: str, user: str) -> None:
        """Link a machine to a user."""
        self.note_sent(f"link {machine} to {user}", CONTROL)
        if not self.accounts.link(machine, user):
            raise Deviation(f"link of {machine}", "done", "refused")

    def see_no_link(self, machine: str, user: str) -> None:
        """A machine must not be given to a user."""
        self.note_sent(f"link {machine} to {user}", CONTROL)
        self.check(f"{machine} is given to {user}", expected=False, got=self.accounts.link(machine, user))

    def release(self, machine: str) -> None:
        """Release a machine."""
        self.note_sent(f"release {machine}", CONTROL)
        if not self.accounts.release(machine):
            raise Deviation(f"release of {machine}", "done", "refused")

    def advance(self, minutes: int) -> None:
        """Let the server's clock jump ahead, and a second more."""
        self.note_sent(f"advance the server's clock by {minutes} minutes and a second", CONTROL)
        self.accounts.advance(60 * minutes + 1)

    def clock_us(self) -> int:
        """The server's time, microseconds since 1970."""
        return self.accounts.now_us()

    @contextmanager
    def before(self, until_us: int) -> Iterator[None]:
        """What is checked within holds only before a time of the server's clock.

        Raises:
            NotVerifiable: it does not hold, and the server's clock has come to that time.
        """
        try:
            yield
        except Deviation:
            if self.clock_us() >= until_us:
                self.give_up("something else moves the server's clock")
            raise

    def see_alive(self, slot: str, *known: Known) -> None:
        """A slot has to be allocated."""
        view = self.accounts.slot(self.project[0], slot)
        self.check(f"state of {slot} before its time", "allocated", (view or NOT_THERE)["state"], *known)

    def see_lifetime(self, slot: str, minutes: int) -> None:
        """A slot has to live so long, by the accounts."""
        view = self.accounts.slot(self.project[0], slot) or {"expires_us": 0, "allocated_us": 0}
        lives = round((view["expires_us"] - view["allocated_us"]) / 60e6, 2)  # a server may have looked at two clocks
        self.check(f"minutes that {slot} has", minutes, lives)
