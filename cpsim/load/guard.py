"""What becomes of an exception under Locust, which would log it and leave the others waiting."""

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
    """A listener whose exceptions are given to `fail`, as one line; the traceback is logged at level DEBUG."""

    @wraps(listener)
    def heard(**named: object) -> None:
        try:
            listener(**named)
        except Exception as error:
            LOGGER.debug("the run ends of this", exc_info=True)
            fail(in_one_line(error))

    return heard
