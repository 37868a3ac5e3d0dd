"""Commands are grouped by class; their order across classes is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpdaemon.signing import Call
    from cpsim.quirks.policies.delivery import DeliveryPolicy


def delivery(delivery: DeliveryPolicy) -> DeliveryPolicy:
    """Return how the courier delivers with it."""
    return replace(delivery, order=_by_class)


RANK: Final = {kind: rank for rank, kind in enumerate(KINDS)}


def _by_class(calls: Sequence[Call]) -> list[int]:
    return sorted(range(len(calls)), key=lambda place: RANK[calls[place][0]])
