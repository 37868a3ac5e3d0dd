"""Recent average credit, as BOINC computes it: credit per day, weighted so that what is a week old counts half.

BOINC's `update_average` (lib/util.cpp) is called whenever credit is granted. With `d` the seconds since it was last
called, and `w = exp(-d ln 2 / half-life)`::

    average = average w + (1 - w) work / (d / 86400)        if 1 - w > 1e-6
    average = average w + ln 2 work 86400 / half-life       otherwise: what the first tends to as d tends to 0

A first grant has no time before it: its average is the work divided by the days since the work began. An average is as
old as its last grant, so a later reader decays it first, which is a call with no work.

Edge cases: a time that goes backwards counts as no time. A first grant at the very time the work began would divide by
zero in BOINC; it is given the limit above. A grant of no credit counts as a call.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

DAY_S: Final = 86_400
HALF_LIFE_S: Final = 7 * DAY_S
LEAST_WEIGHT: Final = 1e-6
AVERAGE_PARTS: Final = 2**27
"""Averages are added in these parts of a credit a day: all credits that 64 bits hold, in a microsecond, still fit."""


def updated(
    average: float, average_time_s: float, now_s: float, *, work: float = 0.0, work_start_s: float = 0.0
) -> float:
    """The average after a call of `update_average`, in credits a day.

    Args:
        average: credits a day so far.
        average_time_s: when it was computed, in seconds; 0 if never.
        now_s: the time of the call, in seconds.
        work: credits granted.
        work_start_s: when that work began, in seconds; it matters only for the first grant.
    """
    limit = math.log(2) * work * DAY_S / HALF_LIFE_S
    if not average_time_s:
        days = (now_s - work_start_s) / DAY_S
        return work / days if days > 0 else limit
    elapsed_s = max(0.0, now_s - average_time_s)
    weight = math.exp(-elapsed_s * math.log(2) / HALF_LIFE_S)
    if 1 - weight > LEAST_WEIGHT:
        return average * weight + (1 - weight) * work / (elapsed_s / DAY_S)
    return average * weight + limit


def recent_average(grants: Iterable[tuple[float, float, float]], now_s: float) -> float:
    """The recent average credit at a time, in credits a day.

    Args:
        grants: work began at (s), granted at (s), credits; in the order in which they were granted.
        now_s: when it is read.
    """
    average = average_time_s = 0.0
    for work_start_s, granted_s, work in grants:
        average = updated(average, average_time_s, granted_s, work=work, work_start_s=work_start_s)
        average_time_s = granted_s
    return updated(average, average_time_s, now_s) if average_time_s else 0.0


def exact_sum(values: str, parts: int = AVERAGE_PARTS) -> str:
    """SQL for a sum of doubles that is the same in whichever order, and on however many threads, they are added.

    Args:
        values: SQL of the values.
        parts: into how many parts of 1 each value is rounded: they are added as whole numbers of 128 bits.
    """
    return f"(sum(round(({values}) * {parts})::HUGEINT) / {parts}.0)"


def sql(keys: str, grants: str, moments_us: dict[str, str]) -> str:
    """A query for the recent average credit of many accounts at some times, in one pass.

    What a grant adds depends only on the one before it, and every addition decays alike; so the average is the sum of
    the additions, each decayed since its own time.

    Args:
        keys: the columns that name an account, separated by commas.
        grants: a table or view with those columns and `allocated_us`, `settled_us` and `granted`.
        moments_us: name of a result column to the SQL of the time at which it is read; a grant at that time does not
            count yet.
    """
    rate = f"({math.log(2) / HALF_LIFE_S / 1e6!r})"
    limit = f"({math.log(2) * DAY_S / HALF_LIFE_S!r} * granted)"
    day_us = f"{DAY_S * 1_000_000}.0"
    columns = ", ".join(
        f"{exact_sum(f'if(settled_us < {moment}, added * exp(-({moment} - settled_us) * {rate}), 0)')} AS {name}"
        for name, moment in moments_us.items()
    )
    return f"""
    WITH gaps AS (
        SELECT {keys}, granted, settled_us, settled_us - allocated_us AS first_gap_us, settled_us - lag(settled_us)
            OVER (PARTITION BY {keys} ORDER BY settled_us, allocated_us, granted) AS gap_us
        FROM {grants}
    ), additions AS (
        SELECT {keys}, settled_us, CASE
            WHEN gap_us IS NULL AND first_gap_us > 0 THEN granted / (first_gap_us / {day_us})
            WHEN gap_us IS NULL OR 1 - exp(-gap_us * {rate}) <= {LEAST_WEIGHT!r} THEN {limit}
            ELSE (1 - exp(-gap_us * {rate})) * granted / (gap_us / {day_us}) END AS added
        FROM gaps
    )
    SELECT {keys}, {columns} FROM additions GROUP BY {keys}"""
