"""The anomalies by name, and which one a slot shows: the first fault that explains its state."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cpsim.judge.model import NOTHING, START, SlotState, branches_after, branches_at, possible_states
from cpsim.judge.orders import TooManyOrders, possible

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from cpsim.judge.model import Branch, Span, Step

ANOMALIES: Final = {
    "lost": "As if commands that were accepted, or parts of them, had never been sent.",
    "duplicated": "As if a command had been applied twice.",
    "reordered": "As if the same commands had been applied in another order than they were sent in.",
    "altered": "In the right state, but with other values than the commands gave.",
    "over-credited": "More was granted or earned than the protocol grants.",
    "under-credited": "Less was granted or earned than the protocol grants.",
    "leaked": "A slot or credit of one project is in another.",
    "resurrected": "Settled, and then changed, settled again, or open again.",
    "early expiry": "Expired before its time.",
    "late expiry": "Not expired, or still accepting commands, after its time.",
    "phantom": "In a state that no command sent can cause.",
    "wrongly refused": "A command was refused that the protocol accepts.",
    "wrongly accepted": "A command was accepted that the protocol refuses.",
    "contradiction": "The replies to its commands cannot all be true, in whatever order they were applied.",
    "not conserved": "Claims granted another sum than machines earned, or than users have and waits.",
}
"""Each anomaly and what it means. A slot is given the first name that explains its state."""

MOST_STEPS: Final = 10
"""The most steps of a slot whose state is explained by faults: their subsets are many."""
MOST_EXPLAINED: Final = 3_000
"""Slots whose state is explained, at a few milliseconds each; further slots are named by their differences alone."""
NEVER_MIN: Final = 10**12


def name_of(
    steps: Sequence[Step],
    seen: Span,
    expected: SlotState,
    found: SlotState,
    *,
    explain: bool = True,
    hidden: Collection[str] = (),
) -> str:
    """The name of the anomaly that explains a slot's wrong state.

    Args:
        steps: the slot's operations, in the order of sending.
        seen: when the state was read.
        expected: the likeliest of the allowed states.
        found: the state of the slot.
        explain: whether to try faults, or only compare fields.
        hidden: fields of the state that were not seen; the states given are without them.
    """
    if explain and len(steps) <= MOST_STEPS:
        for name, explained in _explanations(steps, seen):
            if found in explained or (hidden and found in {state.without(hidden) for state in explained}):
                return name
    if expected.phase != found.phase:
        return _name_of_phases(steps, expected.phase, found.phase)
    if expected.granted != found.granted:
        return "over-credited" if (found.granted or 0) > (expected.granted or 0) else "under-credited"
    if expected.machine != found.machine or expected.reason != found.reason:
        return "altered"
    return "lost" if found.counters <= expected.counters and found.meta <= expected.meta else "altered"


def contradiction(steps: Sequence[Step], seen: Span, found: SlotState | None) -> tuple[str, str]:
    """The name and the sentence of an anomaly in replies that no order explains.

    Args:
        steps: the slot's operations, in the order of sending.
        seen: when the state was read.
        found: the state of the slot, or None if it is unknown.
    """
    ends = {state.phase for state in possible_states([step for step in steps if step.kind == "alloc"], seen)}
    if found is not None and found.phase == "expired" and ends == {"allocated"}:
        return "early expiry", "expired, and refused commands, before its time"
    branches = {START}
    for step in steps:
        after = {later for branch in branches for later in branches_after(branch, step)}
        if not after:
            return _false_reply(step, {aged for branch in branches for aged in branches_at(branch, step.span)})
        branches = after
    return "contradiction", "the replies to its commands contradict the protocol, in whatever order they were applied"


def _explanations(steps: Sequence[Step], seen: Span) -> Iterator[tuple[str, set[SlotState]]]:
    """Each anomaly with the states that it leads to."""
    without_replies = [step._replace(accepted=None) for step in steps]
    effective = [step._replace(applied=None) for step in _steps_with_effect(without_replies)]
    yield "lost", possible_states(effective, seen)
    for place, step in enumerate(without_replies):
        yield "duplicated", possible_states([*without_replies[: place + 1], step, *without_replies[place + 1 :]], seen)
    yield "duplicated", possible_states([*without_replies, *without_replies], seen)
    yield "duplicated", possible_states([again for step in without_replies for again in (step, step)], seen)
    if any(step.accepted is False for step in steps):
        yield (
            "resurrected",
            possible_states(sorted(without_replies, key=lambda step: step.kind in {"claim", "discard"}), seen),
        )
    with suppress(TooManyOrders):
        yield "reordered", possible(steps, seen, any_order=True)
    yield "late expiry", possible_states([_never_expiring(step) for step in without_replies], seen)


def _steps_with_effect(steps: Sequence[Step]) -> list[Step]:
    """The steps that changed the slot, or may have."""
    branches: set[Branch] = {START}
    effective = []
    for step in steps:
        aged = {alive for branch in branches for alive in branches_at(branch, step.span)}
        after = {later for branch in branches for later in branches_after(branch, step)}
        if after - aged:
            effective.append(step)
        branches = after
    return effective


def _never_expiring(step: Step) -> Step:
    return step._replace(arguments={**step.arguments, "expire": NEVER_MIN}) if step.kind == "alloc" else step


def _false_reply(step: Step, before: set[Branch]) -> tuple[str, str]:
    """The name and the sentence of an anomaly in a reply that no state of the slot explains."""
    phases = {branch.state.phase for branch in before}
    was = " or ".join(sorted(phases))
    if not step.accepted:
        return "wrongly refused", f"its {step.kind} was refused, though the slot was {was}"
    said = f"its {step.kind} was accepted, though the slot was {was}"
    if phases == {"expired"}:
        return "late expiry", said
    if phases & {"claimed", "discarded", "expired"}:
        return "resurrected", said
    return "wrongly accepted", said


def _name_of_phases(steps: Sequence[Step], expected: str, found: str) -> str:
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
