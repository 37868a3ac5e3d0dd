"""What can be expected of a project: a slot's state and terms, a rule on all its commands, or that nothing is pending.

Each function is also a request of the control API, which asks again until what is expected holds or no longer can, or
the time of the request is over.
"""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import chain, islice
from typing import Annotated, Final, TypeVar, get_args

from msgspec import Meta, Struct

from cpsim.net.control import Rule
from cpsim.protocol.slots import State
from cpsim.server.control import rules, wording
from cpsim.server.control.inspection import Id, Inspector, Unknown
from cpsim.server.control.views import CommandView, FaultView, Page, SlotView, slot_view

T = TypeVar("T")

PAGE: Final = 10_000
CLOSE: Final = 200
"""The latest slots, among which one is looked for that a name may have meant: each look takes its time."""
REFUSALS: Final = "no-refusals"
Credits = Annotated[
    int, Meta(ge=-(2**63), le=2**63 - 1, description="Those granted, or of the alloc while the slot is not claimed.")
]
Pairs = Annotated[
    str, Meta(min_length=1, description="NAME=VALUE,NAME=VALUE..., as in a frame; others are not compared.")
]
Names = Annotated[str, Meta(min_length=1, description="Separated by commas.")]


class Expectation(Struct, frozen=True, kw_only=True):
    """Whether what was expected holds; what differs, in lines; and whether that can no longer change."""

    holds: bool
    message: str
    final: bool


class RuleView(Struct, frozen=True, kw_only=True):
    """A rule, whether it holds, and the slots or commands that break it."""

    rule: Rule
    holds: bool
    message: str


def expect_idle(inspector: Inspector, project: Id) -> Expectation:
    """Whether every command that was acknowledged has reached the accounts."""
    with inspector.of_project(project):
        pending = inspector.sites.pending(project)
    return Expectation(holds=not pending, message=_pending_text(pending), final=not pending)


def expect_slot(
    inspector: Inspector,
    project: Id,
    slot: Id,
    *,
    state: State | None = None,
    machine: Id | None = None,
    credits: Credits | None = None,
    reason: Id | None = None,
    counters: Pairs | None = None,
    meta: Pairs | None = None,
) -> Expectation:
    """Whether a slot is there, and in this state, with these terms; what is not given is not compared.

    Raises:
        ValueError: counters or meta are not pairs.
        JournalFull: more was received than is kept.
    """
    wanted: dict[str, object] = {
        "state": state and str(state),
        "machine": machine,
        "credits": credits,
        "reason": reason,
    }
    wanted |= {"counters": counters and _numbers(counters), "meta": meta and _pairs(meta)}
    with inspector.of_project(project) as (_, accounts):
        found = slot_view(project, slot, accounts.slots[slot]) if slot in accounts.slots else None
        known = len(accounts.slots)
        latest = [] if found is not None else list(islice(reversed(accounts.slots), CLOSE))
    pending = inspector.sites.pending(project)
    if found is None:
        close = get_close_matches(slot, latest, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        others = "is 1 other" if known == 1 else f"are {known:,} others"
        gone = " (the quirk slots-vanish deletes what is claimed)" if "slots-vanish" in inspector.quirks_on else ""
        lines = [f"there is no slot {slot!r}{gone}; there {others}{hint}"]
    else:
        lines = _differences(found, {name: value for name, value in wanted.items() if value is not None})
    if not lines:
        return Expectation(holds=True, message="", final=True)
    is_settled = found is not None and found.state is not State.ALLOCATED
    text = "\n".join(chain(lines, _history(inspector, project, slot), filter(None, [_pending_text(pending)])))
    return Expectation(holds=False, message=text, final=is_settled and not inspector.quirks_on)


def expect_rule(
    inspector: Inspector, project: Id, rule: Rule, slots: Names | None = None, kinds: Names | None = None
) -> Expectation:
    """Whether a rule holds for all commands of a project, once they have reached the accounts.

    `slots` are for settled-once, which looks at all slots with a claim or a discard without them; `kinds` of commands
    are for nothing-sent-twice, which looks at all without them.

    Raises:
        ValueError: there is no such kind, or the rule takes no slots or no kinds.
        JournalFull: more was received than is kept.
    """
    for name, given, taker in (("slots", slots, "settled-once"), ("kinds", kinds, "nothing-sent-twice")):
        if given is not None and rule != taker:
            raise ValueError(f"{rule} takes no {name}; {taker} does")
    with inspector.of_project(project):
        pending = inspector.sites.pending(project)
    if pending:
        return Expectation(holds=False, message=_pending_text(pending), final=False)
    message, is_final = broken(inspector, project, rule, _listed(slots), _listed(kinds))
    return Expectation(holds=not message, message=message, final=not message or (is_final and not inspector.quirks_on))


def rules_of(inspector: Inspector, project: Id) -> list[RuleView]:
    """Each rule, and whether it holds for what has reached the accounts of a project.

    Raises:
        JournalFull: more was received than is kept.
    """
    views = []
    for rule in get_args(Rule):
        message, _ = broken(inspector, project, rule)
        views.append(RuleView(rule=rule, holds=not message, message=message))
    return views


def broken(
    inspector: Inspector, project: str, rule: Rule, slots: list[str] | None = None, kinds: list[str] | None = None
) -> tuple[str, bool]:
    """How a project breaks a rule, in lines, and whether nothing can mend that; the text is empty if it holds.

    Raises:
        ValueError: there is no such kind of commands.
        JournalFull: more was received than is kept.
        Unknown: there is no such project.
    """
    if rule == "faults-fired":
        return _unfired(inspector.faults()), False
    commands = list(_all(inspector.journal, project))
    start_us = commands[0].at_us if commands else 0
    if rule == REFUSALS:
        return "\n".join(refused_lines(inspector, project, commands, start_us)), True
    histories = rules.histories_of(commands)
    if rule == "settled-once":
        breach = rules.settled_once(histories, slots or ())
    elif rule == "no-claim-before-alloc":
        breach = rules.no_claim_before_alloc(histories)
    elif rule == "no-slot-leaked":
        breach = rules.no_slot_leaked(_all(inspector.slots, project))
    else:
        breach = rules.nothing_sent_twice(histories, kinds or ())
    return (breach.text(histories, start_us) if breach.slots else ""), breach.is_final


def refused_lines(inspector: Inspector, project: str, commands: Iterable[CommandView], start_us: int) -> Iterator[str]:
    """The refused commands and the malformed frames."""
    refused = [wording.command_line(command, start_us) for command in commands if command.refusal is not None]
    yield from wording.block(f"{len(refused):,} refused by the accounts", refused)
    malformed = inspector.malformed(project)
    yield from wording.block(
        f"{malformed.count:,} malformed, answered ER by the daemon",
        [wording.malformed_line(frame, start_us or frame.at_us) for frame in malformed.first],
    )


def report(inspector: Inspector, project: str) -> str:
    """The slots by state, the last commands, malformed frames, and the faults that fired.

    Raises:
        JournalFull, CpsimError: there is more than is kept.
    """
    commands = list(_all(inspector.journal, project))
    start_us = commands[0].at_us if commands else 0
    states = [str(slot.state) for slot in _all(inspector.slots, project)]
    shown = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
    lines = [f"project {project!r}; slots: {shown}", *filter(None, [_pending_text(inspector.sites.pending(project))])]
    last = [wording.command_line(command, start_us) for command in commands]
    lines += wording.block(f"last commands of {len(commands):,} received", last)
    malformed = inspector.malformed(project).first
    lines += wording.block("malformed", [wording.malformed_line(frame, start_us or frame.at_us) for frame in malformed])
    lines += wording.block("faults fired", map(wording.firing_line, inspector.firings(limit=PAGE).items))
    return "\n".join(lines)


def _all(read: Callable[..., Page[T]], project: str) -> Iterator[T]:
    cursor: int | None = 0
    while cursor is not None:
        page = read(project, cursor=cursor, limit=PAGE)
        yield from page.items
        cursor = page.next


def _unfired(faults: Iterable[FaultView]) -> str:
    lines = [f"{fault.fault}, which selected {fault.selected:,} commands" for fault in faults if not fault.fired]
    return "\n".join(wording.block(f"faults that never fired: {len(lines):,}", lines))


def _differences(found: SlotView, wanted: dict[str, object]) -> list[str]:
    has = {name: getattr(found, name) for name in wanted}
    if "credits" in has and found.state is State.CLAIMED:
        has["credits"] = found.granted
    different = list(wording.differences(wanted, has))
    return [f"slot {found.slot!r} is not as expected:", *(f"  {line}" for line in different)] if different else []


def _history(inspector: Inspector, project: str, slot: str) -> list[str]:
    try:
        history = inspector.slot(project, slot).history
    except Unknown:
        history = []
    lines = [wording.command_line(command, history[0].at_us) for command in history]
    return wording.block(f"history of slot {slot!r}", lines) or ["nothing has come for it"]


def _pending_text(pending: int) -> str:
    return f"{pending:,} acknowledged commands have not reached the accounts" if pending else ""


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else names.split(",")


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _numbers(text: str) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in _pairs(text).items()}
    except ValueError as error:
        raise ValueError(f"counters: {error}") from error
