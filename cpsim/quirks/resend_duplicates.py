"""A batch whose reply was lost is resent whole; counters double.

It is resent after ten seconds, or with the next command; no batch has an id.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cpsim.quirks.policies.delivery import DeliveryPolicy

RETRY_S: Final = 10.0


def delivery(delivery: DeliveryPolicy) -> DeliveryPolicy:
    """Return how the courier delivers with it."""
    return replace(delivery, retry_s=RETRY_S)
