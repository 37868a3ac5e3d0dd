"""Accounts that a program prints as JSON lines."""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from cpsim.accounts.lines import json_rows
from cpsim.accounts.observer import CannotObserve
from cpsim.accounts.view import UnfitTable, View
from cpsim.config.catalog import find, names
from cpsim.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

PROGRAMS: Final = "reports/accounts/programs"
"""The content among which there are programs."""
PIECE_BYTES: Final = 1 << 20
STDERR_BYTES: Final = 2_000
"""What is kept of what a program prints on standard error: its end."""


class ProgramSource:
    """A program that prints the accounts as JSON lines, as `ledger.jsonl` has them, and ends with status 0.

    It gets this process's environment, no input, and a group of processes of its own, which is killed when it has
    ended, has printed nothing for too long, or is no longer wanted.

    Args:
        command: the program and its arguments, quoted as in a shell, which is not started; or the name of one that
            comes with the project.

    Raises:
        UsageError: there is no command, or its quotes are not closed.
    """

    def __init__(self, command: str) -> None:
        self._text = command
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"program:{command} cannot be split into words: {error}") from error
        if not self._words:
            raise UsageError("program: names no program: write program:COMMAND")
        if command in names(PROGRAMS):
            self._words = [sys.executable, str(find(PROGRAMS, command))]

    def __str__(self) -> str:
        return f"program:{self._text}"

    def read(self, pause_s: float) -> View:
        """Run it, and read what it prints."""
        try:
            with _running(self._words) as process:
                output = _Output(process, pause_s)
                try:
                    return View.of_lines(json_rows(output.lines()))
                except UnfitTable as error:
                    raise CannotObserve(f"{self}: {error}{output.complaint()}") from error
                except _Failed as error:
                    raise CannotObserve(f"{self} {error}{output.complaint()}") from error
        except OSError as error:
            raise CannotObserve(f"{self} cannot be run: {error.filename or ''}: {error.strerror}") from error


class _Failed(Exception):
    """The program printed nothing for too long, or its status is not 0."""


class _Output:
    """What a program prints, both streams at once, so that neither fills up."""

    def __init__(self, process: subprocess.Popen[bytes], pause_s: float) -> None:
        self._process = process
        self._pause_s = pause_s
        self._errors = b""

    def lines(self) -> Iterator[bytes]:
        """The lines of its standard output. Raises _Failed."""
        rest = b""
        for piece in self._pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        yield rest

    def complaint(self) -> str:
        """The last line that it has printed on standard error, if any, for a message."""
        lines = self._errors.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"; it says: {last}" if last else ""

    def _pieces(self) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(self._pause_s)
                if not ready:
                    raise _Failed(f"printed nothing for {self._pause_s:g} s")
                for key, _ in ready:
                    piece = os.read(key.fd, PIECE_BYTES)
                    if not piece:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._process.stdout:
                        yield piece
                    else:
                        self._errors = (self._errors + piece)[-STDERR_BYTES:]
        try:
            status = self._process.wait(self._pause_s)
        except subprocess.TimeoutExpired:
            raise _Failed(f"closed its output, and did not end for {self._pause_s:g} s") from None
        if status:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise _Failed(how)


@contextmanager
def _running(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program, in a group of its own, of which nothing is left at the end."""
    process = subprocess.Popen(  # noqa: S603 - the user's own
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        streams: tuple[IO[bytes] | None, ...] = (process.stdout, process.stderr)
        for stream in streams:
            if stream is not None:
                stream.close()
