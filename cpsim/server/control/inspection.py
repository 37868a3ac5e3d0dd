"""Looking into the accounts, and changing what only an operator can.

Each method is also a request of the control API, which takes its query, its answer and its description from the
signature and the first line of the docstring.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from cpsim.errors import CpsimError
from cpsim.faults.plan import FaultPlan, Firing
from cpsim.faults.spec import Fault
from cpsim.protocol.quirks import QUIRKS, chosen
from cpsim.server.accounts import Account, Machine, ProjectAccounts, Slot, State
from cpsim.server.clock import LATEST_US
from cpsim.server.control import export
from cpsim.server.control.views import (
    Balance,
    ClockView,
    CommandView,
    FaultView,
    FiringView,
    FrameView,
    LinkView,
    MachineView,
    Malformed,
    Page,
    ProjectTotals,
    QuirkView,
    RefusedItem,
    SlotHistory,
    SlotView,
    Totals,
    UserView,
    machine_view,
    slot_view,
    user_view,
)
from cpsim.server.journal import Entry
from cpsim.server.ledger import Ledger, Refusal
from cpsim.server.service import AccountServer

T = TypeVar("T")
V = TypeVar("V")

Id = Annotated[str, Meta(min_length=1)]
Cursor = Annotated[int, Meta(ge=0, le=2**53 - 1, description="`next` of the page before; 0 begins.")]
Limit = Annotated[int, Meta(ge=1, le=10_000, description="Items a page.")]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
Rate = Annotated[float, Meta(ge=0, le=1e6, description="Multiple of real time; 0 freezes.")]
Profile = Literal["documented", "deployed"]
FaultText = Annotated[
    str,
    Meta(
        min_length=1,
        description="STAGE.ACTION=VALUE:KEY=VALUE,KEY=VALUE..., as `cpsim faults` has it.",
        examples=["daemon.hang:kind=claim,nth=3"],
    ),
]
QuirkName = Annotated[str, Meta(extra_json_schema={"enum": list(QUIRKS)})]
Moment = Annotated[int, Meta(ge=0, le=LATEST_US, description="Microseconds since 1970, UTC.")]


class Unknown(LookupError):
    """There is no project or slot of that id."""


class Inspector:
    """Looks into an account server, and into what goes wrong at it.

    A method that takes a project raises Unknown if there is none of that id, and one that reads the journal raises
    JournalFull if more was received than is kept. One that changes faults, quirks or the clock raises ValueError if
    there is no such fault or quirk, or it cannot be had.

    Args:
        accounts: the server.
        pending: how many commands were acknowledged by a daemon and have not reached the accounts.
        faults: those of the server and of its daemons.
        set_quirks: gives quirks to the server and its daemons; raises CpsimError. That of the server, if it is None.
        catch_up: has in the accounts what was acknowledged before, in a project or in all; raises CpsimError.
    """

    def __init__(
        self,
        accounts: AccountServer,
        pending: Callable[[], int] = lambda: 0,
        faults: FaultPlan | None = None,
        set_quirks: Callable[[frozenset[str]], object] | None = None,
        catch_up: Callable[[str | None], object] = lambda _: None,
    ) -> None:
        self._accounts = accounts
        self._pending = pending
        self._faults = FaultPlan() if faults is None else faults
        self._set_quirks = accounts.set_quirks if set_quirks is None else set_quirks
        self._catch_up = catch_up

    def projects(self) -> list[str]:
        """The ids of the projects."""
        with self._accounts.reading() as ledger:
            return list(dict.fromkeys((*self._accounts.projects, *ledger.projects)))

    def totals(self) -> Totals:
        """Slots by state, credits, counters, discards and refusals of each project; commands under way."""
        pending = self._pending()
        with self._accounts.reading() as ledger:
            known = dict.fromkeys(self._accounts.projects, ProjectAccounts()) | ledger.projects
            projects = {name: self._totals(name, project) for name, project in known.items()}
            return Totals(pending=pending, refused=self._accounts.refused, projects=projects)

    def balance(self) -> Balance:
        """The conservation laws that do not hold."""
        with self._accounts.reading() as ledger:
            return Balance(violations=list(ledger.violations()))

    def slots(
        self,
        project: Id,
        state: State | None = None,
        machine: Id | None = None,
        cursor: Cursor = 0,
        limit: Limit = 1000,
    ) -> Page[SlotView]:
        """A project's slots, oldest first: all, or those in one state, or claimed by one machine."""

        def show(item: tuple[str, Slot]) -> SlotView | None:
            slot_id, slot = item
            fits = (state is None or slot.state is state) and (machine is None or slot.machine == machine)
            return slot_view(project, slot_id, slot) if fits else None

        with self._project(project) as (_, found):
            return _page(islice(found.slots.items(), cursor, None), cursor, limit, show)

    def slot(self, project: Id, slot: Id) -> SlotHistory:
        """One slot, every command received for it, and the faults that came to pass for it.

        Raises:
            Unknown: no command was received for it.
        """
        with self._project(project) as (_, found):
            known = found.slots.get(slot)
            view = None if known is None else slot_view(project, slot, known)
            entries = self._accounts.journal.about(project, slot)
            firings = [
                _firing(firing) for firing in self._faults.firings if (firing.project, firing.slot) == (project, slot)
            ]
        history = [_command(project, entry) for entry in entries if _is_for(entry, slot)]
        if view is None and not history and not firings:
            raise Unknown(f"no command of project {project!r} was received for a slot {slot!r}")
        return SlotHistory(slot=view, history=history, firings=firings)

    def machines(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[MachineView]:
        """The machines that claimed slots of a project."""
        with self._project(project) as (ledger, found):

            def show(item: tuple[str, Machine]) -> MachineView:
                return machine_view(project, *item, ledger.owners.get(item[0]))

            return _page(islice(found.machines.items(), cursor, None), cursor, limit, show)

    def users(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[UserView]:
        """The users who have an account in a project."""

        def show(item: tuple[str, Account]) -> UserView:
            return user_view(project, *item)

        with self._project(project) as (_, found):
            return _page(islice(found.users.items(), cursor, None), cursor, limit, show)

    def journal(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[CommandView]:
        """Every command of a project that was received, and every `lib/` request, in the order of their coming."""

        def show(entry: Entry) -> CommandView:
            return _command(project, entry)

        with self._project(project):
            return _page(self._accounts.journal.read(project, cursor), cursor, limit, show)

    def refusals(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[CommandView]:
        """What of that was refused, in the order of its coming."""

        def show(entry: Entry) -> CommandView | None:
            return None if entry[3] is None else _command(project, entry)

        with self._project(project):
            return _page(self._accounts.journal.read(project, cursor), cursor, limit, show)

    def malformed(self, project: Id) -> Malformed:
        """The frames that a project's daemons could not take: malformed, or more than they have room for."""
        with self._project(project):
            count, first = self._accounts.journal.malformed(project)
        frames = [
            FrameView(project=project, at_us=at_us, frame=frame.decode(errors="replace")) for at_us, frame in first
        ]
        return Malformed(count=count, first=frames)

    def links(self, cursor: Cursor = 0, limit: Limit = 1000) -> Page[LinkView]:
        """Which user each machine belongs to, in every project."""

        def show(item: tuple[str, str]) -> LinkView:
            return LinkView(machine=item[0], user=item[1])

        with self._accounts.reading() as ledger:
            return _page(islice(ledger.owners.items(), cursor, None), cursor, limit, show)

    def link(self, links: list[tuple[Id, Id]]) -> list[RefusedItem]:
        """Link machines to users, with all that waits on them: pairs of a machine and its user."""
        return _refused(self._accounts.link(links))

    def release(self, machines: list[Id]) -> list[RefusedItem]:
        """Take machines from their users; what the users have, they keep."""
        return _refused(self._accounts.release(machines))

    def reset(self, project: Id | None = None) -> Totals:
        """Begin anew: with one project, whose machines stay linked to their users, or with everything.

        What daemons have acknowledged goes too, and the record of the faults that came to pass. The clock, the faults
        with what they have counted, and the quirks stay as they are.

        Raises:
            ValueError: a fault keeps what was acknowledged from the accounts.
        """
        if project is not None:
            with self._project(project):
                pass
        with _as_value_error():
            self._catch_up(project)
        self._faults.forget_firings(project)
        with self._accounts.exclusive():  # or what another changes after the reset could fail, and the answer with it
            self._accounts.reset(project)
            return self.totals()

    def housekeep(self) -> Totals:
        """Run the server's housekeeping job once: it expires what is due, or under `expire-live` what is not."""
        with self._accounts.exclusive():
            self._accounts.housekeep()
            return self.totals()

    def faults(self) -> list[FaultView]:
        """The faults that are set."""
        return [
            FaultView(fault=text, selected=selected, fired=fired) for text, selected, fired in self._faults.describe()
        ]

    def set_faults(self, faults: list[FaultText]) -> list[FaultView]:
        """Have these faults, and no others; what they count and their times begin anew. An empty list is none.

        One that shuts this API out, `down`, has to have an `until`.
        """
        with _as_value_error():
            self._faults.replace(self._check_until(faults))
        return self.faults()

    def add_faults(self, faults: list[FaultText]) -> list[FaultView]:
        """Have these faults besides; `down` has to have an `until`."""
        with _as_value_error():
            self._faults.add(*self._check_until(faults))
        return self.faults()

    def remove_faults(self, faults: list[FaultText]) -> list[FaultView]:
        """Have one fault less of each that is given."""
        with _as_value_error():
            self._faults.remove(*faults)
        return self.faults()

    def firings(self, cursor: Cursor = 0, limit: Limit = 1000) -> Page[FiringView]:
        """The faults that came to pass, in order."""
        return _page(islice(self._faults.firings, cursor, None), cursor, limit, _firing)

    def quirks(self) -> list[QuirkView]:
        """The ways in which the system in production differs from its document, and which are switched on."""
        on = self._accounts.quirks
        return [
            QuirkView(quirk=name, tier=tier, effect=effect, on=name in on) for name, tier, effect in QUIRKS.values()
        ]

    def set_quirks(self, quirks: list[QuirkName], profile: Profile = "documented") -> list[QuirkView]:
        """Have the quirks of a profile and these besides, and no others, from now on."""
        with _as_value_error():
            self._set_quirks(chosen(profile, quirks))
        return self.quirks()

    def clock(self) -> ClockView:
        """The server's time."""
        clock = self._accounts.clock
        return ClockView(now_us=clock.now_us(), rate=clock.rate)

    def freeze_clock(self) -> ClockView:
        """Let the clock stand still, as long as the server runs; it can still be advanced and set."""
        self._accounts.clock.freeze()
        self._accounts.write_time()
        return self.clock()

    def run_clock(self, rate: Rate = 1.0) -> ClockView:
        """Let the clock run, at a multiple of real time; a server that is started anew has its own again."""
        self._accounts.clock.run(rate)
        self._accounts.write_time()
        return self.clock()

    def advance_clock(self, seconds: Seconds) -> ClockView:
        """Let the clock jump ahead; slots whose time comes expire at once."""
        self._accounts.clock.advance(seconds=seconds)
        return self.clock()

    def set_clock(self, now_us: Moment) -> ClockView:
        """Set the clock, to no time before one that it has told."""
        self._accounts.clock.set(now_us)
        return self.clock()

    def slots_parquet(self) -> bytes:
        """Every slot, as a Parquet table with a row each.

        Raises:
            MissingExtra: the extra `run` is not installed.
            CpsimError: a sum is beyond 64 bits.
        """
        with self._accounts.reading() as ledger:
            return export.slots_parquet(ledger)

    def accounts_parquet(self) -> bytes:
        """Every machine and user of each project, as a Parquet table with a row each.

        Raises:
            MissingExtra: the extra `run` is not installed.
            CpsimError: a sum is beyond 64 bits.
        """
        with self._accounts.reading() as ledger:
            return export.accounts_parquet(ledger)

    def ledger_jsonl(self) -> bytes:
        """Every slot, machine, user and link, as a JSON object a line; `type` says which."""
        with self._accounts.reading() as ledger:
            return export.json_lines(ledger)

    def _check_until(self, faults: list[str]) -> list[str]:
        """Faults after which this API is in reach again, or that are set already."""
        for fault in map(Fault.parse, faults):
            if fault.action == "down" and fault.until_s is None and fault not in self._faults:
                raise CpsimError(
                    f"fault {str(fault)!r} would shut out the control API for good: give it an until=SECONDS, or set "
                    "it in Python or with cpsim serve --fault"
                )
        return faults

    @contextmanager
    def _project(self, project_id: str) -> Iterator[tuple[Ledger, ProjectAccounts]]:
        """The ledger and a project in it, standing still while the context lasts."""
        with self._accounts.reading() as ledger:
            project = ledger.projects.get(project_id)
            if project is None and project_id not in self._accounts.projects:
                known = ", ".join(map(repr, self._accounts.projects))
                raise Unknown(f"there is no project {project_id!r}; there are {known}")
            yield ledger, project or ProjectAccounts()

    def _totals(self, project_id: str, project: ProjectAccounts) -> ProjectTotals:
        return ProjectTotals(
            allocated=len(project.slots),
            outstanding=project.outstanding,
            claimed=project.settled[State.CLAIMED],
            discarded=project.settled[State.DISCARDED],
            expired=project.settled[State.EXPIRED],
            refused=self._accounts.refused_of(project_id),
            credits=project.granted.credits,
            counters=dict(project.granted.counters),
            reasons=dict(project.reasons),
        )


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Tell a problem with what was asked for as this interface does."""
    try:
        yield
    except CpsimError as problem:
        raise ValueError(str(problem)) from problem


def _page(items: Iterable[T], cursor: int, limit: int, show: Callable[[T], V | None]) -> Page[V]:
    """Up to `limit` of the items that `show` shows; the first item stands at the cursor."""
    shown: list[V] = []
    for position, item in enumerate(items, cursor):
        if len(shown) == limit:
            return Page(items=shown, next=position)
        view = show(item)
        if view is not None:
            shown.append(view)
    return Page(items=shown, next=None)


def _firing(firing: Firing) -> FiringView:
    return FiringView(**firing._asdict())


def _command(project_id: str, entry: Entry) -> CommandView:
    at_us, kind, arguments, refusal = entry
    return CommandView(project=project_id, at_us=at_us, kind=kind, arguments=dict(arguments), refusal=refusal)


def _is_for(entry: Entry, slot_id: str) -> bool:
    slot = entry[2].get("slot")
    return str(slot) == slot_id if type(slot) is int else slot == slot_id


def _refused(refusals: Sequence[Refusal]) -> list[RefusedItem]:
    return [RefusedItem(position=refusal.position, message=refusal.message) for refusal in refusals]
