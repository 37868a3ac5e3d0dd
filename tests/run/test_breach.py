"""Asserts that end a replay, and the warm-up that figures leave out."""

import json
from pathlib import Path

import numpy as np
import pytest

from cpsim.config.thresholds import Threshold
from cpsim.errors import UsageError
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.run.breach import Breaches, check_told
from cpsim.run.latency import Histogram
from cpsim.scenario import load_workload
from cpsim.scenario.workload import KIND_NAMES

SMALL = """
description = "small"
duration = "1d"
population = { machines = 8, users = 4 }
arrivals = { model = "constant", jobs = 100 }
run_time = { model = "constant", value = "10min" }
"""


@pytest.fixture
def workload(here):
    Path("small.toml").write_text(SMALL)
    return load_workload(Path("small.toml"))


def taken(workload, slow=(), refused=(), ms=30.0):
    """Records of all operations, each of a millisecond, but for those that are slow or refused."""
    records = np.zeros(len(workload), RECORD_TYPE)
    records["op"] = np.arange(len(workload))
    records["sent_ns"] = records["op"].astype(np.int64) * 1_000_000
    records["answered_ns"] = records["sent_ns"] + 1_000_000
    for op in slow:
        records["answered_ns"][op] = records["sent_ns"][op] + int(ms * 1e6)
    records["outcome"][list(refused)] = OperationOutcome.REFUSED
    return records


def broken(workload, text, records, *, schedule_us=None, warm_up_s=0.0):
    """At which record an assert is told broken; None if it never is."""
    breaches = Breaches([Threshold.parse(text)], workload, schedule_us, warm_up_s)
    return next((number for number in range(len(records)) if breaches.take(records[number : number + 1])), None)


@pytest.mark.parametrize(("text", "percentile"), [("p50_ms<20", 50), ("p90_ms<=20", 90), ("p99_ms<20", 99)])
def test_a_percentile_is_broken_when_no_later_operation_can_mend_it(workload, text, percentile):
    total = len(workload)
    fewest = total - int(percentile * total / 100 + 0.5) + 1
    spared = taken(workload, slow=range(fewest - 1))
    assert broken(workload, text, spared) is None
    assert Histogram.of(spared["answered_ns"] - spared["sent_ns"]).percentiles_ms()[f"p{percentile}"] < 20
    slow = taken(workload, slow=range(fewest))
    assert broken(workload, text, slow) == fewest - 1
    assert Histogram.of(slow["answered_ns"] - slow["sent_ns"]).percentiles_ms()[f"p{percentile}"] > 20


def test_a_maximum_and_a_rate_that_may_not_be_are_broken_by_the_first(workload):
    assert broken(workload, "max_ms<20", taken(workload, slow=[7])) == 7
    assert broken(workload, "error_rate==0", taken(workload, refused=[5])) == 5
    assert broken(workload, "unknown_rate==0", taken(workload, refused=[5])) is None
    tenth = -(-len(workload) // 10)
    assert broken(workload, "refused_rate<0.1", taken(workload, refused=range(tenth))) == tenth - 1


def test_one_kind_of_command_is_counted_alone(workload):
    claims = np.flatnonzero(workload.kind == KIND_NAMES.index("claim"))
    others = np.flatnonzero(workload.kind != KIND_NAMES.index("claim"))
    assert broken(workload, "max_ms[claim]<20", taken(workload, slow=others)) is None
    assert broken(workload, "max_ms[claim]<20", taken(workload, slow=claims[2:])) == claims[2]


def test_a_response_time_counts_from_when_the_operation_was_due(workload):
    schedule_us = np.arange(len(workload)) * 1_000
    late = taken(workload)
    late["sent_ns"] += 500_000_000
    late["answered_ns"] += 500_000_000
    assert broken(workload, "max_ms<20", late, schedule_us=schedule_us) == 0
    assert broken(workload, "service_max_ms<20", late, schedule_us=schedule_us) is None


def test_the_warm_up_breaks_nothing(workload):
    slow = taken(workload, slow=range(12))
    assert broken(workload, "max_ms<20", slow, warm_up_s=0.012) is None
    assert broken(workload, "max_ms<20", slow, warm_up_s=0.011) == 11


@pytest.mark.parametrize("text", ["operations>5", "p99_ms>5", "p99_ms==5", "lateness_p99_ms<5", "effect_p99_ms<5"])
def test_what_only_the_end_can_tell_ends_no_replay(workload, text):
    with pytest.raises(UsageError, match="--stop-on-breach goes with an --assert"):
        check_told([Threshold.parse(text)])
    assert broken(workload, text, taken(workload, slow=range(len(workload)))) is None


def perform(cpsim, *options, rate=200):
    status, out, _ = cpsim("run", "small.toml", "--rate", rate, "--warm-up", "100ms", "--json", *options)
    return status, json.loads(out)


def test_a_run_ends_at_the_breach_and_keeps_what_it_has(workload, cpsim):
    asserts = ["--assert", "max_ms[alloc]<0.001", "--assert", "p99_ms<60000", "--stop-on-breach"]
    status, run = perform(cpsim, *asserts, "--output", "out")
    assert (status, run["verdict"], run["interrupted"]) == (1, "valid", False)
    assert run["stopped_by"] == "max_ms[alloc]<0.001"
    assert [each["holds"] for each in run["asserts"]] == [False, True]
    assert run["warm_up_operations"] == 20  # of 200/s in 100 ms
    assert 0 < run["operations"] < len(workload) - 20
    assert run["checked"]["replies"] == run["operations"] + 20  # the verdict is on all that was sent
    assert max(run["by_kind_ms"]["alloc"]["response_ms"].values()) > 0.001
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "The assert max_ms[alloc]&lt;0.001 was broken, which ended the replay" in page
    assert "The figures are without 20 operations of the first 0.1 s" in page
    assert cpsim("judge", "out")[0] == 0  # the evidence is kept, and that of the warm-up too


@pytest.mark.thorough
def test_processes_end_at_the_breach_together(workload, cpsim):
    status, run = perform(cpsim, "--assert", "max_ms[alloc]<0.001", "--stop-on-breach", "--processes", "2")
    assert (status, run["stopped_by"]) == (1, "max_ms[alloc]<0.001")
    assert run["operations"] < len(workload) - 20


@pytest.mark.thorough
def test_a_warm_up_that_lasts_as_long_as_the_run_leaves_no_figure(workload, cpsim):
    status, run = perform(cpsim, "--warm-up", "1h", "--assert", "p99_ms<60000", "--assert", "operations==0", rate=4_000)
    assert (status, run["verdict"], run["operations"]) == (1, "valid", 0)
    assert [(each["value"], each["holds"]) for each in run["asserts"]] == [(None, False), (0, True)]
