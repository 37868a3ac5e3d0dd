"""Which known quirk explains what is wrong with a slot: only one whose trigger was seen in the run."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.endpoint import UrlEndpoint
from cpsim.judge.model import MODELLED, NO_QUIRKS, Quirks
from cpsim.judge.orders import MOST_POSITIONS, TooManyOrders, possible_branches

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Self

    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.model import Branch, SlotState, Span, Step

LISTS_CLAIMED: Final = "slots-list-claimed"
"""A quirk of what is listed, not of a slot's state."""
BY_FAULT: Final = {
    "drop-on-error": {"status", "not-json"},
    "resend-duplicates": {"lose-reply", "cut", "close", "reset", "hang", "late", "rate"},
    "ack-before-delivery": {"crash-after-ok", "crash-after-commit", "crash-before-ok"},
}
"""The faults that trigger a quirk of a daemon: a batch not answered 200, a reply lost, a death."""
BREAKING: Final = frozenset({"reclaim", "claim-settled", "discard-settled", "counters-settled", "slots-vanish"})
"""Quirks with which the sums of the accounts are other than the slots show."""


class Suspects(NamedTuple):
    """Quirks that could show in a run: those that the user says are `known`, and all that are `possible`."""

    known: Quirks = NO_QUIRKS
    possible: Quirks = NO_QUIRKS

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """The suspects of a run."""
        possible_ones = _triggered(evidence)
        return cls(evidence.quirks & possible_ones, possible_ones)


def _triggered(evidence: Evidence) -> Quirks:
    """The quirks that could show in a run: those of a daemon only behind one, and where their trigger was seen."""
    fired = {str(firing["action"]) for firing in evidence.firings}
    of_daemons = {"reorder-classes", *BY_FAULT}
    behind = not isinstance(evidence.endpoint, UrlEndpoint)
    return frozenset(
        name
        for name in MODELLED
        if (name not in of_daemons or (behind and (name not in BY_FAULT or BY_FAULT[name] & fired)))
        and (name != "slots-vanish" or (evidence.workload.owner >= 0).any())
        and (name != "global-slot-ids" or len(evidence.workload.projects) > 1)
    )


def fitting_histories(
    steps: Sequence[Step],
    seen: Span,
    found: SlotState | None,
    quirks: Quirks,
    *,
    most_positions: int = MOST_POSITIONS,
    hidden: Collection[str] = (),
) -> list[Branch]:
    """The histories of a slot, with quirks, that end in the state in which it was found.

    The arguments are those of `explanation`.

    Raises:
        TooManyOrders: the search reached its bound.
    """
    any_order = "reorder-classes" in quirks
    ends = possible_branches(steps, seen, any_order=any_order, most_positions=most_positions, quirks=quirks)
    return [branch for branch in ends if found is None or branch.state.without(hidden) == found]


def explanation(
    steps: Sequence[Step],
    seen: Span,
    found: SlotState | None,
    quirks: Quirks,
    *,
    most_positions: int = MOST_POSITIONS,
    hidden: Collection[str] = (),
) -> str:
    """The quirk that explains a slot's state and the replies to its commands, or the fewest together; "" for none.

    Args:
        steps: the slot's operations, in the order of sending.
        seen: when the state was read.
        found: the state; None if it was not seen, and the replies are all that there is.
        quirks: the names to try.
        most_positions: where a search for orders ends without a result.
        hidden: fields of the state that were not seen.
    """

    def explains(names: Quirks) -> bool:
        with suppress(TooManyOrders):
            return bool(fitting_histories(steps, seen, found, names, most_positions=most_positions, hidden=hidden))
        return False

    for name in sorted(quirks):
        if explains(frozenset({name})):
            return name
    if len(quirks) < 2 or not explains(quirks):
        return ""
    needed = quirks
    for name in sorted(quirks):
        if explains(needed - {name}):
            needed -= {name}
    return " + ".join(sorted(needed))
