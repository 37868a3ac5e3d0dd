"""Time zones by name."""

from __future__ import annotations

from difflib import get_close_matches
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cpsim.errors import UsageError


def find_zone(name: str) -> ZoneInfo:
    """The time zone of a name.

    Raises:
        UsageError: there is none, or this machine has no time zones at all.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        known = available_timezones()
        if not known:
            raise UsageError(
                f'timezone = "{name}": this machine has no data of time zones: install tzdata, a package of the '
                "system, or pip install tzdata"
            ) from error
        close = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "expected a name such as UTC or Europe/Zurich"
        raise UsageError(f'timezone = "{name}": no time zone "{name}": {hint}') from error
