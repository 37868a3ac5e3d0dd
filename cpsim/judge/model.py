"""What may have become of a slot: the protocol as a function from a slot's commands to the set of possible states.

An operation whose outcome is unknown may or may not have been applied, so it splits the possibilities; so does a
command that met a slot just when its time ran out. What is seen in the end must be one of them. Here commands are
applied in the order given; `orders` tells in which orders they may have been.

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
    """A state a slot can be seen in. `phase` is the ledger's word for it, or `absent`."""

    phase: str
    machine: str | None = None
    granted: int | None = None
    reason: str | None = None
    counters: frozenset[tuple[str, int]] = frozenset()
    meta: frozenset[tuple[str, str]] = frozenset()


class Span(NamedTuple):
    """Between when and when something happened."""

    earliest_ns: int
    latest_ns: int


class Terms(NamedTuple):
    """What alloc promised."""

    credits: int | None
    least: int | None
    most: int | None
    expiry: Span


class Step(NamedTuple):
    """One operation of a slot: what it says, when it was applied if it was, and whether it was.

    `applied` is True when it reached the accounts in its turn, False when it certainly did not, None when nobody
    knows. `accepted` is True or False when the server itself said that it accepts or refuses it, else None. What is
    sent from `answered_ns` on comes after it; None: from the end of its span on.
    """

    kind: str
    arguments: Mapping[str, str | int]
    span: Span
    applied: bool | None
    accepted: bool | None = None
    answered_ns: int | None = None

    @property
    def over_ns(self) -> int:
        """From when on what was sent comes after it."""
        return self.span.latest_ns if self.answered_ns is None else self.answered_ns


class Branch(NamedTuple):
    """One possible history so far."""

    fate: SlotState
    terms: Terms | None


NOTHING: Final = SlotState("absent")
START: Final = Branch(NOTHING, None)
"""Where every slot's history begins."""


def possible_states(steps: Iterable[Step], seen: Span) -> set[SlotState]:
    """Every state in which a slot may be seen after its steps; empty when no history explains the replies.

    Args:
        steps: the slot's operations, in the order in which they were applied.
        seen: when the state was looked at.
    """
    branches = {START}
    for step in steps:
        branches = {after for branch in branches for after in taken(branch, step)}
    return {aged.fate for branch in branches for aged in aged_by(branch, seen)}


def taken(branch: Branch, step: Step) -> set[Branch]:
    """The branches that a step leads to; none when the server's own word contradicts the protocol."""
    return {after for alive in aged_by(branch, step.span) for after in _taken(alive, step)}


def aged_by(branch: Branch, now: Span) -> Iterable[Branch]:
    """A branch at a time: as it was, expired, or possibly either."""
    fate, terms = branch
    if fate.phase != "allocated" or terms is None or now.latest_ns < terms.expiry.earliest_ns:
        return (branch,)
    expired = Branch(fate._replace(phase="expired"), terms)
    return (expired,) if now.earliest_ns >= terms.expiry.latest_ns else (branch, expired)


def _taken(branch: Branch, step: Step) -> Iterable[Branch]:
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


def _after(branch: Branch, step: Step) -> Branch | None:
    """The branch with a command applied, or None when the protocol refuses it."""
    fate, terms = branch
    arguments = step.arguments
    if step.kind == "alloc":
        promised = _terms(arguments, step.span) if fate.phase == "absent" else None
        return None if promised is None else Branch(SlotState("allocated"), promised)
    if fate.phase != "allocated" or terms is None:
        return None
    changed: SlotState | None
    match step.kind:
        case "claim":
            changed = _claimed(fate, terms, arguments)
        case "discard":
            changed = fate._replace(phase="discarded", reason=str(arguments.get("reason", "unspecified")))
        case "counters":
            changed = _counted(fate, arguments)
        case _:
            given = {name: str(value) for name, value in arguments.items() if name != "slot"}
            changed = fate._replace(meta=frozenset((dict(fate.meta) | given).items())) if given else None
    return None if changed is None else Branch(changed, terms)


def _claimed(fate: SlotState, terms: Terms, arguments: Mapping[str, str | int]) -> SlotState | None:
    asked = None
    if terms.credits is None and "credits" in arguments:
        asked = _whole(arguments["credits"])
        if asked is None or asked < 0:
            return None
    if "machine" not in arguments:
        return None
    return fate._replace(phase="claimed", machine=str(arguments["machine"]), granted=_granted(terms, asked))


def _counted(fate: SlotState, arguments: Mapping[str, str | int]) -> SlotState | None:
    sums = dict(fate.counters)
    for name, value in arguments.items():
        if name != "slot":
            number = _whole(value)
            if number is None:
                return None
            sums[name] = sums.get(name, 0) + number
    return None if len(arguments) < 2 else fate._replace(counters=frozenset(sums.items()))


def _terms(arguments: Mapping[str, str | int], span: Span) -> Terms | None:
    """What an alloc promises, or None where the protocol refuses it."""
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
