"""The protocol as a function from a slot's commands to the set of its possible states.

An operation with an unknown outcome may or may not have been applied, so each state splits into two; so does a state
when a command may have come before or after the slot's expiry. The state seen at the end must be in the set. Commands
are applied in the order given; `orders` finds the orders in which they may have been applied.

With names of quirks, a command may also do what a system with these quirks does with it.

Pure; times are nanoseconds on the replay's clock.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MINUTE_NS: Final = 60_000_000_000
DAY_MINUTES: Final = 1440
WHOLE: Final = re.compile(r"-?[0-9]+")


class SlotState(NamedTuple):
    """The state of a slot. `phase` is the ledger's state, or `absent`."""

    phase: str
    machine: str | None = None
    granted: int | None = None
    reason: str | None = None
    counters: frozenset[tuple[str, int]] = frozenset()
    meta: frozenset[tuple[str, str]] = frozenset()

    def without(self, hidden: Iterable[str]) -> SlotState:
        """The state as it is seen by somebody to whom some fields, other than the phase, are hidden."""
        return self._replace(**{field: self._field_defaults[field] for field in hidden})


class Span(NamedTuple):
    """The earliest and the latest time of an event."""

    earliest_ns: int
    latest_ns: int


class Terms(NamedTuple):
    """The credits, range and expiry set by an alloc."""

    credits: int | None
    least: int | None
    most: int | None
    expiry: Span


class Step(NamedTuple):
    """One operation of a slot: kind, arguments, time and outcome.

    `applied` is True if the operation reached the accounts in its turn, False if it certainly did not, None if that is
    unknown. `accepted` is True or False if the server itself accepted or refused the operation, else None. Operations
    sent from `answered_ns` on come after this one; if it is None, those sent from the end of the span on.
    """

    kind: str
    arguments: Mapping[str, str | int]
    span: Span
    applied: bool | None
    accepted: bool | None = None
    answered_ns: int | None = None

    @property
    def over_ns(self) -> int:
        """The time from which later operations come after this one."""
        return self.span.latest_ns if self.answered_ns is None else self.answered_ns


class Beside(NamedTuple):
    """What accounts have because of a quirk, and the slot does not show; or have not, and it shows.

    Attributes:
        quirk: its name.
        machine: whose claim it was.
        credits, counters: the amounts.
        earned: 1 if machine and project were credited all the same, -1 if they were not, 0 if that is as shown.
        held: the same of users, with what waits for one.
    """

    quirk: str
    machine: str
    credits: int
    counters: frozenset[tuple[str, int]]
    earned: int
    held: int


class Branch(NamedTuple):
    """One possible history: the state reached, the terms of the alloc, and what quirks did to accounts on the way."""

    state: SlotState
    terms: Terms | None
    beside: tuple[Beside, ...] = ()

    def with_beside(self, quirk: str, earned: int, held: int) -> Branch:
        """The same, whose claim accounts have beside what the slot will show; nothing, if it was not claimed."""
        state = self.state
        if state.machine is None:
            return self
        more = Beside(quirk, state.machine, state.granted or 0, state.counters, earned, held)
        return self._replace(beside=tuple(sorted((*self.beside, more), key=str)))


Quirks = frozenset[str]
NO_QUIRKS: Final[Quirks] = frozenset()
LOSING: Final = frozenset({"ack-before-delivery", "drop-on-error"})
"""Quirks by which a command that was acknowledged may be lost."""
MODELLED: Final = LOSING | {
    *("reclaim", "claim-settled", "discard-settled", "counters-settled", "meta-dropped", "slots-vanish", "expire-live"),
    *("resend-duplicates", "reorder-classes", "global-slot-ids"),
}
"""Quirks whose effect on a slot is known here."""
NOTHING: Final = SlotState("absent")
START: Final = Branch(NOTHING, None)
"""Where every slot's history begins."""


def possible_states(steps: Iterable[Step], seen: Span, quirks: Quirks = NO_QUIRKS) -> set[SlotState]:
    """The states in which a slot may be after its steps; empty if no history explains the replies.

    Args:
        steps: the slot's operations, in the order in which they were applied.
        seen: when the state was read.
        quirks: names of the quirks that the system may have.
    """
    branches = {START}
    for step in steps:
        branches = {after for branch in branches for after in branches_after(branch, step, quirks)}
    return {aged.state for branch in branches for aged in branches_at(branch, seen, quirks)}


def branches_after(branch: Branch, step: Step, quirks: Quirks = NO_QUIRKS) -> set[Branch]:
    """The branches after a step; none if the server's reply contradicts the protocol."""
    return {
        after
        for alive in branches_at(branch, step.span, quirks)
        for after in (_branches_with_quirks(alive, step, quirks) if quirks else _branches_of_one(alive, step))
    }


def branches_at(branch: Branch, now: Span, quirks: Quirks = NO_QUIRKS) -> Iterable[Branch]:
    """A branch at a time: unchanged, expired, or both if the time is uncertain; with a quirk, deleted once paid."""
    state, terms = branch.state, branch.terms
    if "slots-vanish" in quirks and state.machine is not None:
        return (branch, START._replace(beside=branch.with_beside("slots-vanish", 1, 1).beside))
    if "expire-live" in quirks or state.phase != "allocated":
        return (branch,)
    if terms is None or now.latest_ns < terms.expiry.earliest_ns:
        return (branch,)
    expired = branch._replace(state=state._replace(phase="expired"))
    return (expired,) if now.earliest_ns >= terms.expiry.latest_ns else (branch, expired)


def _branches_of_one(branch: Branch, step: Step) -> Iterable[Branch]:
    if step.applied is False:
        return (branch,)
    after = _after(branch, step)
    if step.accepted is True:
        return () if after is None else (after,)
    if step.accepted is False:
        return (branch,) if after is None else ()
    if after is None:
        return (branch,)
    return (after,) if step.applied else (branch, after)


def _branches_with_quirks(branch: Branch, step: Step, quirks: Quirks) -> Iterable[Branch]:
    if step.applied is False:
        return (branch,)
    after = _after(branch, step)
    afters = _afters(branch, step, quirks)
    if "resend-duplicates" in quirks:
        afters += [twice for once in afters for twice in _afters(once, step, quirks)]
    if "meta-dropped" in quirks and step.kind == "meta":
        afters.append(branch)
    may_refuse = after is None or (step.kind == "alloc" and "global-slot-ids" in quirks)
    if step.accepted is not None:
        return afters if step.accepted else [branch] * may_refuse
    return [*afters, *[branch] * (may_refuse or not step.applied or bool(LOSING & quirks))]


def _afters(branch: Branch, step: Step, quirks: Quirks) -> list[Branch]:
    """The branches with a command applied once, by the protocol or else by quirks; none if it is refused."""
    after = _after(branch, step)
    return [*_after_by_quirks(branch, step, quirks)] if after is None else [after]


def _after(branch: Branch, step: Step) -> Branch | None:
    """The branch with a command applied, or None if the protocol refuses the command."""
    state, terms, beside = branch
    arguments = step.arguments
    if step.kind == "alloc":
        alloc_terms = _terms(arguments, step.span) if state.phase == "absent" else None
        return None if alloc_terms is None else Branch(SlotState("allocated"), alloc_terms, beside)
    if state.phase != "allocated" or terms is None:
        return None
    changed: SlotState | None
    match step.kind:
        case "claim":
            changed = _claimed(state, terms, arguments)
        case "discard":
            changed = state._replace(phase="discarded", reason=str(arguments.get("reason", "unspecified")))
        case "counters":
            changed = _counted(state, arguments)
        case _:
            given = {name: str(value) for name, value in arguments.items() if name != "slot"}
            changed = state._replace(meta=frozenset((dict(state.meta) | given).items())) if given else None
    return None if changed is None else Branch(changed, terms, beside)


def _after_by_quirks(branch: Branch, step: Step, quirks: Quirks) -> Iterable[Branch]:
    """What a command may lead to that the protocol refuses."""
    state, arguments = branch.state, step.arguments
    match step.kind, state.phase:
        case "claim", "claimed" if "reclaim" in quirks:
            yield from _claimed_again(branch, "reclaim", arguments)
        case "claim", "discarded" | "expired" if "claim-settled" in quirks:
            if state.machine is not None:
                yield from _claimed_again(branch, "claim-settled", arguments)
            elif branch.terms and (claimed := _claimed(state, branch.terms, arguments)) is not None:
                yield branch._replace(state=claimed)
                yield branch._replace(state=claimed._replace(phase=state.phase))
        case "discard", "claimed" | "discarded" if "discard-settled" in quirks:
            discarded = state._replace(phase="discarded", reason=str(arguments.get("reason", "unspecified")))
            yield branch._replace(state=discarded)
            forgotten = branch.with_beside("discard-settled", 1, 1)
            yield forgotten._replace(state=discarded._replace(machine=None, granted=None))
        case "counters", "claimed" | "discarded" if "counters-settled" in quirks:
            if (counted := _counted(state, arguments)) is not None:
                yield from _counted_late(branch, counted, _counted(state._replace(counters=frozenset()), arguments))


def _claimed_again(branch: Branch, quirk: str, arguments: Mapping[str, str | int]) -> Iterable[Branch]:
    """The slot goes to the newest machine, with what the first claim granted; the machine before keeps that too."""
    if "machine" in arguments:
        moved = branch.state._replace(machine=str(arguments["machine"]))
        yield branch.with_beside(quirk, 1, 0)._replace(state=moved)


def _counted_late(branch: Branch, counted: SlotState, added: SlotState | None) -> Iterable[Branch]:
    """Counters after the claim: the slot shows them or not, always; no project has them, nor, once linked, a user."""
    state = branch.state
    late = branch._replace(state=state._replace(granted=0, counters=frozenset() if added is None else added.counters))
    before = [each for each in branch.beside if each.quirk == "counters-settled"]
    for shown, earned in ((counted, -1), (state, 0)):
        for held in (earned, earned + 1):
            if all(each.earned == earned and each.held >= held for each in before):
                yield Branch(shown, branch.terms, late.with_beside("counters-settled", earned, held).beside)


def _claimed(state: SlotState, terms: Terms, arguments: Mapping[str, str | int]) -> SlotState | None:
    asked = None
    if terms.credits is None and "credits" in arguments:
        asked = _whole(arguments["credits"])
        if asked is None or asked < 0:
            return None
    if "machine" not in arguments:
        return None
    return state._replace(phase="claimed", machine=str(arguments["machine"]), granted=_granted(terms, asked))


def _counted(state: SlotState, arguments: Mapping[str, str | int]) -> SlotState | None:
    sums = dict(state.counters)
    for name, value in arguments.items():
        if name != "slot":
            number = _whole(value)
            if number is None:
                return None
            sums[name] = sums.get(name, 0) + number
    return None if len(arguments) < 2 else state._replace(counters=frozenset(sums.items()))


def _terms(arguments: Mapping[str, str | int], span: Span) -> Terms | None:
    """The terms of an alloc, or None if the protocol refuses the alloc."""
    numbers = {name: _whole(arguments[name]) for name in ("credits", "min", "max", "expire") if name in arguments}
    if any(number is None or number < 0 for number in numbers.values()):
        return None
    credits, least, most = (numbers.get(name) for name in ("credits", "min", "max"))
    lasts_min = numbers.get("expire", DAY_MINUTES)
    if not lasts_min or (least is not None and most is not None and least > most):
        return None
    lasts_ns = lasts_min * MINUTE_NS
    return Terms(credits, least, most, Span(span.earliest_ns + lasts_ns, span.latest_ns + lasts_ns))


def _whole(value: str | int) -> int | None:
    return int(value) if type(value) is int or WHOLE.fullmatch(str(value)) else None


def _granted(terms: Terms, asked: int | None) -> int:
    if terms.credits is not None:
        return terms.credits
    wanted = 1 if asked is None else asked
    if terms.least is not None and wanted < terms.least:
        return terms.least
    if terms.most is not None and wanted > terms.most:
        return terms.most
    return wanted
