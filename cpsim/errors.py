"""Errors that the user can fix: printed as one line, without a traceback."""

from __future__ import annotations

import traceback

from cpdaemon.errors import CreditPiggyError


class CpsimError(Exception):
    """An error that the user can fix; the message names the object, the fault and the fix."""


class UsageError(CpsimError):
    """A request that is malformed or cannot be granted; the command line exits with status 64."""


def reason(error: BaseException) -> str:
    """An exception's message in one line; Python's out-of-memory error has none of its own."""
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {message}" if message else "out of memory"
    return message


def in_one_line(error: BaseException) -> str:
    """An exception's message in one line; an unexpected exception adds its type and the line that raised it."""
    message = " ".join(str(error).split())
    if isinstance(error, (CpsimError, CreditPiggyError)) and message:
        return message
    if isinstance(error, MemoryError):
        return reason(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    where = f"{frame.f_globals.get('__name__')}, line {line}"
    return f"{type(error).__name__}{message and ': '}{message} ({where})"
