"""What a process of our own, which only serves, is set to."""

from __future__ import annotations

import gc
import resource
from contextlib import suppress
from typing import Final

GARBAGE_THRESHOLD: Final = 200_000
"""A ledger is millions of objects and no cycles: looking through them for garbage more often is wasted time."""
MOST_FILES: Final = (65_536, 10_240)
"""What is asked for; macOS grants no more than the second."""


def settle_in() -> None:
    """Keep the garbage collector off what lasts, and allow many connections."""
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in MOST_FILES:
        if soft != resource.RLIM_INFINITY and soft < wanted and (hard == resource.RLIM_INFINITY or wanted <= hard):
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return
