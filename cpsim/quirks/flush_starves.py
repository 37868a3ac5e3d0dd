"""Every command delays the flush, until more than 5,000 are queued.

A batch has then no limit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cpsim.quirks.policies.delivery import DeliveryPolicy

STARVED_COMMANDS: Final = 5_000


def delivery(delivery: DeliveryPolicy) -> DeliveryPolicy:
    """Return how the courier delivers with it."""
    return replace(delivery, restarts=True, full=STARVED_COMMANDS + 1)
