"""A command that runs inside this process's life: it gets the signals, and ends with this process's parent."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final

from cpsim.errors import CpsimError
from cpsim.system.signals import ENDING
from cpsim.system.threads import Thread, ThreadFailed, on_thread_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from cpsim.clock import Clock

WATCH_S: Final = 0.2
"""How often the parent is looked for."""
GRACE_S: Final = 5.0
"""Time for a command to end by SIGTERM, before it is killed."""
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""The statuses by which shells say so."""


class CannotExecute(CpsimError):
    """There is no such command, or it cannot be executed; `status` is that of shells."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    clock: Clock,
    parent: Callable[[], int] = os.getppid,
) -> int:
    """Run a command until it ends; returns its exit status, or 128 and the number of the signal that ended it.

    SIGTERM, SIGHUP and SIGINT are passed on, except for Ctrl-C at a terminal, which the command gets anyway. When this
    process's parent ends, the command is terminated, and killed if it has not ended in `GRACE_S`, unless nohup has
    SIGHUP ignored. It is terminated, too, when a thread of this process fails.

    Args:
        command: the program and its arguments.
        environment: of the command.
        clock: by which the parent is looked for.
        parent: returns the id of this process's parent, or another once it has ended.

    Raises:
        CannotExecute: the command cannot be started.
    """
    has_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    signals = (*ENDING, signal.SIGHUP) if has_hangup else ENDING
    original = parent() if has_hangup else None
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []
    failures: list[ThreadFailed] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if process is None:
            early.append(number)
        elif number != signal.SIGINT or not _is_in_foreground():
            process.send_signal(number)

    def is_over() -> bool:
        return bool(failures) or original not in {None, parent()}

    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        with on_thread_failure(failures.append):
            process = _started(command, environment)
            for number in early:
                process.send_signal(number)
            Thread(partial(_end_once, is_over, process, clock), "cpsim-parent").start()
            status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _started(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, env=dict(environment))  # noqa: S603 - the user's own
    except OSError as error:
        status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        raise CannotExecute(f"{command[0]}: {error.strerror}", status) from error


def _end_once(is_over: Callable[[], bool], process: subprocess.Popen[bytes], clock: Clock) -> None:
    """End a process once something is over, unless it ends by itself."""
    while process.poll() is None and not is_over():
        clock.sleep(WATCH_S)
    process.terminate()
    until_s = clock.monotonic() + GRACE_S
    while process.poll() is None and clock.monotonic() < until_s:
        clock.sleep(WATCH_S)
    process.kill()


def _is_in_foreground() -> bool:
    """Whether the terminal sends its signals to this process's group, and so to the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
