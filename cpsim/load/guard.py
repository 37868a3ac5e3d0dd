"""Handling of exceptions under Locust, which would log them and leave other processes waiting."""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING, Final

from cpsim.errors import in_one_line

if TYPE_CHECKING:
    from collections.abc import Callable

FAILED: Final = 2
LOGGER: Final = logging.getLogger(__name__)


def guarded(listener: Callable[..., object], fail: Callable[[str], object]) -> Callable[..., None]:
    """A listener whose exceptions go to `fail` as one line, and as a traceback to the log at level DEBUG."""

    @wraps(listener)
    def wrapper(**named: object) -> None:
        try:
            listener(**named)
        except Exception as error:
            LOGGER.debug("this exception ends the run", exc_info=True)
            fail(in_one_line(error))

    return wrapper
