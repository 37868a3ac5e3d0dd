"""A token with %2C for commas is 400, an unknown algorithm of an unknown project 401.

A project whose id has a capital letter can never sign in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.quirks.policies.request import RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, strict=True)
