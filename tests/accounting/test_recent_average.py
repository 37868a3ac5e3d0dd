"""Recent average credit, against values worked by hand.

With a half-life of seven days, what is added at no distance in time is ln 2 / 7 of the credits.
"""

import math
import random

import duckdb
import pytest

from cpsim.accounting.recent_average import DAY_S, recent_average, sql, updated

T0 = 1_000 * DAY_S
WEEK_S = 7 * DAY_S
LN2 = 0.6931471805599453


def test_a_first_grant_is_the_work_over_the_days_since_it_began():
    assert updated(0, 0, T0, work=100, work_start_s=T0 - 2 * DAY_S) == 50


def test_after_a_half_life_without_work_half_is_left():
    assert updated(80, T0, T0 + WEEK_S) == pytest.approx(40, rel=1e-15)


def test_the_next_grant_is_weighted_with_the_rate_since_the_last():
    # w = 1/2; 100 * 1/2 + 1/2 * 70 / 7 = 55
    assert updated(100, T0, T0 + WEEK_S, work=70) == pytest.approx(55, rel=1e-15)
    # w = 1/4; 100 * 1/4 + 3/4 * 28 / 14 = 26.5
    assert updated(100, T0, T0 + 2 * WEEK_S, work=28) == pytest.approx(26.5, rel=1e-15)


@pytest.mark.parametrize("elapsed_s", [0, 0.0005, -3])
def test_at_no_distance_in_time_it_is_the_limit(elapsed_s):
    # 10 + 70 ln 2 / 7
    assert updated(10, T0, T0 + elapsed_s, work=70) == pytest.approx(10 + 10 * LN2, rel=1e-8)


def test_the_limit_is_taken_below_a_weight_of_one_millionth():
    # 1 - exp(-d ln 2 / 604800) = 1e-6 at d = 0.8725 s
    limit = 70 * LN2 / 7
    below, above = (updated(0, T0, T0 + elapsed_s, work=70) for elapsed_s in (0.872, 0.873))
    assert below == limit
    assert above == pytest.approx((1 - math.exp(-0.873 * LN2 / WEEK_S)) * 70 / (0.873 / DAY_S), rel=1e-7)
    assert above < limit


def test_a_first_grant_without_duration_does_not_divide_by_zero():
    assert updated(0, 0, T0, work=70, work_start_s=T0) == pytest.approx(10 * LN2, rel=1e-15)


def test_grants_one_after_the_other():
    grants = [(T0 - DAY_S, T0, 100), (T0, T0 + WEEK_S, 70), (T0, T0 + WEEK_S, 70)]
    # 100; then 55 as above; then the limit: 55 + 10 ln 2; then a week of decay
    assert recent_average(grants, T0 + 2 * WEEK_S) == pytest.approx((55 + 10 * LN2) / 2, rel=1e-14)
    assert recent_average([], T0) == 0


def test_a_grant_of_nothing_counts_as_a_call():
    grants = [(T0 - DAY_S, T0, 0), (T0, T0 + WEEK_S, 70)]
    assert recent_average(grants, T0 + WEEK_S) == pytest.approx(5, rel=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_the_query_says_the_same_as_the_formula_step_by_step(seed):
    draw = random.Random(seed)
    rows = []
    for account in ("a", "b", "c"):
        at_us = 10**12
        for _ in range(40):
            at_us += draw.choice([0, 1, 1000, 10**6, 10**9, 10**11, 10**12])
            rows.append((account, at_us - draw.choice([0, 10**7, 10**10]), at_us, draw.randrange(100)))
    now_us, middle_us = max(row[2] for row in rows) + 10**11, sorted(row[2] for row in rows)[60]
    with duckdb.connect() as database:
        database.execute("CREATE TABLE g (account VARCHAR, allocated_us BIGINT, settled_us BIGINT, granted BIGINT)")
        database.executemany("INSERT INTO g VALUES (?, ?, ?, ?)", rows)
        moments = {"recent": f"{now_us}", "before": f"{middle_us}"}
        found = {
            account: (recent, before)
            for account, recent, before in database.execute(sql("account", "g", moments)).fetchall()
        }
    for account, results in found.items():
        ours = sorted((row[2], row[1], row[3]) for row in rows if row[0] == account)
        for result, moment_us in zip(results, (now_us, middle_us), strict=True):
            grants = [(start / 1e6, at / 1e6, work) for at, start, work in ours if at < moment_us]
            assert result == pytest.approx(recent_average(grants, moment_us / 1e6), rel=1e-6)
