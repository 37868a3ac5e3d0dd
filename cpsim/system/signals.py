"""Signals of a process that serves: which end it, and which have it read its files again."""

from __future__ import annotations

import math
import os
import signal
import socket
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from cpsim.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

ENDING: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals at which a server delivers what it has, and ends."""
END: Final = b"\0"
"""What ends it without a signal; signals have other numbers."""


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """While the context lasts, SIGTERM raises KeyboardInterrupt in the main thread, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Signals:
    """The signals of this process while the context lasts, for its main thread.

    SIGINT and SIGTERM end it. SIGHUP has it read its files again, unless its terminal was closed, which ends it.

    Args:
        others: further signals that end it.
    """

    def __init__(self, *others: signal.Signals) -> None:
        self._ending = {*ENDING, *others}
        self._undo = ExitStack()
        self._is_closed = terminal_watch()
        self._came, self._wake = socket.socketpair()

    def __enter__(self) -> Self:
        for end in (self._came, self._wake):
            self._undo.enter_context(end)
        self._wake.settimeout(0)
        # the main thread, which waits, may not be the one that a signal interrupts
        before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in (*self._ending, signal.SIGHUP):
            self._undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def end(self) -> None:
        """End it, as a signal would; from any thread."""
        self._wake.send(END)

    def wait(
        self,
        read_again: Callable[[], object],
        timeout_s: float | None = None,
        every_s: float | None = None,
        regularly: Callable[[], object] = tuple,
    ) -> int:
        """Return when it is to end; until then, call functions.

        Args:
            read_again: called at each SIGHUP.
            timeout_s: longest wait, in seconds; None for any.
            every_s: time between two calls of the next, in seconds; None for none.
            regularly: called so often.

        Returns:
            The signal that ends it; 0 for none: `end` was called, or the timeout passed.
        """
        now_s = SYSTEM_CLOCK.monotonic
        end_s = math.inf if timeout_s is None else now_s() + timeout_s
        due_s = math.inf if every_s is None else now_s() + every_s
        while True:
            left_s = min(end_s, due_s) - now_s()
            self._came.settimeout(None if left_s == math.inf else max(0, left_s))
            number: int | None = None
            with suppress(TimeoutError, BlockingIOError):
                (number,) = self._came.recv(1)
            if number is None and now_s() >= end_s:
                return 0
            if every_s is not None and now_s() >= due_s:
                due_s = now_s() + every_s
                regularly()
            if number in {*END, *self._ending} or (number == signal.SIGHUP and self._is_closed()):
                return number or 0
            if number == signal.SIGHUP:
                read_again()


def terminal_watch() -> Callable[[], bool]:
    """Return a function that says at SIGHUP whether that came because the terminal of this process was closed.

    It never did where there was none, or where `nohup` has the signal ignored.
    """
    had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
    return lambda: had_terminal and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
