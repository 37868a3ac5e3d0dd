"""Threads of cpsim's own, none of which ends unseen."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_notified: list[Callable[[ThreadFailed], object]] = []


class ThreadFailed(CpsimError):
    """A thread met an error that nobody expected, so that what it does is not done any more."""


class Thread(threading.Thread):
    """A daemon thread. The error that ends it is logged, told to whoever is `notified`, and raised by `check`.

    Args:
        target: what it does.
        name: what it is called in messages.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Do what the thread is for."""
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Note an error that nobody expected, whether or not it ends the thread."""
        if self._failure is None:
            self._failure = error
        log.critical("thread %s failed", self.name, exc_info=error)
        for notify in _notified[:]:
            notify(self._failed(error))

    def check(self) -> None:
        """Raise ThreadFailed if the thread has failed."""
        if self._failure is not None:
            raise self._failed(self._failure) from self._failure

    def _failed(self, error: BaseException) -> ThreadFailed:
        return ThreadFailed(f"thread {self.name} failed: {type(error).__name__}: {error}")


@contextmanager
def notified(notify: Callable[[ThreadFailed], object]) -> Iterator[None]:
    """Have a function called when a thread fails, in that thread, while the context lasts."""
    _notified.append(notify)
    try:
        yield
    finally:
        _notified.remove(notify)
