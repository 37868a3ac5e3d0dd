"""Times and durations as job managers print them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

SECOND_US: Final = 1_000_000
UNITS_US: Final = {"s": SECOND_US, "ms": 1_000, "us": 1, "ns": 0.001}
"""Units of a number that is a time."""
MISSING: Final = frozenset({"", "unknown", "none", "n/a", "null", "nan", "invalid", "-"})
"""How a time that there is not is printed."""
LATEST_US: Final = 10**11 * SECOND_US
LARGEST: Final = 1e20
EXPECTED_TIME: Final = (
    "a time, such as 2026-03-01T12:00:00, 2026-03-01 12:00:00+01:00 or 1772366400 (seconds since 1970)"
)
EXPECTED_DURATION: Final = "a duration, such as 90, 1.5h, 00:01:30, 1-12:00:00 or PT90S"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - to count from, on clocks without a zone
_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_ISO: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?)(?:[.,](\d+))? ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
_CLOCK: Final = re.compile(r"(?:(\d+)(?:-| days?, ?))?(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)", re.ASCII)
_UNITS: Final = re.compile(
    r"P?(?:(\d+(?:\.\d+)?) ?d(?:ays?)?)?[T ]*(?:(\d+(?:\.\d+)?) ?h(?:ours?)?)? ?"
    r"(?:(\d+(?:\.\d+)?) ?m(?:in(?:utes?)?)?)? ?(?:(\d+(?:\.\d+)?) ?s(?:ec(?:onds?)?)?)?",
    re.ASCII | re.IGNORECASE,
)

_MONTHS: Final = re.compile(r"P[^T]*M", re.IGNORECASE)


def time_us(value: object, zone: ZoneInfo, unit: str = "s") -> int | None:
    """A time in microseconds since 1970, UTC; None if it is missing.

    Args:
        value: an ISO date and time, a number since 1970, or a `datetime`. What is finer than a microsecond is cut.
        zone: whose clocks count where there is no offset. Of a time that they show twice, the first is meant.
        unit: of a number, in `UNITS_US`.

    Raises:
        ValueError: it is none; the message says what is expected.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    moment = value if isinstance(value, datetime) else None
    more_us = 0
    if isinstance(value, str):
        text = value.strip()
        if found := _ISO.fullmatch(text):
            try:
                moment = datetime.fromisoformat(found[1] + _offset(found[3]))
            except ValueError:
                raise ValueError(f"expected {EXPECTED_TIME}") from None
            more_us = int(f"{found[2] or 0:0<6}"[:6])
        elif _NUMBER.fullmatch(text):
            value = float(text) if not text.isdigit() else int(text)
    if moment is not None:
        if moment.tzinfo is None and zone.key != "UTC":
            moment = moment.replace(tzinfo=zone)
        since = moment - (_LOCAL_EPOCH if moment.tzinfo is None else _EPOCH)
        found_us = since // timedelta(microseconds=1) + more_us
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST:
        found_us = round(value * UNITS_US[unit])
    else:
        raise ValueError(f"expected {EXPECTED_TIME}")
    if not 0 <= found_us <= LATEST_US:
        raise ValueError(f"expected {EXPECTED_TIME}, from 1970 on")
    return found_us


def duration_us(value: object, unit: str = "s") -> int | None:
    """A duration in microseconds; None if it is missing.

    Args:
        value: a number, `[D-][HH:]MM:SS[.f]`, `1 day, 2:03:04`, a number with its unit, an ISO duration, or a
            `timedelta`.
        unit: of a number, in `UNITS_US`.

    Raises:
        ValueError: it is none; the message says what is expected.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    seconds: float | None = None
    if isinstance(value, timedelta):
        seconds = value / timedelta(seconds=1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value * UNITS_US[unit] / SECOND_US
    elif isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            seconds = float(text) * UNITS_US[unit] / SECOND_US
        elif clock := _CLOCK.fullmatch(text):
            days, hours, minutes, rest = (float((part or "0").replace(",", ".")) for part in clock.groups())
            seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
        elif (units := _UNITS.fullmatch(text)) and any(units.groups()) and not _MONTHS.match(text):
            sizes = (86_400, 3_600, 60, 1)
            seconds = sum(float(part or 0) * size for part, size in zip(units.groups(), sizes, strict=True))
    if seconds is None or not 0 <= seconds <= LATEST_US / SECOND_US:
        raise ValueError(f"expected {EXPECTED_DURATION}")
    return round(seconds * SECOND_US)


def _offset(text: str | None) -> str:
    """An offset as every Python reads it."""
    if text is None:
        return ""
    if text[0] not in "+-":
        return "+00:00"
    digits = text[1:].replace(":", "").ljust(4, "0")
    return f"{text[0]}{digits[:2]}:{digits[2:]}"
