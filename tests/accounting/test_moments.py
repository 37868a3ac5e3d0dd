"""Times as they are given, and days, weeks and hours as the clocks of a zone have them."""

import subprocess
import sys
from bisect import bisect_left
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pandas as pd
import pytest

from cpsim.accounting import intervals
from cpsim.errors import UsageError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_S, LAST_S = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1980, 2030))
STEP_S = 20 * 86_400
"""Shorter than clocks of any zone stay changed."""


def us(text):
    """Microseconds since 1970 of a time with an offset."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def offset_s(zone, at_s):
    return int(datetime.fromtimestamp(at_s, zone).utcoffset().total_seconds())


def stretches(zone):
    """Begin, end and offset, in seconds, of each stretch of time in which clocks are not changed."""
    begins = [FIRST_S]
    looked = [(at_s, offset_s(zone, at_s)) for at_s in range(FIRST_S, LAST_S, STEP_S)]
    for (low_s, before_s), (high_s, after_s) in pairwise(looked):
        if before_s != after_s:
            begins.append(
                low_s + bisect_left(range(low_s, high_s), True, key=lambda at: offset_s(zone, at) != before_s)
            )
    return [(begin, end, offset_s(zone, begin)) for begin, end in pairwise([*begins, LAST_S])]


@pytest.mark.parametrize(("every", "least"), [(8, 0), pytest.param(1, 100, marks=pytest.mark.thorough)])
def test_a_day_starts_when_clocks_first_show_its_date(every, least):
    """In every zone, or some, about every change of its clocks; were the day skipped, when they show a later one."""
    skipped = twice = 0
    for name in sorted(available_timezones())[::every]:
        zone = ZoneInfo(name)
        known = stretches(zone)
        for index, (begin_s, _, offset) in enumerate(known[1:-1], 1):
            around = known[index - 1 : index + 2]
            wall = EPOCH + timedelta(seconds=begin_s + offset)
            for day in ((wall + timedelta(days=days)).date() for days in (-1, 0, 1)):
                midnight_s = (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
                starts = [max(begin, midnight_s - ahead) for begin, end, ahead in around if midnight_s - ahead < end]
                assert intervals.day_start_us(day, zone) == min(starts) * 1_000_000, (name, day)
                midnights = [b <= midnight_s - ahead < end for b, end, ahead in around].count(True)
                skipped, twice = skipped + (midnights == 0), twice + (midnights == 2)
    assert skipped > least, "hardly a zone has skipped a midnight: is the data of time zones whole?"
    assert twice > least


@pytest.mark.parametrize(
    ("zone", "day", "start"),
    [
        ("UTC", "2026-03-01", "2026-03-01T00:00:00+00:00"),
        ("Africa/Cairo", "2024-04-26", "2024-04-26T01:00:00+03:00"),
        ("Asia/Beirut", "2022-03-27", "2022-03-27T01:00:00+03:00"),
        ("America/Santiago", "2022-09-11", "2022-09-11T01:00:00-03:00"),
        ("America/Asuncion", "2023-10-01", "2023-10-01T01:00:00-03:00"),
        ("America/Havana", "2023-11-05", "2023-11-05T00:00:00-04:00"),  # there are two midnights
        ("Asia/Gaza", "2011-04-01", "2011-04-01T00:00:00+02:00"),  # one minute past midnight, clocks went to 01:01
        ("America/St_Johns", "2006-10-29", "2006-10-29T00:00:00-02:30"),  # a minute later, it was the 28th again
        ("Pacific/Apia", "2011-12-30", "2011-12-31T00:00:00+14:00"),  # there was no such day
    ],
)
def test_a_date_is_the_start_of_its_day(site, zone, day, start):
    site.alloc("a")
    assert intervals.moment_us("since", day, ZoneInfo(zone)) == us(start)
    with site.load(since=day, until="2100-01-01", timezone=zone) as accounts:
        assert accounts.at(accounts.since_us).isoformat() == start


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:30", "2026-03-01T12:30:00+01:00"),
        ("2026-03-01 12:30:59", "2026-03-01T12:30:59+01:00"),
        ("2026-03-01T12:30:59.999999", "2026-03-01T12:30:59.999999+01:00"),
        ("2026-03-01T12:30:59.1", "2026-03-01T12:30:59.100000+01:00"),
        ("2026-03-01T12:30Z", "2026-03-01T12:30:00+00:00"),
        ("2026-03-01T12:30:00-03:30", "2026-03-01T12:30:00-03:30"),
        ("2026-10-25T02:30+01:00", "2026-10-25T02:30:00+01:00"),
        ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999+00:00"),
        ("2255-06-05T23:47:34.740991Z", "2255-06-05T23:47:34.740991+00:00"),
    ],
)
def test_a_time_is_taken_to_the_microsecond(text, moment):
    assert intervals.moment_us("since", text, ZoneInfo("Europe/Zurich")) == us(moment)


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize(
    "value",
    [
        *("10.11.2026", "24.10.2026", "11/10/2026", "2026/11/10", "20261110", "261110", "1794268800", "2026-11-1"),
        *("2026-W46-2", "2026-314", "2026-11", "2026", "10 Nov 2026", "today", "now", "noon", "NaT", "", " 2026-11-10"),
        *("2026-02-29", "2026-13-01", "0000-01-01", "2026-11-10T", "2026-11-10T12", "20261110T120000", "12:00"),
        *("2026-11-10T24:00", "2026-11-10T12:60", "2026-11-10T12:00:60", "2026-11-10T12:00:00,5", "2026-11-10x12:00"),
        *("2026-11-10T12:00:00.1234567", "2026-11-10T12:00+01", "2026-11-10T12:00+0100", "2026-11-10T12:00+25:00"),
        *("2026-11-10T12:00 UTC", "2026-11-10Z", "2026-11-10\n", "\u0662\u0660\u0662\u0666-11-10", 20261110, 1.5),
        date(2026, 11, 10),
    ],
)
def test_anything_else_is_refused(week, name, value):
    with pytest.raises(UsageError) as refused:
        week.load(**{name: value})
    assert str(refused.value).startswith(f'{name} = "{value}" is not a time: expected an ISO date, such as 2026-03-01')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-10-25T02:30", r"comes twice in Europe/Zurich: add its offset, \+02:00 or \+01:00$"),
        ("2026-03-29T02:30:00.5", r"is skipped in Europe/Zurich: add its offset, \+01:00 or \+02:00$"),
    ],
)
def test_a_time_that_clocks_show_twice_or_never_needs_an_offset(week, text, said):
    with pytest.raises(UsageError, match=rf'^until = "{text}" {said}'):
        week.load(until=text, timezone="Europe/Zurich")


@pytest.mark.parametrize(
    "text", ["0001-01-01", "9999-12-31", "9999-12-31T23:59:59.999999-12:00", "0001-01-01T00:00+12:00"]
)
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_ends_of_the_calendar_are_times_like_others(week, text, zone):
    name = "since" if text.startswith("0") else "until"
    with week.load(**{name: text}, timezone=zone) as accounts:
        assert accounts.balanced
        assert accounts.projects["period_credits"].tolist() == [45, 50]


@pytest.mark.parametrize("name", ["Europe/Zürich", "Europe/Zurch", "../etc/passwd", "", "CET+1", "Europe", 1, None])
def test_a_zone_that_there_is_not(week, name):
    with pytest.raises(UsageError, match=r"^timezone = .*: no time zone .*: (did you mean|expected a name such as)"):
        week.load(timezone=name)


@pytest.mark.thorough
def test_without_data_of_time_zones_the_error_says_what_to_install(week):
    script = (
        "import sys, zoneinfo; zoneinfo.reset_tzpath(to=[]); sys.modules['tzdata'] = None; "
        "from cpsim.__main__ import main; sys.argv = ['cpsim', 'report', sys.argv[1]]; main()"
    )
    command = [sys.executable, "-c", script, str(week.export())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert 'timezone = "UTC": this machine has no data of time zones: install tzdata, a package' in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        ("Europe/Zurich", "2026-10-25T00:00+00:00", ["02:00:00+02:00", "02:00:00+01:00"]),
        (
            "Australia/Lord_Howe",
            "2026-10-03T14:30+00:00",
            ["01:00:00+10:30", "02:30:00+11:00", "03:00:00+11:00"],
        ),  # half an hour
        ("Australia/Lord_Howe", "2026-04-04T14:00+00:00", ["01:00:00+11:00", "01:30:00+10:30", "02:00:00+10:30"]),
        ("Asia/Kathmandu", "1985-12-31T17:30+00:00", ["23:00:00+05:30", "00:15:00+05:45", "01:00:00+05:45"]),
    ],
)
def test_an_hour_in_which_clocks_are_changed_ends_there(zone, first, hours):
    moments_us = pd.Series([us(first) + quarter * 900_000_000 for quarter in range(8)], dtype="Int64")
    starts_us = intervals.starts(moments_us, ZoneInfo(zone), "hour")
    found = [datetime.fromtimestamp(at // 1_000_000, ZoneInfo(zone)).isoformat()[11:] for at in starts_us.unique()]
    assert found == hours


@pytest.mark.parametrize("every", ["day", "week"])
@pytest.mark.parametrize("zone", ["Africa/Cairo", "America/Havana", "America/St_Johns", "Pacific/Apia", "Asia/Beirut"])
def test_every_moment_is_in_the_day_or_week_of_its_date(zone, every):
    zone = ZoneInfo(zone)
    moments_us = pd.Series(range(us("2006-01-01T00:00Z"), us("2012-01-01T00:00Z"), 7 * 3_600_000_000), dtype="Int64")
    starts_us = intervals.starts(moments_us, zone, every)
    for moment, start in zip(moments_us, starts_us, strict=True):
        day = datetime.fromtimestamp(moment / 1e6, zone).date()
        first = day - timedelta(days=day.weekday() if every == "week" else 0)
        assert start == intervals.day_start_us(first, zone)
