"""The errors of a bulk reply are ignored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.delivery import DeliveryPolicy


def delivery(delivery: DeliveryPolicy) -> DeliveryPolicy:
    """Return how the courier delivers with it."""
    return replace(delivery, sees_errors=False)
