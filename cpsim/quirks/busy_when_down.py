"""With the server unreachable and 5,000 commands queued, every loop turn retries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cpsim.quirks.policies.delivery import DeliveryPolicy

BUSY_COMMANDS: Final = 5_000


def delivery(delivery: DeliveryPolicy) -> DeliveryPolicy:
    """Return how the courier delivers with it."""
    return replace(delivery, busy=BUSY_COMMANDS)
