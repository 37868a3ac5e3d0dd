"""Threads whose failures are reported."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

log = logging.getLogger(__name__)

_callbacks: list[Callable[[ThreadFailed], object]] = []


def in_sequence(loops: Sequence[Callable[[Callable[[], object]], object]], then: Callable[[], object]) -> None:
    """Call a function once each of several loops, one after the other, has called what it was given."""
    if loops:
        loops[0](lambda: in_sequence(loops[1:], then))
    else:
        then()


class ThreadFailed(CpsimError):
    """An unexpected error ended a thread, so its work is no longer done."""


class Thread(threading.Thread):
    """A daemon thread. The error that ends it is logged, passed to `on_thread_failure`, and raised by `check`.

    Args:
        target: what it does.
        name: what it is called in messages.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Run the target."""
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Report an unexpected error, whether or not it ends the thread."""
        if self._failure is None:
            self._failure = error
        if isinstance(error, CpsimError):
            log.critical("%s", error)
        else:
            log.critical("thread %s failed", self.name, exc_info=error)
        for notify in _callbacks[:]:
            notify(self._failed(error))

    def check(self) -> None:
        """Raise ThreadFailed if the thread has failed."""
        if self._failure is not None:
            raise self._failed(self._failure) from self._failure

    def _failed(self, error: BaseException) -> ThreadFailed:
        if isinstance(error, CpsimError):
            return ThreadFailed(str(error))
        return ThreadFailed(f"thread {self.name} failed: {type(error).__name__}: {reason(error)}")


@contextmanager
def on_thread_failure(notify: Callable[[ThreadFailed], object]) -> Iterator[None]:
    """Call a function in the failing thread when a thread fails, while the context lasts."""
    _callbacks.append(notify)
    try:
        yield
    finally:
        _callbacks.remove(notify)
