"""The models of the field against what is published of them."""

import math

import numpy as np
import pytest

from cpsim.config.tables import convert
from cpsim.scenario import generate, schema
from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import gamma, lublin, volunteers
from cpsim.scenario.models.arrivals import arrive
from cpsim.scenario.models.run_times import run_times
from cpsim.scenario.streams import Draw, uniforms
from cpsim.scenario.workload import KIND_NAMES

N = 200_000
HOUR = 3_600 * models.SECOND_US
DAY = 24 * HOUR

LUBLIN_256 = {"nodes": 22.10, "serial": 0.2493, "powers_of_2": 0.6120, "largest": 256,
              "run_s": 4862.8, "log_run": 5.683, "log_run_std": 3.021, "correlation": 0.311,
              "quantiles_s": [7, 21, 137, 8270, 15578], "log_gap": 4.894, "log_gap_std": 1.659}  # fmt: skip
"""Of the 10,000 jobs in lublin_256.swf, which the authors' program made for 256 nodes: Parallel Workloads Archive."""
LUBLIN_256_BY_HOUR = [
    0.0139, 0.0152, 0.0118, 0.0088, 0.0085, 0.0148, 0.0235, 0.0337, 0.0421, 0.0521, 0.0583, 0.0759,
    0.0884, 0.0753, 0.0696, 0.0769, 0.0690, 0.0524, 0.0474, 0.0411, 0.0429, 0.0301, 0.0258, 0.0225,
]  # fmt: skip


def uniform_rows(rows, purpose):
    return uniforms(1, purpose, rows * N).reshape(rows, N)


@pytest.mark.parametrize("shape", [0.289, 1, 4.2, 10.46, 312, 639.1])
def test_gamma_moments(shape):
    drawn = gamma.gamma(shape).quantile(uniforms(1, "gamma", N))
    assert drawn.mean() == pytest.approx(shape, rel=0.01)
    assert drawn.var() == pytest.approx(shape, rel=0.02)


def test_gamma_of_shape_1_is_exponential_at_every_point():
    x = np.linspace(0.01, 12, 500)
    np.testing.assert_allclose(gamma.gamma(1.0).probability(x), 1 - np.exp(-x), atol=1e-6)
    np.testing.assert_allclose(gamma.gamma(1.0).quantile(1 - np.exp(-x)), x, rtol=1e-4)


@pytest.mark.parametrize("u", [2.0**-53, 1 - 2.0**-53])
@pytest.mark.parametrize("shape", [0.01, 0.1, 1, 100, 10_000])
def test_gamma_is_finite_at_the_ends(shape, u):
    assert np.isfinite(gamma.gamma(shape).quantile(np.array([u])))[0]


def test_lublin_nodes_and_run_times_are_those_of_the_reference():
    nodes = lublin.nodes(uniform_rows(3, "nodes"), "untyped", 256)
    powers = (nodes > 1) & (nodes & (nodes - 1) == 0)
    assert nodes.mean() == pytest.approx(LUBLIN_256["nodes"], rel=0.05)
    assert (nodes == 1).mean() == pytest.approx(LUBLIN_256["serial"], abs=0.01)
    assert powers.mean() == pytest.approx(LUBLIN_256["powers_of_2"], abs=0.01)
    assert nodes.max() == LUBLIN_256["largest"]
    run_s = lublin.run_times_s(uniform_rows(2, "run"), nodes, "untyped")
    log_run = np.log(np.maximum(np.floor(run_s), 1))
    assert run_s.mean() == pytest.approx(LUBLIN_256["run_s"], rel=0.05)
    assert log_run.mean() == pytest.approx(LUBLIN_256["log_run"], abs=0.1)
    assert log_run.std() == pytest.approx(LUBLIN_256["log_run_std"], abs=0.05)
    np.testing.assert_allclose(np.quantile(run_s, [0.1, 0.25, 0.5, 0.75, 0.9]), LUBLIN_256["quantiles_s"], rtol=0.12)
    assert np.corrcoef(log_run, nodes)[0, 1] == pytest.approx(LUBLIN_256["correlation"], abs=0.03)
    assert run_s.max() <= math.exp(lublin.LONGEST_LOG_S)


def test_lublin_arrivals_are_those_of_the_reference():
    duration_us = 2_400 * DAY
    gaps_s = lublin.gaps_s(uniforms(1, "gaps", N), "untyped")
    assert gaps_s.max() <= math.exp(lublin.LONGEST_GAP_LOG_S)
    weights = lublin.half_hour_weights("untyped")
    stretched = duration_us / models.SECOND_US / gaps_s.sum()
    arrivals_us = models.renewal_arrivals(N - 1, gaps_s.__getitem__, weights, DAY // 48, duration_us)
    log_gaps = np.log(np.maximum(np.diff(arrivals_us) / models.SECOND_US / stretched, 1))
    assert log_gaps.mean() == pytest.approx(LUBLIN_256["log_gap"], abs=0.06)
    assert log_gaps.std() == pytest.approx(LUBLIN_256["log_gap_std"], abs=0.06)
    by_hour, _ = np.histogram(arrivals_us % DAY, bins=24, range=(0, DAY))
    np.testing.assert_allclose(by_hour / N, LUBLIN_256_BY_HOUR, atol=0.02)  # 89 days, of which each is clumped


@pytest.mark.parametrize("kind", lublin.JOB_KINDS)
def test_every_kind_of_lublin_job_stays_within_its_bounds(kind):
    nodes = lublin.nodes(uniform_rows(3, "nodes"), kind, 64)
    assert 1 <= nodes.min() <= nodes.max() <= 64
    assert (nodes == 1).mean() == pytest.approx(lublin.JOB_KINDS[kind].serial, abs=0.01)
    assert lublin.half_hour_weights(kind).mean() == pytest.approx(1)


ARRIVALS = [
    {"model": "weekly", "days": [1, 1, 1, 1, 1, 0.5, 0.25], "peak_hour": 12, "amplitude": 0.5},
    {"model": "bursts", "bursts": 5, "length": "10min", "share": 0.9},
    {"model": "lublin"},
    {"model": "phases", "phases": [{"name": "up", "length": "1d", "rate": 0, "to": 2},
                                   {"name": "steady", "length": "9d", "rate": 2}]},
]  # fmt: skip


def arrivals(model, duration_us=14 * DAY, jobs=N):
    return arrive(convert(model | {"jobs": jobs}, schema.Arrivals), Draw(1, jobs), duration_us)


@pytest.mark.parametrize("model", ARRIVALS, ids=lambda model: model["model"])
@pytest.mark.parametrize("duration_us", [1, HOUR, 14 * DAY])
def test_arrivals_are_in_order_within_the_duration(model, duration_us):
    times = arrivals(model, duration_us)
    assert len(times) == N
    assert np.all(np.diff(times) >= 0)
    assert 0 <= times[0] <= times[-1] < duration_us


def test_weekly_arrivals_follow_the_days():
    by_day, _ = np.histogram(arrivals(ARRIVALS[0]), bins=14, range=(0, 14 * DAY))
    np.testing.assert_allclose(by_day / N, [*([1 / 11.5] * 5), 0.5 / 11.5, 0.25 / 11.5] * 2, rtol=0.05)


def test_bursts_hold_their_share():
    minutes = np.bincount(arrivals(ARRIVALS[1]) // models.MINUTE_US, minlength=14 * 1440)
    busiest = np.sort(minutes)[-60:].sum()  # five bursts reach into at most eleven minutes each
    assert busiest / N == pytest.approx(0.9, abs=0.01)


def test_phases_ramp_and_end():
    by_day, _ = np.histogram(arrivals(ARRIVALS[3]), bins=14, range=(0, 14 * DAY))
    np.testing.assert_allclose(by_day / N, [1 / 19, *([2 / 19] * 9), 0, 0, 0, 0], rtol=0.05)


def test_gamma_and_hyper_gamma_run_times():
    def drawn(model):
        return run_times(build(run_time=model).run_time, Draw(1, N))

    times = drawn({"model": "gamma", "scale": "1h", "shape": 0.5})
    assert times.mean() == pytest.approx(0.5 * HOUR, rel=0.02)
    assert times.var() == pytest.approx(0.5 * HOUR**2, rel=0.03)
    mixed = drawn({"model": "hyper_gamma", "first": [4.2, 0.94], "second": [312, 0.03], "share": 0.7})
    log_s = np.log(mixed / models.SECOND_US)
    assert log_s.mean() == pytest.approx(0.7 * 4.2 * 0.94 + 0.3 * 312 * 0.03, rel=0.01)
    assert mixed.max() <= 45 * HOUR


def build(*, jobs=1_000, **changes):
    tree = {
        "name": "test",
        "description": "test",
        "duration": "10d",
        "population": {"machines": 1_000, "users": 5},
        "arrivals": {"model": "poisson", "jobs": jobs},
        "run_time": {"model": "constant", "value": "1h"},
    }
    return convert(tree | changes, schema.Scenario)


def test_hosts_of_lhc_at_home():
    known = volunteers.lhc_gflops()
    assert len(known) == 8_882
    assert known.mean() == pytest.approx(19.1, abs=0.05)
    drawn, mean = volunteers.speeds(volunteers.LhcSpeed(), Draw(1, N))
    assert mean == pytest.approx(known.mean())
    assert drawn.mean() == pytest.approx(19.1, rel=0.01)
    assert set(drawn.tolist()) <= set(known.tolist())


def test_cobblestones_are_200_for_a_day_at_1_gflops():
    workload = generate(
        build(
            run_time={"model": "constant", "value": "1d"},
            credits={"policy": "none", "claim": {"model": "cobblestones"}},
            volunteers={"speed": {"model": "constant", "value": 2.5}},
        )
    )
    assert set(workload.arguments["claim"]["credits"].values.tolist()) == {500}


def test_work_is_worth_the_same_on_every_host():
    workload = generate(
        build(
            run_time={"model": "constant", "value": "10h"},
            credits={"policy": "none", "claim": {"model": "cobblestones"}},
            counters={"claim": {"s": {"model": "run_time"}}},
            volunteers={"speed": {"model": "lhc"}},
        )
    )
    assert set(workload.arguments["claim"]["credits"].values.tolist()) == {
        round(200 * 10 / 24 * volunteers.lhc_gflops().mean())
    }
    assert len(set(workload.arguments["counters"].free[:, 0].tolist())) > 50


def test_seti_hosts_are_on_and_off_as_published():
    up = run_times(volunteers.SETI.up, Draw(1, N)) / HOUR
    down = run_times(volunteers.SETI.down, Draw(1, N)) / HOUR
    assert up.mean() == pytest.approx(10.3, rel=0.03)
    log_down = np.log(down)
    assert log_down.mean() == pytest.approx(-0.586, abs=0.02)
    assert math.exp(log_down.mean() + log_down.var() / 2) == pytest.approx(31.8, rel=0.06)  # a mean converges slowly


@pytest.mark.parametrize(
    ("cluster", "mean_up", "mean_down"),
    [(1, 90, 18), (2, 52, 11), (3, 4.6, 13), (4, 133, 12), (5, 31, 12), (6, 16, 12)],
)
def test_each_cluster_of_seti_hosts_is_on_and_off_as_published(cluster, mean_up, mean_down):
    up, down = volunteers.SETI_CLUSTERS[cluster - 1]
    assert (run_times(up, Draw(1, N)) / HOUR).mean() == pytest.approx(mean_up, rel=0.05)
    assert down / HOUR == mean_down
    host, hour_us = np.arange(200, dtype=np.int32), np.full(200, HOUR, dtype=np.int64)
    ends = [
        volunteers.turns(convert(model, volunteers.SetiAvailability), Draw(1, 200)).ends_us(host, hour_us, hour_us)
        for model in ({"model": "seti", "cluster": cluster}, {"model": "seti"})
    ]
    assert not np.array_equal(*ends)


def on_by_the_minute(up, down, passed, start, run):
    """The end of a job, minute by minute; all in minutes."""
    pattern = [on for a, b in zip(up, down, strict=True) for on in [True] * a + [False] * b]
    time = start
    while run:
        run -= pattern[(time + passed) % len(pattern)]
        time += 1
    return time


def test_jobs_run_while_their_host_is_on():
    random = uniforms(1, "test", 4_000)
    up = np.floor(random[:160] * 5 + 1).astype(np.int64).reshape(10, 16)
    down = np.floor(random[160:320] * 7 + 1).astype(np.int64).reshape(10, 16)
    minute = models.MINUTE_US
    phase = random[320:330]
    host = np.floor(random[400:1400] * 10).astype(np.int32)
    start = np.floor(random[1400:2400] * 300).astype(np.int64)
    run = np.floor(random[2400:3400] * 200 + 1).astype(np.int64)
    whole = (up + down).sum(axis=1)
    passed = np.floor(phase * whole).astype(np.int64)
    turns = volunteers.Turns(up * minute, down * minute, (passed + 1e-9) / whole)
    ends = turns.ends_us(host, start * minute, run * minute) / minute
    expected = [on_by_the_minute(up[h], down[h], passed[h], s, r) for h, s, r in zip(host, start, run, strict=True)]
    np.testing.assert_allclose(ends, expected, atol=1e-3)


def kinds(workload):
    return {name: int(np.count_nonzero(workload.kind == code)) for code, name in enumerate(KIND_NAMES)}


def test_hosts_that_leave_take_their_jobs_along():
    counted = kinds(generate(build(jobs=N, run_time={"model": "constant", "value": "10d"},
                                   volunteers={"lifetime": "100d"})))  # fmt: skip
    assert counted["claim"] / N == pytest.approx(math.exp(-0.1), abs=0.003)


def test_black_holes_swallow_their_share_fast():
    workload = generate(
        build(jobs=10_000, volunteers={"black_holes": {"machines": 0.01, "jobs": 0.4, "run_time":
              {"model": "constant", "value": "30s"}, "reason": "broken"}})
    )  # fmt: skip
    assert kinds(workload)["discard"] / 10_000 == pytest.approx(0.4, abs=0.02)
    assert workload.arguments["discard"]["reason"].texts == ("broken",)
    arrived = {int(s): t for s, t, k in zip(workload.slot, workload.due_us, workload.kind, strict=True) if k == 0}
    assert {int(t) - arrived[int(s)] for s, t, k in zip(workload.slot, workload.due_us, workload.kind, strict=True)
            if k == 3} == {30 * models.SECOND_US}  # fmt: skip


def test_late_and_duplicate_returns():
    hour = {"model": "constant", "value": "1h"}
    late = generate(build(volunteers={"late": {"share": 1, "by": hour}}))
    plain = generate(build())
    assert np.array_equal(late.due_us[late.kind == 4], plain.due_us[plain.kind == 4] + HOUR)
    twice = kinds(generate(build(jobs=10_000, volunteers={"duplicates": {"share": 0.1, "after": hour}})))
    assert twice["claim"] / 10_000 == pytest.approx(1.1, abs=0.02)


def test_claims_around_a_range():
    workload = generate(
        build(jobs=10_000, credits={"policy": "range", "min": 5, "max": 20,
                                    "claim": {"model": "around", "below": 0.3, "above": 0.2}})
    )  # fmt: skip
    asked = workload.arguments["claim"]["credits"].values
    assert (asked < 5).mean() == pytest.approx(0.3, abs=0.02)
    assert (asked > 20).mean() == pytest.approx(0.2, abs=0.02)
    assert asked.min() == 0
    assert asked.max() <= 41


def test_empirical_run_times_are_those_given():
    times = {"model": "empirical", "values": ["1min", "2min", "2min", "1h"]}
    workload = generate(build(jobs=10_000, run_time=times, counters={"claim": {"s": {"model": "run_time"}}}))
    values, counts = np.unique(workload.arguments["counters"].free[:, 0], return_counts=True)
    assert values.tolist() == [60, 120, 3600]
    np.testing.assert_allclose(counts / 10_000, [0.25, 0.5, 0.25], atol=0.02)


def test_black_holes_that_back_off_take_one_job_at_a_time_and_ever_fewer():
    second = models.SECOND_US
    arrival_us = np.arange(20_000, dtype=np.int64) * second
    fast = np.full(20_000, 30 * second)
    taken = volunteers.BackOff().taken(arrival_us, np.zeros(20_000, dtype=np.int32), fast)
    times = np.flatnonzero(taken)
    waits = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]
    assert np.diff(times)[: len(waits)].tolist() == [30 + wait for wait in waits]
    slow = volunteers.BackOff().taken(arrival_us, np.zeros(20_000, dtype=np.int32), np.full(20_000, 400 * second))
    assert set(np.diff(np.flatnonzero(slow)).tolist()) == {400}


def test_what_black_holes_do_not_take_goes_to_others():
    def failed(**how):
        holes = {"machines": 0.01, "jobs": 0.4, "run_time": {"model": "constant", "value": "1s"}, **how}
        workload = generate(build(jobs=10_000, volunteers={"black_holes": holes}))
        assert (
            len(workload.arguments["claim"]["machine"].values) + len(workload.arguments["discard"]["reason"].values)
            == 10_000
        )
        return len(workload.arguments["discard"]["reason"].values)

    assert failed(back_off=True) < failed() / 2
