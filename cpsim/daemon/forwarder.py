"""From the daemon to the accounts of the same process: commands are kept until the next flush."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpdaemon.signing import Call

    Deliver = Callable[[Sequence[Call]], object]

MAX_PENDING: Final = 1_000_000


class Forwarder:
    """Keeps commands in memory and delivers them in order, `flush_interval_s` after the first one came.

    Args:
        deliver: takes one batch; called in the forwarder's thread.
        flush_interval_s: how long the first command of a batch waits for others.
    """

    def __init__(self, deliver: Deliver, flush_interval_s: float) -> None:
        self._deliver = deliver
        self._flush_interval_s = flush_interval_s
        self._calls: list[Call] = []
        self._delivering = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpsim-forwarder", daemon=True)

    @property
    def pending(self) -> int:
        """How many commands have not been delivered."""
        with self._changed:
            return len(self._calls) + self._delivering

    @property
    def is_full(self) -> bool:
        """Whether no more commands should be put."""
        return self.pending >= MAX_PENDING

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def put(self, calls: Sequence[Call]) -> None:
        """Take commands to be delivered."""
        with self._changed:
            self._calls.extend(calls)
            self._changed.notify()

    def stop(self) -> None:
        """Deliver what is left, without waiting for the interval, and end."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _gather(self) -> None:
        """Wait for what is to go with the first command."""
        self._stopping.wait(self._flush_interval_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._stopping.is_set():
                    self._changed.wait()
            if self._calls:
                self._gather()
            with self._changed:
                calls, self._calls = self._calls, []
                self._delivering = len(calls)
            if not calls:
                return
            self._deliver(calls)
            self._delivering = 0
