"""A malformed number aborts a bulk with an HTML 500; earlier commands stay applied; errors name no command.

So does a command for an unknown slot whose id is not ASCII.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.request import RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, breaks_off=True)
