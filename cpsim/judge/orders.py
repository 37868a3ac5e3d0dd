"""In which orders a slot's commands may have been applied, and every state that those orders lead to.

A command comes after another if it was sent when the other had been answered; else they overlap, and either may have
come first. A command that was never answered may have been applied at any later time, or not at all.

The search goes from one set of applied commands, and what the slot was then, to the next: a linearisation search in
the sense of Wing and Gong, remembering what it has seen as Lowe's does. It is bounded.

Pure; times are nanoseconds on the replay's clock.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cpsim.judge.model import START, aged_by, possible_states, taken

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cpsim.judge.model import Branch, SlotState, Span, Step

UNSETTLED: Final = {"absent", "allocated"}
"""A slot in any other phase refuses whatever comes, so only what was accepted must have come before."""
MOST_POSITIONS: Final = 10_000
"""Positions of one search: about half a second of work."""


class TooManyOrders(Exception):
    """So many commands of a slot overlap that not all of their orders were tried."""


def in_order(steps: Iterable[Step]) -> list[Step]:
    """A slot's steps as they were sent."""
    return sorted(steps, key=lambda step: (step.span.earliest_ns, step.over_ns))


def possible(
    steps: Sequence[Step], seen: Span, *, any_order: bool = False, most_positions: int = MOST_POSITIONS
) -> set[SlotState]:
    """Every state in which a slot may be seen after its steps; empty when no order explains the replies.

    Args:
        steps: the slot's operations, as they were sent.
        seen: when the state was looked at.
        any_order: do not mind when commands were sent and answered.
        most_positions: where the search ends without a result.

    Raises:
        TooManyOrders: the search came to its bound.
    """
    steps = [step for step in steps if step.applied is not False]
    if not any_order and all(
        before.applied and before.over_ns <= after.span.earliest_ns for before, after in pairwise(steps)
    ):
        return possible_states(steps, seen)
    waits_for = [0] * len(steps) if any_order else _predecessors(steps)
    needed = sum(1 << place for place, step in enumerate(steps) if step.applied)
    welcome = sum(1 << place for place, step in enumerate(steps) if step.applied and step.accepted)
    positions = [(0, START)]
    known = set(positions)
    ends: set[Branch] = set()
    while positions:
        done, branch = positions.pop()
        settled = branch.fate.phase not in UNSETTLED
        if done & (welcome if settled else needed) == (welcome if settled else needed):
            ends.add(branch)
        if settled:
            continue
        for place, step in enumerate(steps):
            if done >> place & 1 or waits_for[place] & ~done:
                continue
            for after in taken(branch, step):
                position = (done | 1 << place, after)
                if position not in known:
                    known.add(position)
                    positions.append(position)
        if len(known) > most_positions:
            raise TooManyOrders
    return {aged.fate for branch in ends for aged in aged_by(branch, seen)}


def _predecessors(steps: Sequence[Step]) -> list[int]:
    """For each step, the set (as bits) of those that were applied before it. What is unknown need not have been."""
    return [
        sum(
            1 << earlier
            for earlier, before in enumerate(steps[:place])
            if before.applied and before.over_ns <= step.span.earliest_ns
        )
        for place, step in enumerate(steps)
    ]
