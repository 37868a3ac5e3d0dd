"""What may have become of a slot: the protocol as a function from a slot's commands to the set of possible states.

An operation whose outcome is unknown may or may not have been applied, so it splits the possibilities; so does a
command that met a slot just when its time ran out. What is seen in the end must be one of them.

Pure; times are nanoseconds on the replay's clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MINUTE_NS: Final = 60_000_000_000
DAY_MINUTES: Final = 1440


class Fate(NamedTuple):
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
    knows. `accepted` is True or False when the server itself said that it accepts or refuses it, else None.
    """

    kind: str
    arguments: Mapping[str, str | int]
    span: Span
    applied: bool | None
    accepted: bool | None = None


class Branch(NamedTuple):
    """One possible history so far."""

    fate: Fate
    terms: Terms | None


ABSENT: Final = Branch(Fate("absent"), None)


def fates(steps: Iterable[Step], seen: Span) -> set[Fate]:
    """Every state in which a slot may be seen after its steps; empty when no history explains the replies.

    Args:
        steps: the slot's operations, in the order in which they were applied.
        seen: when the state was looked at.
    """
    branches = {ABSENT}
    for step in steps:
        branches = {after for branch in branches for alive in _aged(branch, step.span) for after in _taken(alive, step)}
    return {aged.fate for branch in branches for aged in _aged(branch, seen)}


def _aged(branch: Branch, now: Span) -> Iterable[Branch]:
    """A branch at a time: as it was, expired, or possibly either."""
    if branch.fate.phase != "allocated" or branch.terms is None:
        return (branch,)
    expired = branch._replace(fate=branch.fate._replace(phase="expired"))
    if now.earliest_ns >= branch.terms.expiry.latest_ns:
        return (expired,)
    if now.latest_ns >= branch.terms.expiry.earliest_ns:
        return (branch, expired)
    return (branch,)


def _taken(branch: Branch, step: Step) -> Iterable[Branch]:
    """The branches that a step leads to; none when the server's own word contradicts the protocol."""
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
        return None if fate.phase != "absent" else Branch(Fate("allocated"), _terms(arguments, step.span))
    if fate.phase != "allocated" or terms is None:
        return None
    if step.kind == "claim":
        claimed = fate._replace(
            phase="claimed",
            machine=str(arguments["machine"]),
            granted=_granted(terms, arguments.get("credits")),
        )
        return Branch(claimed, terms)
    if step.kind == "discard":
        reason = str(arguments.get("reason", "unspecified"))
        return Branch(fate._replace(phase="discarded", reason=reason), terms)
    given = {name: value for name, value in arguments.items() if name != "slot"}
    if step.kind == "counters":
        sums = dict(fate.counters)
        for name, value in given.items():
            sums[name] = sums.get(name, 0) + int(value)
        return Branch(fate._replace(counters=frozenset(sums.items())), terms)
    latest = dict(fate.meta) | {name: str(value) for name, value in given.items()}
    return Branch(fate._replace(meta=frozenset(latest.items())), terms)


def _terms(arguments: Mapping[str, str | int], span: Span) -> Terms:
    lasts_ns = int(arguments.get("expire", DAY_MINUTES)) * MINUTE_NS
    credits, least, most = (int(arguments[name]) if name in arguments else None for name in ("credits", "min", "max"))
    return Terms(credits, least, most, Span(span.earliest_ns + lasts_ns, span.latest_ns + lasts_ns))


def _granted(terms: Terms, asked: str | int | None) -> int:
    if terms.credits is not None:
        return terms.credits
    wanted = 1 if asked is None else int(asked)
    if terms.least is not None and wanted < terms.least:
        return terms.least
    if terms.most is not None and wanted > terms.most:
        return terms.most
    return wanted
