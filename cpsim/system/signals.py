"""Signals of a process that serves: which end it, and which have it read its files again."""

from __future__ import annotations

import os
import signal
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ENDING: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals at which a server delivers what it has, and ends."""
END: Final = "end"


class Signals:
    """The signals of this process from now on, for its main thread.

    SIGINT and SIGTERM end it. SIGHUP has it read its files again, unless its terminal was closed, which ends it.
    """

    def __init__(self) -> None:
        self._came: SimpleQueue[str] = SimpleQueue()  # which a handler may use wherever it interrupts
        is_closed = terminal_watch()
        for number in ENDING:
            signal.signal(number, lambda *_: self.end())
        signal.signal(signal.SIGHUP, lambda *_: self._came.put(END if is_closed() else "hangup"))

    def end(self) -> None:
        """End it, as a signal would; from any thread."""
        self._came.put(END)

    def wait(self, read_again: Callable[[], object]) -> None:
        """Return when it is to end, and call a function at each SIGHUP until then."""
        while self._came.get() != END:
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
