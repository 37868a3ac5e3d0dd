"""What a daemon has replied, and how long that took, for its metrics."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

from cpsim.metrics.duration_buckets import DurationBuckets, DurationCounts

if TYPE_CHECKING:
    from cpsim.daemon.link import FrameConnection

T = TypeVar("T")
A_BATCH: Final = 256
"""Replies that are noted before they are counted."""


class ReplyRecord:
    """Counts replies, those included that a fault keeps from the client: noted one by one, and counted in batches.

    One thread notes and counts, any thread reads.
    """

    def __init__(self) -> None:
        self._kinds: defaultdict[bytes, list[str]] = defaultdict(list)
        self._times_s: list[float] = []
        self._counts: Counter[tuple[str, bytes]] = Counter()
        self._latency = DurationBuckets()
        self._lock = threading.Lock()

    def note(self, connection: FrameConnection, reply: bytes, now_s: float) -> None:
        """Note a reply that is given now."""
        self._kinds[reply].append(connection.call[0] if connection.call else "")
        self._times_s.append(now_s - connection.since_s)

    def count(self) -> None:
        """Count what was noted, once there is enough of it."""
        if len(self._times_s) >= A_BATCH:
            self.read()

    def read(self) -> tuple[dict[tuple[str, bytes], int], DurationCounts]:
        """Return the number of replies by kind of the command ("" if it was refused) and reply, and their times.

        A time is that from the first bytes of a frame to its reply.
        """
        with self._lock:
            for reply, kinds in list(self._kinds.items()):
                for kind, count in Counter(_taken(kinds)).items():
                    self._counts[kind, reply] += count
            self._latency.observe_all(_taken(self._times_s))
            return dict(self._counts), self._latency.read()


def _taken(noted: list[T]) -> list[T]:
    """Take out what a list has now; another thread may append to it meanwhile."""
    taken = noted[:]
    del noted[: len(taken)]
    return taken
