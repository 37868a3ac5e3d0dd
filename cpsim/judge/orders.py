"""The orders in which a slot's commands may have been applied, and the states that they lead to.

A command comes after another if it was sent after the other's answer; else the two overlap, and either may come
first. A command that was never answered may have been applied at any later time, or not at all.

A position is a set of applied commands and the slot's branch. The search over positions is the linearisation search
of Wing and Gong, with the cache of Lowe. It is bounded.

Pure; times are nanoseconds on the replay's clock.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cpsim.judge.model import NO_QUIRKS, START, branches_after, branches_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cpsim.judge.model import Branch, Quirks, SlotState, Span, Step

UNSETTLED: Final = {"absent", "allocated"}
"""A slot in any other phase refuses every command, so only accepted commands must have come before."""
MOST_POSITIONS: Final = 10_000
"""Positions of one search: about half a second of work."""


class TooManyOrders(Exception):
    """Too many commands of a slot overlap to try all of their orders."""


def in_order(steps: Iterable[Step]) -> list[Step]:
    """A slot's steps in the order of sending."""
    return sorted(steps, key=lambda step: (step.span.earliest_ns, step.over_ns))


def possible(
    steps: Sequence[Step],
    seen: Span,
    *,
    any_order: bool = False,
    most_positions: int = MOST_POSITIONS,
    quirks: Quirks = NO_QUIRKS,
) -> set[SlotState]:
    """The states in which a slot may be after its steps; empty if no order explains the replies.

    The arguments and errors are those of `possible_branches`.
    """
    found = possible_branches(steps, seen, any_order=any_order, most_positions=most_positions, quirks=quirks)
    return {branch.state for branch in found}


def possible_branches(
    steps: Sequence[Step],
    seen: Span,
    *,
    any_order: bool = False,
    most_positions: int = MOST_POSITIONS,
    quirks: Quirks = NO_QUIRKS,
) -> set[Branch]:
    """The histories that a slot may have had; none if no order explains the replies.

    Args:
        steps: the slot's operations, in the order of sending.
        seen: when the state was read.
        any_order: whether to ignore the times of sending and answering.
        most_positions: positions after which the search ends without a result.
        quirks: names of the quirks that the system may have.

    Raises:
        TooManyOrders: the search reached its bound.
    """
    steps = [step for step in steps if step.applied is not False]
    if not any_order and all(
        before.applied and before.over_ns <= after.span.earliest_ns for before, after in pairwise(steps)
    ):
        branches = {START}
        for step in steps:
            branches = {after for branch in branches for after in branches_after(branch, step, quirks)}
            if len(branches) > most_positions:
                raise TooManyOrders
        return {aged for branch in branches for aged in branches_at(branch, seen, quirks)}
    waits_for = [0] * len(steps) if any_order else _predecessors(steps)
    needed = sum(1 << place for place, step in enumerate(steps) if step.applied)
    accepted = sum(1 << place for place, step in enumerate(steps) if step.applied and step.accepted)
    positions = [(0, START)]
    known = set(positions)
    ends: set[Branch] = set()
    while positions:
        done, branch = positions.pop()
        settled = branch.state.phase not in UNSETTLED and not quirks
        if done & (accepted if settled else needed) == (accepted if settled else needed):
            ends.add(branch)
        if settled:
            continue
        for place, step in enumerate(steps):
            if done >> place & 1 or waits_for[place] & ~done:
                continue
            for after in branches_after(branch, step, quirks):
                position = (done | 1 << place, after)
                if position not in known:
                    known.add(position)
                    positions.append(position)
        if len(known) > most_positions:
            raise TooManyOrders
    return {aged for branch in ends for aged in branches_at(branch, seen, quirks)}


def _predecessors(steps: Sequence[Step]) -> list[int]:
    """For each step, the set (as bits) of the steps applied before it. A step of unknown outcome is in no set."""
    return [
        sum(
            1 << earlier
            for earlier, before in enumerate(steps[:place])
            if before.applied and before.over_ns <= step.span.earliest_ns
        )
        for place, step in enumerate(steps)
    ]
