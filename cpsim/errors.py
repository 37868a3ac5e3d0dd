"""What goes wrong for reasons the user can mend: shown as one message, without a traceback."""

from __future__ import annotations

import traceback

from cpdaemon.errors import CreditPiggyError


class CpsimError(Exception):
    """Something the user can mend; the message names the thing, what is wrong with it, and what to do."""


class UsageError(CpsimError):
    """A wish that is not said as it has to be, or that nothing could grant; on the command line, exit status 64."""


def in_one_line(error: BaseException) -> str:
    """What an exception says, in one line; one that nobody foresaw says its type and where it was raised, too."""
    said = " ".join(str(error).split())
    if isinstance(error, (CpsimError, CreditPiggyError)) and said:
        return said
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    where = f"{frame.f_globals.get('__name__')}, line {line}"
    return f"{type(error).__name__}{said and ': '}{said} ({where})"
