"""What the frames of a small ledger hold, worked out by hand."""

import pandas as pd
import pytest

from cpsim.accounting import Accounts
from cpsim.errors import CpsimError

from .conftest import DAY_US, START_US, cells


def test_projects(week):
    with week.load() as accounts:
        columns = (
            "project",
            "allocated",
            "outstanding",
            "claimed",
            "discarded",
            "expired",
            "credits",
            "waiting_credits",
        )
        # p: fixed 7, low 5, high 20, asked 12, free 1; the 12 wait on m3
        assert cells(accounts.projects, *columns) == [("p", 8, 1, 5, 1, 1, 45, 12), ("q", 1, 0, 1, 0, 0, 50, 0)]
        assert cells(accounts.projects, "machines", "users") == [(3, 2), (1, 1)]


def test_machines(week):
    with week.load() as accounts:
        assert cells(accounts.machines, "project", "machine", "user", "claimed", "credits", "unexplained_credits") == [
            ("q", "m1", "ann", 1, 50, 0),
            ("p", "m2", "bob", 1, 20, 0),
            ("p", "m1", "ann", 3, 13, 0),
            ("p", "m3", None, 1, 12, 0),
        ]


def test_money_is_whole_numbers(week):
    with week.load() as accounts:
        frames = (accounts.projects, accounts.machines, accounts.users, accounts.counters, accounts.rules)
        frames += (accounts.outstanding, accounts.times, accounts.checks, accounts.slots, accounts.over_time("day"))
        for frame in frames:
            for column in frame.columns:
                if column.endswith(("credits", "total", "granted", "_us", "slots", "difference")):
                    assert frame[column].dtype == pd.Int64Dtype(), column


def test_what_lies_beyond_a_double_is_exact(site):
    site.server.link([("m", "ann")])
    for number in range(3):
        site.alloc(f"s{number}", credits=2**53 - 1)
        site.claim(f"s{number}", "m")
    with site.load() as accounts:
        assert accounts.users["credits"].tolist() == [3 * (2**53 - 1)]
        assert accounts.balanced


def test_rules_without_a_journal(week):
    with week.load(projects=["p"]) as accounts:
        assert set(cells(accounts.rules, "rule", "slots", "credits")) == {
            ("fixed at allocation", 1, 7),
            ("at the minimum", 1, 5),
            ("at the maximum", 1, 20),
            ("as asked, or default", 2, 13),
        }


def test_what_is_outstanding_can_still_cost(site):
    site.alloc("fixed", credits=7)
    site.alloc("range", min=2, max=9)
    site.alloc("most", max=5)
    site.at(0.5).alloc("least", min=3)
    site.at(0.6)
    site.alloc("end")
    with site.load(until="2026-01-01T14:24") as accounts:
        assert cells(accounts.outstanding, "age", "slots", "least_credits", "most_credits", "unlimited") == [
            ("1 to 6 hours", 1, 3, 0, 1),
            ("6 to 24 hours", 3, 9, 21, 0),
        ]


def test_counters(week):
    with week.load() as accounts:
        assert cells(accounts.counters, "project", "counter", "total", "slots", "machines") == [
            ("p", "events", 15, 2, 2),
            ("p", "failures", -1, 1, 1),
        ]
        assert cells(accounts.leading_counters("machine", 1), "counter", "rank", "id", "total") == [
            ("events", 1, "m1", 10),
            ("failures", 1, "m1", -1),
        ]
        assert cells(accounts.leading_counters("user", 5), "counter", "id", "total") == [
            ("events", "ann", 10),
            ("failures", "ann", -1),
        ]


def test_a_period_opens_and_closes(week):
    """From the second day to before the sixth: what came before is opening, what came after has not happened."""
    with week.load(since="2026-01-03", until="2026-01-06", projects=["p"]) as accounts:
        assert cells(accounts.projects, "claimed", "credits", "period_claimed", "period_credits", "outstanding") == [
            (4, 44, 2, 32, 2)
        ]
        assert cells(accounts.machines, "machine", "credits", "period_credits", "earlier_credits") == [
            ("m2", 20, 20, 0),
            ("m1", 12, 0, 12),
            ("m3", 12, 12, 0),
        ]
        assert cells(accounts.users, "user", "credits", "period_credits", "earlier_credits") == [
            ("bob", 20, 20, 0),
            ("ann", 12, 0, 12),
        ]
        assert accounts.times["credits"].sum() == 32
        assert accounts.balanced


def test_the_boundary_belongs_to_the_period_that_begins_there(site):
    site.alloc("a", credits=1)
    site.alloc("b", credits=1)
    site.at(1).claim("a", "m")
    site.at(2).claim("b", "m")
    for since, until, credits in (("2026-01-01", "2026-01-02", 0), ("2026-01-02", "2026-01-03", 1)):
        with site.load(since=since, until=until) as accounts:
            assert accounts.projects["period_credits"].tolist() == [credits]


def test_credit_through_a_machine_that_has_moved_on_is_still_the_users(site):
    site.server.link([("m", "ann")])
    site.alloc("a", credits=5)
    site.claim("a", "m")
    site.server.release(["m"])
    site.server.link([("m", "bob")])
    site.at(1).alloc("b", credits=3)
    site.claim("b", "m")
    with site.load() as accounts:
        found = cells(accounts.users, "user", "credits", "claimed", "unexplained_credits")
        assert found == [("ann", 5, 1, 0), ("bob", 3, 1, 0)]
        assert accounts.balanced


def test_a_late_link_brings_what_waited(site):
    site.alloc("a", credits=5)
    site.claim("a", "m")
    site.at(1).server.link([("m", "ann")])
    with site.load() as accounts:
        assert cells(accounts.users, "user", "credits", "claimed", "unexplained_credits") == [("ann", 5, 1, 0)]
        assert accounts.machines["waiting_credits"].tolist() == [0]


def test_recent_average_of_machines_users_and_projects(site):
    """A machine's first grant: 100 credits in a day. A week later: 70 more, then read at once: 55."""
    site.server.link([("m", "ann")])
    site.alloc("a", credits=100)
    site.at(1).claim("a", "m")
    site.alloc("b", credits=70)
    site.at(8).claim("b", "m")
    with site.load() as accounts:
        for frame in (accounts.machines, accounts.users, accounts.projects):
            assert frame["recent_credits_a_day"].tolist() == [pytest.approx(55, rel=1e-9)]
        # a week before the end is 1 microsecond after the first grant
        assert accounts.machines["earlier_recent_credits_a_day"].tolist() == [pytest.approx(100, rel=1e-9)]
    with site.load(until="2026-01-16") as accounts:
        assert accounts.machines["recent_credits_a_day"].tolist() == [
            pytest.approx(27.5, rel=1e-9)
        ]  # a week after the last


def test_durations(site):
    for number, hours in enumerate((1, 2, 3, 4, 100)):
        site.at(number).alloc(f"s{number}")
        site.count(f"s{number}", **{"job/cpuusage": 1800})
        site.at(number + hours / 24).claim(f"s{number}", "m")
    with site.load() as accounts:
        ((slots, mean_s, least_s, p50_s, most_s),) = cells(
            accounts.quantiles("claimed"), "slots", "mean_s", "least_s", "p50_s", "most_s"
        )
        assert (slots, mean_s, least_s, most_s) == (5, 22 * 3600, 3600, 360_000)
        assert p50_s == pytest.approx(3 * 3600, rel=0.011)
        assert accounts.quantiles("waited")["mean_s"].tolist() == [22 * 3600 - 1800]
        assert accounts.quantiles("expired").empty


@pytest.mark.parametrize(
    ("zone", "days"),
    [
        ("UTC", [("2026-01-01T00:00:00+00:00", 1), ("2026-01-02T00:00:00+00:00", 2)]),
        ("Asia/Kolkata", [("2026-01-01T00:00:00+05:30", 1), ("2026-01-02T00:00:00+05:30", 2)]),
        ("America/New_York", [("2025-12-31T00:00:00-05:00", 1), ("2026-01-01T00:00:00-05:00", 2)]),
    ],
)
def test_days_are_those_of_the_zone(site, zone, days):
    for number, hours in enumerate((1, 25, 28)):
        site.at(hours / 24).alloc(f"s{number}", credits=1)
        site.claim(f"s{number}", "m")
    with site.load(timezone=zone) as accounts:
        found = accounts.over_time("day")
        assert [(day.isoformat(), claimed) for day, claimed in cells(found, "start_at", "claimed")] == days
        assert found["cumulative_credits"].tolist() == [1, 3]


def test_an_hour_that_occurs_twice_is_two(tmp_path, site):
    """Clocks in Zurich are set back on 2026-10-25 at three: there are two hours that begin at two."""
    first_us = pd.Timestamp("2026-10-25T00:30Z").value // 1000
    for number in range(3):
        site.now_us = first_us + number * 3_600_000_000
        site.alloc(f"s{number}", credits=1)
        site.claim(f"s{number}", "m")
    with site.load(timezone="Europe/Zurich") as accounts:
        starts = [start.isoformat() for start in accounts.over_time("hour")["start_at"]]
        assert starts == ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"]
        assert [start.isoformat() for start in accounts.over_time("week")["start_at"]] == ["2026-10-19T00:00:00+02:00"]


def test_the_law_that_is_broken_is_named(make_site):
    """A slot that is claimed twice is credited twice, and only the last claim is there to see, and to be paid."""
    site = make_site("reclaim")
    site.alloc("a", credits=5)
    site.count("a", events=2)
    site.claim("a", "m")
    site.claim("a", "n")
    with site.load() as accounts:
        assert not accounts.balanced
        broken = accounts.checks[~accounts.checks["holds"]]
        assert cells(broken, "project", "law", "expected", "found", "difference") == [
            ("p", "credits: granted by slots = earned by machines", 5, 10, 5),
            ("p", "credits: earned by machines = held by users + waiting", 10, 5, -5),
            ("p", "counter events: granted by slots = earned by machines", 2, 4, 2),
            ("p", "counter events: earned by machines = held by users + waiting", 4, 2, -2),
        ]
        assert cells(accounts.machines, "machine", "unexplained_credits") == [("m", 5), ("n", 0)]


def test_the_laws_are_those_of_the_whole_ledger(week):
    with week.load(until="2026-01-02") as cut, week.load() as whole:
        assert cut.checks.equals(whole.checks)
        assert len(whole.checks) == 2 * 3 + 4


def test_an_empty_ledger(site):
    with site.load() as accounts:
        assert accounts.empty
        assert accounts.machines.empty
        assert accounts.over_time("day").empty
        assert accounts.quantiles("claimed").empty
        assert accounts.balanced


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timezone": "Mars/Olympus"}, 'no time zone "Mars/Olympus"'),
        ({"since": "yesterday-ish"}, 'since = "yesterday-ish" is not a time'),
        ({"since": "NaT"}, 'since = "NaT" is not a time'),
        ({"since": "2026-01-05", "until": "2026-01-03"}, "the period is empty"),
        ({"projects": ["z"]}, 'no project "z" in .*; there are: p, q'),
    ],
)
def test_what_makes_no_sense_is_told(week, options, message):
    with pytest.raises(CpsimError, match=message):
        week.load(**options)


def test_a_sum_beyond_64_bits_is_told(site):
    import pyarrow.parquet as pq

    site.alloc("a", credits=1)
    site.claim("a", "m")
    table = pq.read_table(site.export() / "slots.parquet").to_pylist()
    rows = [{**table[0], "slot": f"s{number}", "granted": 2**62} for number in range(3)]
    import pyarrow as pa

    schema = pq.read_schema(site.folder / "slots.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), site.folder / "slots.parquet")
    with Accounts.load(site.folder) as accounts, pytest.raises(CpsimError, match="a number is beyond 64 bits"):
        _ = accounts.projects


def test_queries_of_ones_own(week):
    with week.load() as accounts:
        found = accounts.query("SELECT reason, count(*) AS n FROM slots WHERE state = $1 GROUP BY 1", ("discarded",))
        assert cells(found, "reason", "n") == [("lost", 1)]


def test_days_of_the_fixture_are_where_they_should_be(week):
    with week.load() as accounts:
        assert accounts.at(START_US).isoformat() == "2026-01-01T00:00:00+00:00"
        assert accounts.books.until_us == START_US + 6 * DAY_US + 1


def test_what_came_shortly_before_a_period_is_not_in_it(site):
    """Though the shortest interval that a week's sums tell apart began before the period does."""
    site.alloc("first", credits=1)
    for minutes, slot, credits in ((5, "before", 10), (15, "within", 100)):
        site.at(1 + minutes / 1440).alloc(slot, credits=credits)
        site.claim(slot, "m")
    site.at(7).claim("first", "m")
    with site.load(since="2026-01-02T00:10") as accounts:
        assert accounts.projects["period_credits"].tolist() == [101]
        assert accounts.over_time("day")["credits"].tolist() == [100, 1]
        assert accounts.over_time("day")["allocated"].tolist() == [1, 0]


def test_credits_without_owner_are_among_those_of_the_period(site):
    site.alloc("a", credits=5)
    site.alloc("b", min=3, max=4)
    site.claim("a", "m")
    site.at(2).claim("b", "m")
    with site.load(until="2026-01-02") as accounts:
        assert cells(accounts.projects, "credits", "waiting_credits") == [(5, 5)]
        assert cells(accounts.machines, "credits", "waiting_credits") == [(5, 5)]


def test_grants_after_a_period_are_not_held_against_its_machines(make_site):
    site = make_site("float-credits")  # takes a minimum above the maximum
    site.alloc("a", min=9, max=5)
    site.at(2).claim("a", "m", credits=7)
    for until, against_terms in (("2026-01-02", 0), (None, 1)):
        with site.load(until=until) as accounts:
            assert accounts.machines["against_terms"].tolist() == [against_terms]
