"""Views of the accounts: plain values, in Python and JSON. Times are microseconds since 1970, UTC."""

from typing import Any, Generic, TypeVar

from msgspec import Struct

from cpsim.protocol.slots import State
from cpsim.server.accounts import Account, Machine, Slot
from cpsim.server.journal import Entry

T = TypeVar("T")


class PlainView(
    Struct, frozen=True, kw_only=True, tag_field="type", tag=lambda name: name.removesuffix("View").lower()
):
    """A view; its `type` in JSON tells one from another."""

    def __repr__(self) -> str:
        """The fields that are not None or empty."""
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        shown = (f"{name}={_plain(value)!r}" for name, value in values if value not in (None, {}))
        return f"{type(self).__name__}({', '.join(shown)})"


class SlotView(PlainView, frozen=True, kw_only=True):
    """A slot: state, terms (credits, min, max), and the credit it granted, with machine and user."""

    project: str
    slot: str
    state: State
    machine: str | None
    user: str | None
    reason: str | None
    credits: int | None
    min: int | None
    max: int | None
    granted: int | None
    allocated_us: int
    expires_us: int
    settled_us: int | None
    counters: dict[str, int]
    meta: dict[str, str]


class MachineView(PlainView, frozen=True, kw_only=True):
    """A machine's credit in a project, and the credit that waits for a user."""

    project: str
    machine: str
    user: str | None
    credits: int
    counters: dict[str, int]
    waiting_credits: int
    waiting_counters: dict[str, int]


class UserView(PlainView, frozen=True, kw_only=True):
    """A user's credit in a project."""

    project: str
    user: str
    credits: int
    counters: dict[str, int]


class LinkView(PlainView, frozen=True, kw_only=True):
    """A machine that is linked to a user, in every project."""

    machine: str
    user: str


class CommandView(PlainView, frozen=True, kw_only=True):
    """A received command; `refusal` is the reason if it was refused."""

    project: str
    at_us: int
    kind: str
    arguments: dict[str, Any]
    refusal: str | None


class FrameView(PlainView, frozen=True, kw_only=True):
    """A malformed frame, as text; invalid UTF-8 is replaced."""

    project: str
    at_us: int
    frame: str


class Malformed(Struct, frozen=True, kw_only=True):
    """The number of malformed frames, and the first thousand of them."""

    count: int
    first: list[FrameView]


class FaultView(PlainView, frozen=True, kw_only=True):
    """A fault, the number of commands it selected, and how often it fired."""

    fault: str
    selected: int
    fired: int


class FiringView(PlainView, frozen=True, kw_only=True):
    """A fault that fired, and the seconds since the fake started; without a command if it was for all."""

    time_s: float
    stage: str
    action: str
    kind: str
    slot: str
    project: str


class QuirkView(PlainView, frozen=True, kw_only=True):
    """A way in which the system in production differs from its document, and whether it is switched on."""

    quirk: str
    tier: str
    effect: str
    on: bool


class SlotHistory(Struct, frozen=True, kw_only=True):
    """A slot, if it was ever allocated, every command received for it, and the faults that fired for it."""

    slot: SlotView | None
    history: list[CommandView]
    firings: list[FiringView]


class DaemonView(PlainView, frozen=True, kw_only=True):
    """A daemon: its project, its addresses, and whether it was added while the server served."""

    project: str
    unix: str | None
    tcp: str | None
    pending: int
    added: bool


class ProjectView(PlainView, frozen=True, kw_only=True):
    """A project that was added: its secret, the URL of the API, and the addresses of its daemon."""

    project: str
    secret: str
    url: str
    unix: str
    tcp: str


class ProjectTotals(Struct, frozen=True, kw_only=True):
    """A project's slots by state, refusals, granted credit, and discards by reason."""

    allocated: int
    outstanding: int
    claimed: int
    discarded: int
    expired: int
    refused: int
    credits: int
    counters: dict[str, int]
    reasons: dict[str, int]


class Totals(Struct, frozen=True, kw_only=True):
    """Acknowledged commands that have not reached the accounts, refused commands, and the projects."""

    pending: int
    refused: int
    projects: dict[str, ProjectTotals]


class Balance(Struct, frozen=True, kw_only=True):
    """The conservation laws that do not hold; and what quirks, by name, have made of the sums, which violates none."""

    violations: list[str]
    differences: list[str] = []


class ClockView(Struct, frozen=True, kw_only=True):
    """The server's time, and its rate as a multiple of real time: 0 while it is frozen."""

    now_us: int
    rate: float


class RefusedItem(Struct, frozen=True, kw_only=True):
    """A refused item of a list: its position, and the reason."""

    position: int
    message: str


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """A page of a list; `next` is the cursor of the next page, or null after the last."""

    items: list[T]
    next: int | None


class AppliedCommands(Struct, frozen=True, kw_only=True):
    """The slot of each command, in order, and the cursor of the next; `missed`: some since the cursor are not known."""

    slots: list[str]
    next: int
    missed: bool


def _plain(value: object) -> object:
    """A value as it is written: a `State` is its text."""
    return str(value) if isinstance(value, State) else value


def command_view(project_id: str, entry: Entry) -> CommandView:
    """A command of the journal as it is shown."""
    at_us, kind, arguments, refusal = entry
    return CommandView(project=project_id, at_us=at_us, kind=kind, arguments=dict(arguments), refusal=refusal)


def slot_view(project_id: str, slot_id: str, slot: Slot) -> SlotView:
    """A slot of the ledger as it is shown."""
    return SlotView(
        project=project_id,
        slot=slot_id,
        state=slot.state,
        machine=slot.machine,
        user=slot.user,
        reason=slot.reason,
        credits=slot.credits,
        min=slot.min,
        max=slot.max,
        granted=slot.granted,
        allocated_us=slot.allocated_us,
        expires_us=slot.expires_us,
        settled_us=slot.settled_us,
        counters=dict(slot.counters or {}),
        meta=dict(slot.meta or {}),
    )


def machine_view(project_id: str, machine_id: str, machine: Machine, user_id: str | None) -> MachineView:
    """A machine of the ledger as it is shown."""
    return MachineView(
        project=project_id,
        machine=machine_id,
        user=user_id,
        credits=machine.earned.credits,
        counters=dict(machine.earned.counters),
        waiting_credits=machine.waiting.credits,
        waiting_counters=dict(machine.waiting.counters),
    )


def user_view(project_id: str, user_id: str, account: Account) -> UserView:
    """A user's account in a project as it is shown."""
    return UserView(project=project_id, user=user_id, credits=account.credits, counters=dict(account.counters))
