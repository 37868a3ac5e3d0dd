"""Moments, hours, days and weeks as clocks of a time zone have them."""

from __future__ import annotations

import re
from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

import pandas as pd

from cpsim.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from zoneinfo import ZoneInfo

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
MOMENT: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d(:\d\d)?)?", re.ASCII
)
"""ISO 8601's extended format and nothing else, whichever other forms a Python release reads; or a space for the T."""
SECOND_US: Final = 1_000_000
HOUR_US: Final = 3_600 * SECOND_US
DAY_US: Final = 24 * HOUR_US
SHORT_US: Final = (
    *(1_000, 5_000, 10_000, 50_000, 100_000, 500_000),
    *(seconds * SECOND_US for seconds in (1, 5, 10, 30, 60, 300, 900)),
)
MOST: Final = 150
"""Intervals that a chart can show."""


def moment_us(name: str, text: str, zone: ZoneInfo) -> int:
    """A time in microseconds since 1970, UTC.

    Args:
        name: of the option or argument, for messages.
        text: a date, which means the start of that day (see `day_start_us`), or a date and a time; ISO 8601.
        zone: whose clocks count where the text has no offset.

    Raises:
        UsageError: it is something else, is finer than microseconds, or the zone's clocks show it twice or never.
    """
    place = f'{name} = "{text}"'
    try:
        moment = datetime.fromisoformat(text) if DATE.fullmatch(text) or MOMENT.fullmatch(text) else None
    except (ValueError, TypeError):
        moment = None
    if moment is None:
        raise UsageError(
            f"{place} is not a time: expected an ISO date, such as 2026-03-01, or an ISO date and time down to "
            "microseconds, such as 2026-03-01T12:00 or 2026-03-01T12:00:00.5+01:00"
        )
    if DATE.fullmatch(text):
        return day_start_us(moment.date(), zone)
    if moment.tzinfo is not None:
        return _since_1970_us(moment)
    first, second = (moment.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        happens = "comes twice" if _since_1970_us(first) < _since_1970_us(second) else "is skipped"
        offsets = " or ".join(one.isoformat()[len(moment.isoformat()) :] for one in (first, second))
        raise UsageError(f"{place} {happens} in {zone.key}: add its offset, {offsets}")
    return _since_1970_us(first)


def day_start_us(day: date, zone: ZoneInfo) -> int:
    """The first moment, in microseconds since 1970, at which the date in a zone is this day.

    That is the first midnight where there are two; the end of the gap where midnight is skipped; and the start of the
    next day where a whole day is.
    """
    first, second = (_since_1970_us(datetime.combine(day, time(fold=fold), zone)) for fold in (0, 1))
    if first <= second:
        return first
    return _first_us(second, first, lambda moment: moment.astimezone(zone).date() >= day)


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
    wall = _wall_clock(moments_us, zone)
    if every == "hour":  # twice the same one when clocks are set back
        return _hour_starts(moments_us, wall.astype("int64"), zone)
    days = wall.dt.floor("D")
    if every == "week":
        days -= pd.to_timedelta(days.dt.day_of_week, unit="D")
    return days.map({day: day_start_us(day.date(), zone) for day in days.unique()}).astype("Int64")


def _hour_starts(moments_us: pd.Series, wall_us: pd.Series, zone: ZoneInfo) -> pd.Series:
    """When the hours began: where clocks were changed within one, its rest is an hour of its own."""
    begun = moments_us - wall_us % HOUR_US

    def changed_us(place: Hashable) -> int:
        offset = timedelta(microseconds=int(wall_us[place] - moments_us[place]))
        limits_us = int(begun[place]), int(moments_us[place])
        return _first_us(*limits_us, lambda moment: moment.astimezone(zone).utcoffset() == offset)

    for place in begun.index[_wall_clock(begun, zone).astype("int64") - begun != wall_us - moments_us]:
        begun[place] = changed_us(place)
    return begun.astype("Int64")


def _wall_clock(moments_us: pd.Series, zone: ZoneInfo) -> pd.Series:
    return pd.to_datetime(moments_us, unit="us", utc=True).dt.as_unit("us").dt.tz_convert(zone).dt.tz_localize(None)


def _since_1970_us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _first_us(begin_us: int, end_us: int, holds: Callable[[datetime], bool]) -> int:
    """The first whole second after `begin_us` from which on something holds; at the latest `end_us`."""
    seconds = range(begin_us // SECOND_US, end_us // SECOND_US)
    found = bisect_left(seconds, True, key=lambda second: holds(EPOCH + timedelta(seconds=second)))  # noqa: FBT003
    return min(end_us, (begin_us // SECOND_US + found) * SECOND_US)


def quantiles(durations: pd.DataFrame) -> pd.DataFrame:
    """A row per project of a histogram of durations; see `Accounts.quantiles`."""
    rows = []
    for project, bins in durations.groupby("project"):
        reached = bins["slots"].cumsum()
        slots = int(bins["slots"].sum())
        row = {"project": project, "slots": slots, "mean_s": bins["total_s"].sum() / slots}
        row["least_s"], most_s = bins["least_s"].min(), bins["most_s"].max()
        for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)):
            row[name] = min(most_s, bins.loc[reached >= share * slots, "to_s"].iloc[0])
        rows.append({**row, "most_s": most_s})
    columns = ["project", "slots", "mean_s", "least_s", "p50_s", "p90_s", "p99_s", "most_s"]
    return pd.DataFrame(rows, columns=columns).astype({"slots": "Int64"})
