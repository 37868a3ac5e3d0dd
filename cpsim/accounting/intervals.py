"""Hours, days and weeks as clocks of a time zone have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3_600 * SECOND_US
DAY_US: Final = 24 * HOUR_US
SHORT_US: Final = (
    *(1_000, 5_000, 10_000, 50_000, 100_000, 500_000),
    *(seconds * SECOND_US for seconds in (1, 5, 10, 30, 60, 300, 900)),
)
MOST: Final = 150
"""Intervals that a chart can show."""


def starts(moments_us: pd.Series, zone: ZoneInfo, every: str) -> pd.Series:
    """When the interval began that each moment is in, in microseconds.

    Args:
        moments_us: moments.
        zone: whose clocks count.
        every: "hour", "day", "week", or "auto".
    """
    if moments_us.empty:
        return moments_us
    span_us = int(moments_us.max() - moments_us.min())
    if every == "auto":
        for width_us in SHORT_US:
            if span_us <= width_us * MOST:
                return moments_us // width_us * width_us
        every = "hour" if span_us <= MOST * HOUR_US else "day" if span_us <= 3 * MOST * DAY_US else "week"
    local = pd.to_datetime(moments_us, unit="us", utc=True).dt.as_unit("us").dt.tz_convert(zone)
    wall = local.dt.tz_localize(None)
    if every == "hour":  # twice the same one when clocks are set back
        return moments_us - (wall.astype("int64") % HOUR_US)
    days = wall.dt.floor("D")
    if every == "week":
        days -= pd.to_timedelta(days.dt.day_of_week, unit="D")
    begun = days.dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    return begun.dt.tz_convert("UTC").dt.as_unit("us").astype("int64").astype("Int64")
