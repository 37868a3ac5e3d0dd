"""A batch answered with anything but 200 and result: ok is dropped.

So is one whose reply breaks off behind its status; a redirection is followed, by GET, and then dropped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpdaemon.errors import CreditPiggyError
    from cpsim.quirks.policies.delivery import DeliveryPolicy


def delivery(delivery: DeliveryPolicy) -> DeliveryPolicy:
    """Return how the courier delivers with it."""
    return replace(delivery, settles=_is_answered, follows=True)


def _is_answered(error: CreditPiggyError) -> bool:
    return error.answered
