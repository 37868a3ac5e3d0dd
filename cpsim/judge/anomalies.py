"""What can be wrong, by name, and how a slot's state gets its name: by the mishap that explains it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cpsim.judge.model import NOTHING, START, SlotState, aged_by, possible_states, taken
from cpsim.judge.orders import TooManyOrders, possible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cpsim.judge.model import Branch, Span, Step

ANOMALIES: Final = {
    "lost": "As if commands that were accepted, or parts of them, had never been sent.",
    "duplicated": "As if a command had been applied twice.",
    "reordered": "As if the same commands had been applied in another order than they were sent in.",
    "altered": "In the right state, but with other values than the commands gave.",
    "over-credited": "More was granted or earned than the protocol grants.",
    "under-credited": "Less was granted or earned than the protocol grants.",
    "leaked": "What belongs to one project shows in another.",
    "resurrected": "Settled, and then changed, settled otherwise, or open again.",
    "early expiry": "Expired before its time was out.",
    "late expiry": "Not expired, or still accepting commands, when its time was out.",
    "phantom": "In a state that no command that was sent can have led to.",
    "wrongly refused": "A command was refused that the protocol accepts.",
    "wrongly accepted": "A command was accepted that the protocol refuses.",
    "contradiction": "The replies to its commands cannot all be true, in whatever order they were applied.",
    "not conserved": "What the claims granted is not what machines earned, or not what users have and what waits.",
}
"""Each anomaly and what it means. A slot is given the first name that explains its state."""

MOST_STEPS: Final = 10
"""Steps up to which a state is explained by what may have happened to each; their subsets are many."""
EXPLAINED: Final = 3_000
"""Slots whose state is explained: a few milliseconds each. Further ones are named by what is different alone."""
NEVER_MIN: Final = 10**12


def name_of(steps: Sequence[Step], seen: Span, expected: SlotState, found: SlotState, *, explain: bool = True) -> str:
    """The name of what explains that a slot is not in a state in which it may be.

    Args:
        steps: the slot's operations, as they were sent.
        seen: when it was looked at.
        expected: the likeliest of the states in which it may be.
        found: the state in which it is.
        explain: whether to try what may have happened, or only look at what is different.
    """
    if explain and len(steps) <= MOST_STEPS:
        for name, explained in _explanations(steps, seen):
            if found in explained:
                return name
    if expected.phase != found.phase:
        return _misplaced(steps, expected.phase, found.phase)
    if expected.granted != found.granted:
        return "over-credited" if (found.granted or 0) > (expected.granted or 0) else "under-credited"
    if expected.machine != found.machine or expected.reason != found.reason:
        return "altered"
    return "lost" if found.counters <= expected.counters and found.meta <= expected.meta else "altered"


def contradiction(steps: Sequence[Step], seen: Span, found: SlotState | None) -> tuple[str, str]:
    """The name and the sentence for replies that no order explains.

    Args:
        steps: the slot's operations, as they were sent.
        seen: when it was looked at.
        found: the state in which it is, if that was seen.
    """
    ends = {fate.phase for fate in possible_states([step for step in steps if step.kind == "alloc"], seen)}
    if found is not None and found.phase == "expired" and ends == {"allocated"}:
        return "early expiry", "expired, and refused commands, before its time was out"
    branches = {START}
    for step in steps:
        after = {later for branch in branches for later in taken(branch, step)}
        if not after:
            return _false_reply(step, {aged for branch in branches for aged in aged_by(branch, step.span)})
        branches = after
    return "contradiction", "the replies to its commands contradict the protocol, in whatever order they were applied"


def _explanations(steps: Sequence[Step], seen: Span) -> Iterator[tuple[str, set[SlotState]]]:
    """The states that each kind of mishap leads to."""
    untold = [step._replace(accepted=None) for step in steps]
    effective = [step._replace(applied=None) for step in _effective(untold)]
    yield "lost", possible_states(effective, seen)
    for place, step in enumerate(untold):
        yield "duplicated", possible_states([*untold[: place + 1], step, *untold[place + 1 :]], seen)
    yield "duplicated", possible_states([*untold, *untold], seen)
    yield "duplicated", possible_states([again for step in untold for again in (step, step)], seen)
    if any(step.accepted is False for step in steps):
        yield "resurrected", possible_states(sorted(untold, key=lambda step: step.kind in {"claim", "discard"}), seen)
    with suppress(TooManyOrders):
        yield "reordered", possible(steps, seen, any_order=True)
    yield "late expiry", possible_states([_endless(step) for step in untold], seen)


def _effective(steps: Sequence[Step]) -> list[Step]:
    """The steps that changed something, or may have."""
    branches: set[Branch] = {START}
    effective = []
    for step in steps:
        aged = {alive for branch in branches for alive in aged_by(branch, step.span)}
        after = {later for branch in branches for later in taken(branch, step)}
        if after - aged:
            effective.append(step)
        branches = after
    return effective


def _endless(step: Step) -> Step:
    return step._replace(arguments={**step.arguments, "expire": NEVER_MIN}) if step.kind == "alloc" else step


def _false_reply(step: Step, before: set[Branch]) -> tuple[str, str]:
    """The name and the sentence for a reply that cannot be true of a slot in any of these states."""
    phases = {branch.fate.phase for branch in before}
    was = " or ".join(sorted(phases))
    if not step.accepted:
        return "wrongly refused", f"its {step.kind} was refused, though the slot was {was}"
    said = f"its {step.kind} was accepted, though the slot was {was}"
    if phases == {"expired"}:
        return "late expiry", said
    if phases & {"claimed", "discarded", "expired"}:
        return "resurrected", said
    return "wrongly accepted", said


def _misplaced(steps: Sequence[Step], expected: str, found: str) -> str:
    settles = {"claimed": "claim", "discarded": "discard"}
    if found == "expired":
        return "early expiry"
    if expected == NOTHING.phase:
        return "phantom"
    if expected == "expired":
        return "late expiry"
    if found in {"absent", "allocated"}:
        return "lost"
    if expected == "allocated" and settles.get(found) not in {step.kind for step in steps}:
        return "phantom"
    return "resurrected"
