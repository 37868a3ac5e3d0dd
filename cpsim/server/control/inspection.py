"""The inspector: reads the accounts, and changes them as an operator can.

Each method is also a request of the control API, with the query, answer and description of its signature and the first
line of its docstring.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from cpsim.errors import CpsimError
from cpsim.faults.plan import FaultPlan
from cpsim.faults.spec import Fault
from cpsim.net.control import PAGE
from cpsim.protocol.slots import State
from cpsim.quirks import QUIRKS, chosen
from cpsim.server.accounts import Account, Machine, ProjectAccounts, Slot
from cpsim.server.clock import LATEST_US
from cpsim.server.control import export
from cpsim.server.control.fault_inspection import Cursor, FaultInspector, Limit, as_value_error, firing_view, page_of
from cpsim.server.control.sites import Sites
from cpsim.server.control.views import (
    AppliedCommands,
    Balance,
    ClockView,
    CommandView,
    DaemonView,
    FrameView,
    LinkView,
    MachineView,
    Malformed,
    Page,
    ProjectTotals,
    ProjectView,
    QuirkView,
    RefusedItem,
    SlotHistory,
    SlotView,
    Totals,
    UserView,
    command_view,
    machine_view,
    slot_view,
    user_view,
)
from cpsim.server.journal import Entry
from cpsim.server.ledger import Ledger, Refusal
from cpsim.server.service import AccountServer
from cpsim.system.checks import LONGEST_S

T = TypeVar("T")
V = TypeVar("V")

Id = Annotated[str, Meta(min_length=1)]
FlushInterval = Annotated[
    float, Meta(ge=0, le=LONGEST_S, description="Seconds that the daemon keeps commands before it delivers them.")
]
Ids = Annotated[list[Id], Meta(max_length=PAGE)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
Rate = Annotated[float, Meta(ge=0, le=1e6, description="Multiple of real time; 0 freezes.")]
Profile = Literal["documented", "deployed"]
QuirkName = Annotated[str, Meta(extra_json_schema={"enum": list(QUIRKS)})]
Moment = Annotated[int, Meta(ge=0, le=LATEST_US, description="Microseconds since 1970, UTC.")]


class Unknown(LookupError):
    """There is no project or slot with the id."""


class Inspector(FaultInspector):
    """Reads and changes an account server and its faults.

    A method with a project raises Unknown if there is no such project; one that reads the journal raises JournalFull if
    more was received than is kept; one that changes faults, quirks or the clock raises ValueError if the fault or quirk
    is unknown or cannot be set.

    Args:
        accounts: the server.
        pending: the number of acknowledged commands that have not reached the accounts.
        faults: of the server and its daemons.
        set_quirks: sets the quirks of the server and its daemons; raises CpsimError. By default, the server's alone.
        drop: resets all but the accounts, of a project or of all; raises CpsimError.
        sites: the daemons; by default, there are none, and none can be added.

    Attributes:
        sites: the daemons.
    """

    def __init__(
        self,
        accounts: AccountServer,
        pending: Callable[[], int] = lambda: 0,
        faults: FaultPlan | None = None,
        set_quirks: Callable[[frozenset[str]], object] | None = None,
        drop: Callable[[str | None], object] = lambda _: None,
        *,
        sites: Sites | None = None,
    ) -> None:
        super().__init__(FaultPlan() if faults is None else faults, self._check_until)
        self._accounts = accounts
        self._pending = pending
        self._set_quirks = accounts.set_quirks if set_quirks is None else set_quirks
        self._drop = drop
        self.sites = Sites() if sites is None else sites

    @property
    def quirks_on(self) -> frozenset[str]:
        """The names of the quirks that are on."""
        return self._accounts.quirks

    def projects(self) -> list[str]:
        """The ids of the projects."""
        with self._accounts.reading() as ledger:
            return list(dict.fromkeys((*self._accounts.projects, *ledger.projects)))

    def daemons(self) -> list[DaemonView]:
        """The daemons with their addresses, in the order in which they were added."""
        return self.sites.daemons()

    def add_project(self, project: Id | None = None, flush_interval_s: FlushInterval = 0.0) -> ProjectView:
        """Add a project with a secret, accounts and a daemon of its own; without an id, it gets a new one."""
        return self.sites.add_project(project, flush_interval_s)

    def remove_project(self, project: Id) -> list[str]:
        """Remove a project that was added, with its daemons, accounts and pending commands; answers with the others."""
        self.sites.remove_project(project)
        return self.projects()

    def add_daemon(self, project: Id, flush_interval_s: FlushInterval = 0.0) -> DaemonView:
        """Add one more daemon of a project, at a UNIX socket and a TCP port of its own."""
        return self.sites.add_daemon(project, flush_interval_s)

    def remove_daemon(self, unix: Id) -> list[DaemonView]:
        """Remove a daemon that was added, by its socket's path, once nothing is pending; answers with the others."""
        self.sites.remove_daemon(unix)
        return self.daemons()

    def totals(self) -> Totals:
        """Slots by state, credits, counters, discards and refusals of each project; pending commands."""
        pending = self._pending()
        with self._accounts.reading() as ledger:
            known = dict.fromkeys(self._accounts.projects, ProjectAccounts()) | ledger.projects
            projects = {name: self._totals(name, project) for name, project in known.items()}
            return Totals(pending=pending, refused=self._accounts.refused, projects=projects)

    def balance(self) -> Balance:
        """The violated conservation laws, and what quirks have made of the sums."""
        with self._accounts.reading() as ledger:
            return Balance(violations=list(ledger.violations()), differences=list(ledger.differences()))

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

        with self.of_project(project) as (_, found):
            return page_of(islice(found.slots.items(), cursor, None), cursor, limit, show)

    def named_slots(self, project: Id, slots: Ids) -> list[SlotView]:
        """Slots of a project by their ids, as of one moment, without those that there are not."""
        with self.of_project(project) as (_, found):
            known = ((slot_id, found.slots.get(slot_id)) for slot_id in dict.fromkeys(slots))
            return [slot_view(project, slot_id, slot) for slot_id, slot in known if slot is not None]

    def applied(self, project: Id, cursor: Cursor | None = None, limit: Limit = 1000) -> AppliedCommands:
        """The slots of the commands that a project's accounts took or refused since a cursor; without it, from now."""
        with self.of_project(project):
            slots, following, missed = self._accounts.applied.read(project, cursor, limit)
        return AppliedCommands(slots=slots, next=following, missed=missed)

    def slot(self, project: Id, slot: Id) -> SlotHistory:
        """One slot, every command received for it, and the faults that fired for it.

        Raises:
            Unknown: no command was received for it.
        """
        with self.of_project(project) as (_, found):
            known = found.slots.get(slot)
            view = None if known is None else slot_view(project, slot, known)
            entries = self._accounts.journal.about(project, slot)
            firings = [
                firing_view(firing)
                for firing in self._faults.firings
                if (firing.project, firing.slot) == (project, slot)
            ]
        history = [command_view(project, entry) for entry in entries if _is_for(entry, slot)]
        if view is None and not history and not firings:
            raise Unknown(f"no command of project {project!r} was received for a slot {slot!r}")
        return SlotHistory(slot=view, history=history, firings=firings)

    def machines(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[MachineView]:
        """The machines that claimed slots of a project."""
        with self.of_project(project) as (ledger, found):

            def show(item: tuple[str, Machine]) -> MachineView:
                return machine_view(project, *item, ledger.owners.get(item[0]))

            return page_of(islice(found.machines.items(), cursor, None), cursor, limit, show)

    def users(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[UserView]:
        """The users who have an account in a project."""
        shown_as = self._accounts.rules.shown_as

        def show(item: tuple[str, Account]) -> UserView:
            user_id, account = item
            own = [name for name in shown_as if shown_as[name] in {"credits", "claimed"}]
            counters = {name: value for name, value in account.counters.items() if name not in own}
            return user_view(project, user_id, Account(account.credits, counters))

        with self.of_project(project) as (_, found):
            return page_of(islice(found.users.items(), cursor, None), cursor, limit, show)

    def journal(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[CommandView]:
        """Every command and every `lib/` request received for a project, in order."""

        def show(entry: Entry) -> CommandView:
            return command_view(project, entry)

        with self.of_project(project):
            return page_of(self._accounts.journal.read(project, cursor), cursor, limit, show)

    def refusals(self, project: Id, cursor: Cursor = 0, limit: Limit = 1000) -> Page[CommandView]:
        """The refused commands and `lib/` requests of a project, in order."""

        def show(entry: Entry) -> CommandView | None:
            return None if entry[3] is None else command_view(project, entry)

        with self.of_project(project):
            return page_of(self._accounts.journal.read(project, cursor), cursor, limit, show)

    def malformed(self, project: Id) -> Malformed:
        """The frames that a project's daemons refused: malformed, or without room in the queue."""
        with self.of_project(project):
            count, first = self._accounts.journal.malformed(project)
        frames = [
            FrameView(project=project, at_us=at_us, frame=frame.decode(errors="replace")) for at_us, frame in first
        ]
        return Malformed(count=count, first=frames)

    def links(self, cursor: Cursor = 0, limit: Limit = 1000) -> Page[LinkView]:
        """The user of each linked machine, in every project."""

        def show(item: tuple[str, str]) -> LinkView:
            return LinkView(machine=item[0], user=item[1])

        with self._accounts.reading() as ledger:
            return page_of(islice(ledger.owners.items(), cursor, None), cursor, limit, show)

    def link(self, links: list[tuple[Id, Id]]) -> list[RefusedItem]:
        """Link machines to users, who get what waits on the machines: pairs of machine and user."""
        return _refused(self._accounts.link(links))

    def release(self, machines: list[Id]) -> list[RefusedItem]:
        """Release machines from their users, who keep their credit."""
        return _refused(self._accounts.release(machines))

    def reset(self, project: Id | None = None) -> Totals:
        """Reset everything, to how it was at the start, or one project, whose machines stay linked to their users.

        Of a project, this is its slots, accounts, journal and firings, its daemons' connections, and all its commands
        that are pending or that a fault holds: they are dropped, and their connections closed. Faults, quirks and the
        clock are common to all projects; only a reset of everything sets those again that the server started with, with
        new counts and times, and has the clock follow real time.

        Raises:
            ValueError: a spool cannot be written, or a daemon is too busy.
        """
        if project is not None:
            with self.of_project(project):
                pass
        with as_value_error():
            self._drop(project)
        with self._accounts.exclusive():  # or what another changes after the reset could fail, and the answer with it
            self._accounts.reset(project)
            return self.totals()

    def housekeep(self) -> Totals:
        """Run the server's housekeeping job once: it expires due slots, or under `expire-live` all others."""
        with self._accounts.exclusive():
            self._accounts.housekeep()
            return self.totals()

    def quirks(self) -> list[QuirkView]:
        """The quirks of the system in production, and which are on."""
        on = self._accounts.quirks
        return [
            QuirkView(quirk=name, tier=tier, effect=effect, on=name in on) for name, tier, effect in QUIRKS.values()
        ]

    def set_quirks(self, quirks: list[QuirkName], profile: Profile = "documented") -> list[QuirkView]:
        """Replace the quirks by those of a profile and the given ones."""
        with as_value_error():
            self._set_quirks(chosen(profile, quirks))
        return self.quirks()

    def clock(self) -> ClockView:
        """The server's time."""
        clock = self._accounts.clock
        return ClockView(now_us=clock.now_us(), rate=clock.rate)

    def freeze_clock(self) -> ClockView:
        """Freeze the clock until `run`, a reset or a restart; it can still be advanced and set."""
        self._accounts.clock.freeze()
        self._accounts.write_time()
        return self.clock()

    def run_clock(self, rate: Rate = 1.0) -> ClockView:
        """Run the clock at a multiple of real time, until a reset or a restart."""
        self._accounts.clock.run(rate)
        self._accounts.write_time()
        return self.clock()

    def advance_clock(self, seconds: Seconds) -> ClockView:
        """Advance the clock; due slots expire at once."""
        self._accounts.clock.advance(seconds=seconds)
        return self.clock()

    def set_clock(self, now_us: Moment) -> ClockView:
        """Set the clock to a time that is not before its latest."""
        self._accounts.clock.set(now_us)
        return self.clock()

    def slots_parquet(self, project: Id | None = None, cursor: Cursor = 0, limit: Limit | None = None) -> bytes:
        """Every slot, as a Parquet table with a row each; with a limit a page, from a slot of a project on.

        A page that is full has the arguments of the next one in its schema metadata, as JSON, under `cpsim.next`.

        Raises:
            MissingExtra: the extra `run` is not installed.
            CpsimError: a sum is beyond 64 bits.
        """
        with self._accounts.reading() as ledger:
            if project not in {None, *ledger.projects}:
                raise Unknown(f"there are no accounts of a project {project!r}")
            return export.slots_parquet(ledger, project, cursor, limit)

    def accounts_parquet(self) -> bytes:
        """Every machine and user of each project, as a Parquet table with a row each.

        Raises:
            MissingExtra: the extra `run` is not installed.
            CpsimError: a sum is beyond 64 bits.
        """
        with self._accounts.reading() as ledger:
            return export.accounts_parquet(ledger, self._accounts.salt)

    def ledger_jsonl(self) -> bytes:
        """Every slot, machine, user and link, as a JSON object a line; `type` says which."""
        with self._accounts.reading() as ledger:
            return export.json_lines(ledger)

    def _check_until(self, text: str) -> None:
        """Check that `down` has an `until`, or is set already."""
        fault = Fault.parse(text)
        if fault.action == "down" and fault.until_s is None and fault not in self._faults:
            raise CpsimError(
                f"fault {str(fault)!r} would stop the control API for good: give it an until=SECONDS, or set it "
                "in Python or with cpsim serve --fault"
            )

    @contextmanager
    def of_project(self, project_id: str) -> Iterator[tuple[Ledger, ProjectAccounts]]:
        """The ledger and a project, locked within the context.

        Raises:
            Unknown: there is no such project.
        """
        with self._accounts.reading() as ledger:
            project = ledger.projects.get(project_id)
            if project is None and project_id not in self._accounts.projects:
                known = ", ".join(map(repr, self._accounts.projects))
                raise Unknown(f"there is no project {project_id!r}; there are {known}")
            yield ledger, project or ProjectAccounts()

    def _totals(self, project_id: str, project: ProjectAccounts) -> ProjectTotals:
        repeated = project.repeated
        counters, own = (
            dict(project.granted.counters),
            dict.fromkeys(("credits", "allocated", "claimed", "discarded"), 0),
        )
        for name, field in self._accounts.rules.shown_as.items():
            own[field] += counters.pop(name, 0)
        return ProjectTotals(
            allocated=len(project.slots) + repeated.get(State.ALLOCATED, 0) + own["allocated"],
            outstanding=project.outstanding,
            claimed=project.settled[State.CLAIMED] + repeated.get(State.CLAIMED, 0) + own["claimed"],
            discarded=project.settled[State.DISCARDED] + repeated.get(State.DISCARDED, 0) + own["discarded"],
            expired=project.settled[State.EXPIRED],
            refused=self._accounts.refused_of(project_id),
            credits=project.granted.credits + own["credits"],
            counters=counters,
            reasons=dict(project.reasons),
        )


def _is_for(entry: Entry, slot_id: str) -> bool:
    slot = entry[2].get("slot")
    return str(slot) == slot_id if type(slot) is int else slot == slot_id


def _refused(refusals: Sequence[Refusal]) -> list[RefusedItem]:
    return [RefusedItem(position=refusal.position, message=refusal.message) for refusal in refusals]
