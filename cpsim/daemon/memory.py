"""The queue of a daemon without a spool: commands in memory."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from cpsim.daemon.spool import MAX_BATCH, MAX_COMMANDS, Batch, batch_id_of, fitting, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpdaemon.signing import Call
    from cpsim.daemon.failed import FailedCommand


class MemorySpool:
    """The interface of `Spool` to a courier, without a file; failed commands are only logged."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._open: Batch | None = None
        self._sender = uuid.uuid4().hex
        self._sequence = 0
        self.delivered_to = self.released_to = 0
        self.released = threading.Condition()
        self.wakes_always = False
        """Whether each command that comes notifies `released`."""

    @property
    def pending(self) -> int:
        """Number of commands that have not been delivered."""
        return self.released_to - self.delivered_to

    ready = pending

    @property
    def is_full(self) -> bool:
        """Whether the queue should get no more commands."""
        return self.pending >= MAX_COMMANDS

    def put(self, calls: Sequence[Call]) -> None:
        """Append commands, which may be delivered at once."""
        with self.released:
            before = self.ready
            self._calls.extend(calls)
            self.released_to += len(calls)
            if before == 0 or self.ready >= MAX_BATCH or self.wakes_always:
                self.released.notify_all()

    def take(
        self, size: int = MAX_BATCH, *, in_order: bool = True, careful: bool = False, named: bool = True
    ) -> Batch | None:
        """Return the next batch: see `Spool.take`."""
        if self._open is not None:
            return replace(self._open, resumed=True)
        with self.released:
            calls = list(islice(self._calls, size))
        if not calls:
            return None
        calls = calls[: fitting(calls, in_order=in_order, careful=careful)]
        commands = [(position, text_of(call)) for position, call in enumerate(calls, self.delivered_to + 1)]
        self._sequence += 1
        batch_id = batch_id_of(self._sender, self._sequence)
        self._open = Batch(batch_id, self.delivered_to + len(calls), commands, calls, named)
        return self._open

    def put_back(self) -> None:
        """See `Spool.put_back`."""
        self._open = None

    def settle(self, batch: Batch, failed: Sequence[FailedCommand], unnamed: int = 0) -> None:
        """See `Spool.settle`."""
        del failed, unnamed
        with self.released:
            for _ in batch.commands:
                self._calls.popleft()
            self._open = None
            self.delivered_to = batch.last

    def clear(self) -> None:
        """See `Spool.clear`."""
        with self.released:
            self._calls.clear()
            self._open = None
            self.delivered_to = self.released_to

    def count_retry(self) -> None:
        """See `Spool.count_retry`."""

    def report_outage(self, error: str | None, since_us: int) -> None:
        """See `Spool.report_outage`."""
