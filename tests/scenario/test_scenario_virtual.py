"""Virtual time: the embedded fake lives on the scenario's clock."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cpdaemon.commands import KINDS
from cpdaemon.endpoint import parse_endpoint
from cpsim.accounting import Accounts
from cpsim.errors import CpsimError
from cpsim.judge.judge import CHECKERS, judge
from cpsim.replay.pace import AsFastAsPossible, Speed, Virtual
from cpsim.run import folder as run_folder
from cpsim.run.pipeline import run as perform
from cpsim.run.plan import ReplayTarget
from cpsim.run.summary import summarise
from cpsim.run.virtual import step_times_us
from cpsim.scenario import generate, load_workload, source

MONTH = """
description = "a month"
duration = "30d"
expire = "6h"
population = { machines = 20, users = 5 }
arrivals = { model = "poisson", jobs = 200 }
run_time = { model = "lognormal", median = "5h", sigma = 0.7, max = "2d" }
outcome = { claim = 0.7, never = 0.2, discard = { late = 0.1 } }
[misbehaviour]
claim_after_expiry = 0.5
"""


def run(text=MONTH, pace=None, target=None, load=None):
    return perform(
        load or (lambda: generate(source.parse(text, "month.toml"))),
        target,
        pace or Virtual(),
        in_flight=8,
        timeout_s=100.0,
        slot_prefix="v",
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
    )


def expected_states(workload):
    """What becomes of each slot, from the scenario's times alone."""
    times = step_times_us(workload)
    allocated, states = {}, {}
    end_us = max(int(times[-1]), workload.duration_us)
    for kind, slot, at in zip(workload.kind.tolist(), workload.slot.tolist(), times.tolist(), strict=True):
        if KINDS[kind] == "alloc":
            allocated[slot] = at
        elif at - allocated[slot] < 6 * 3_600_000_000 and slot not in states:
            states[slot] = {"claim": "claimed", "discard": "discarded"}[KINDS[kind]]
    for slot, at in allocated.items():
        states.setdefault(slot, "expired" if end_us - at >= 6 * 3_600_000_000 else "allocated")
    return states


def test_slots_expire_when_they_should():
    month = run()
    assert month.verdict.ruling == "valid", month.verdict.anomalies[:3]
    assert month.verdict.uncertain == 0
    expected = expected_states(month.plan.workload)
    ledger = month.evidence.ledger
    shown = dict(zip(ledger["slot"].to_pylist(), ledger["state"].to_pylist(), strict=True))
    assert shown == {f"v-{slot + 1}": state for slot, state in expected.items()}
    assert Counter(shown.values())["expired"] > 60
    assert np.all(np.diff(month.evidence.records["sent_ns"]) >= -1e9)


def test_a_server_that_forgets_to_expire_is_found():
    month = run(MONTH.replace('expire = "6h"', 'expire = "30d"'))
    workload = generate(source.parse(MONTH, "month.toml"))
    assert not np.array_equal(
        workload.arguments["alloc"]["expire"].values, month.plan.workload.arguments["alloc"]["expire"].values
    )
    evidence = replace(month.evidence, workload=workload)  # as if six hours had been promised
    verdict = judge(evidence.partitions(), evidence.head(), CHECKERS)
    assert verdict.counts["late expiry"] > 60


def test_without_it_no_time_passes():
    states = Counter(run(pace=AsFastAsPossible()).evidence.ledger["state"].to_pylist())
    assert states["expired"] == 0


def test_it_needs_the_embedded_fake():
    with pytest.raises(CpsimError, match="only the embedded fake has virtual time"):
        run(target=ReplayTarget(parse_endpoint("127.0.0.1:1")))


def test_each_due_time_is_a_step():
    workload = generate(source.parse(MONTH, "month.toml"))
    assert step_times_us(workload).tolist() == workload.due_us.tolist()


def test_where_there_are_many_steps_follow_the_shortest_life():
    workload = generate(source.parse(MONTH.replace("jobs = 200", "jobs = 12000"), "month.toml"))
    late = workload.due_us - step_times_us(workload)
    assert late.min() >= 0
    assert 60_000_000 < late.max() < 6 * 60_000_000


def test_turnarounds_are_exact(tmp_path):
    log = tmp_path / "log.swf"
    runs = ((1, 60), (2, 60), (3, 60), (4, 1060))
    log.write_text("".join(f"{job} {job * 7} 0 {s} 1 -1 -1 1 -1 -1 1 1 1 1 1 1 -1 -1\n" for job, s in runs))
    made = run(load=lambda: load_workload(log))
    assert summarise(made).virtual_step_s == 0
    ledger = made.evidence.ledger.sort_by("slot")
    took_us = np.asarray(ledger["settled_us"]) - np.asarray(ledger["allocated_us"])
    assert (took_us / 1e6).tolist() == [60, 60, 60, 1060]


def test_how_coarse_steps_are_is_told_wherever_a_time_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("cpsim.run.virtual.EXACT_STEPS", 1)
    made = run(MONTH.replace("jobs = 200", "jobs = 60"))
    summary = summarise(made)
    assert 60 < summary.virtual_step_s < 360
    folder = tmp_path / "run"
    with run_folder.OutputFolder(folder) as written:
        run_folder.write(made, summary, written)
    told = f"jumped by up to {summary.virtual_step_s:,.6g} s"
    assert told in (folder / "report.html").read_text()
    with Accounts.load(folder) as accounts:
        assert told in accounts.source.note


DAY_S = 86_400
BEGIN_S, END_S = 10 * DAY_S + 100, 20 * DAY_S + 10  # in the midst of steps
OUTAGE = f'faults = ["{{fault}}:from={BEGIN_S},until={END_S}"]\n'


@pytest.mark.parametrize(
    ("fault", "error"),
    [("daemon.refuse", "cannot connect: Connection refused"), ("daemon.close", "reply lost: closed without an answer")],
)
def test_faults_come_and_go_at_the_scenarios_times(fault, error):
    month = run(OUTAGE.format(fault=fault) + MONTH)
    assert month.verdict.ruling == "valid", month.verdict.anomalies[:3]
    at_s = month.plan.workload.due_us[month.evidence.records["op"]] / 1e6
    during = (at_s >= BEGIN_S) & (at_s < END_S)
    errors = np.array(month.evidence.errors)[month.evidence.records["error"]]
    assert during.any()
    assert set(errors[during]) == {error}
    assert error not in set(errors[~during])
    assert [each["fault"] for each in month.evidence.faults] == [f"{fault}:from={BEGIN_S},until={END_S}"]
    assert {firing["action"] for firing in month.evidence.firings} <= {fault.partition(".")[2]}


def test_a_server_that_fails_now_and_then_in_virtual_time():
    faults = [
        f"server.status=503:probability=0.1,from={5 * DAY_S}",
        f"server.cut:from={40 * DAY_S}",
        f"server.close:from={DAY_S},until={DAY_S + 1}",
    ]
    month = run(f"faults = {faults}\n" + MONTH.replace("jobs = 200", "jobs = 100"))
    assert month.verdict.ruling == "valid", month.verdict.anomalies[:3]
    seen = {each["fault"].partition(":")[0]: each["fired"] for each in month.evidence.faults}
    assert seen["server.status=503"] > 0
    assert seen["server.cut"] == seen["server.close"] == 0


def test_a_server_cannot_be_down_in_virtual_time():
    with pytest.raises(CpsimError, match="in virtual time, a server that is down cannot be started again"):
        run('faults = ["server.down:from=5,until=10"]\n' + MONTH)


def test_faults_keep_the_scenarios_times_at_another_speed():
    minute = (
        MONTH.partition("[misbehaviour]")[0]
        .replace('duration = "30d"', 'duration = "60s"')
        .replace("5h", "1s")
        .replace("2d", "2s")
    )
    quick = run('faults = ["daemon.error:from=20,until=40"]\n' + minute, pace=Speed(30))
    due_s = quick.plan.workload.due_us[quick.evidence.records["op"]] / 1e6
    failed = np.array(quick.evidence.errors)[quick.evidence.records["error"]] == "ER"
    at_fault = failed & np.isin(quick.plan.workload.kind[quick.evidence.records["op"]], [KINDS.index("alloc")])
    assert at_fault.any()
    assert due_s[at_fault].min() > 15
    assert due_s[at_fault].max() < 45
