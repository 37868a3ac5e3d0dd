"""What a process of our own is set to: one that only serves, or, for a while, one that measures."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

GARBAGE_THRESHOLD: Final = 200_000
"""A ledger is millions of objects and no cycles: looking through them for garbage more often is wasted time."""
MOST_FILES: Final = (65_536, 10_240)
"""What is asked for; macOS grants no more than the second."""

SWITCH_S: Final = 0.0005
"""After which a thread that draws progress gives the interpreter back to the one that measures."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Have neither the garbage collector nor another thread hold this one up for long, while the context lasts."""
    thresholds, interval_s = gc.get_threshold(), sys.getswitchinterval()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


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
