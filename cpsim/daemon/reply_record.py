"""What a daemon has replied, and how long that took, for its metrics."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cpsim.metrics.duration_buckets import DurationBuckets

if TYPE_CHECKING:
    from cpsim.daemon.link import FrameConnection


class ReplyRecord:
    """Counts of replies.

    Attributes:
        counts: the number of replies, lost ones included, by kind of the command ("" if it is refused) and reply, as
            it was sent.
        latency: from the first bytes of a frame to its reply.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bytes]] = Counter()
        self.latency = DurationBuckets()

    def count(self, connection: FrameConnection, reply: bytes) -> None:
        """Count a reply."""
        self.counts[connection.call[0] if connection.call else "", reply] += 1

    def measure(self, connection: FrameConnection, now_s: float) -> None:
        """Count how long a reply took that is sent now; what a fault sends before it is none."""
        if connection.answered and connection.since_s is not None:
            self.latency.observe(now_s - connection.since_s)
