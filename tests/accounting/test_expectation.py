"""A job manager's own record against the ledger: what is missing, extra and different."""

import json
from pathlib import Path

import pytest

from cpsim.accounting import Accounts
from cpsim.accounting.expectation import AGREES, EXTRA, MISSING, OTHERS
from cpsim.errors import CpsimError

from .conftest import cells

SACCT = """JobID|State
1|COMPLETED
1.batch|COMPLETED
2|FAILED
3|CANCELLED by 1001
4|RUNNING
5_1|TIMEOUT
"""
DIFFERENT = "different: the slot is claimed, and the job failed"


@pytest.fixture
def settled(site):
    """The slots of SACCT's jobs, as its manager should have reported them."""
    for slot in ("1", "2", "3", "4", "5_1"):
        site.alloc(slot)
    site.claim("1", "m")
    for slot in ("2", "3", "5_1"):
        site.apply(("discard", {"slot": slot, "reason": "failed"}))
    return site


def findings(site, record, *slot):
    with Accounts.load(site.export()) as accounts:
        accounts.expect(record, *slot)
        return {
            "totals": dict(cells(accounts.expectation, "finding", "slots")),
            "slots": cells(accounts.unexpected(), "finding", "slot", "job_status", "ledger_state"),
            "count": accounts.unexpected_slots,
        }


@pytest.fixture
def record(tmp_path):
    def write(content, name="record"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_a_record_and_slots_that_agree(settled, record):
    assert findings(settled, record(SACCT)) == {"totals": {AGREES: 5}, "slots": [], "count": 0}


def test_what_is_missing_extra_and_different_is_named(settled, record):
    settled.alloc("other")
    settled.alloc("7")
    settled.claim("7", "m")
    found = findings(settled, record(SACCT + "6|COMPLETED\n7|FAILED\n8|PENDING\n"))
    assert found["slots"] == [
        (DIFFERENT, "7", "failed", "claimed"),
        (EXTRA, "other", None, "allocated"),
        (MISSING, "6", "completed", None),
    ]
    assert found["totals"] == {AGREES: 6, MISSING: 1, EXTRA: 1, DIFFERENT: 1}
    assert found["count"] == 3


def test_slots_are_named_after_jobs(site, record):
    site.alloc("slurm-1.a")
    site.claim("slurm-1.a", "m")
    site.alloc("slurm-2.a")
    site.alloc("condor-1")
    found = findings(site, record("JobID|State\n1|COMPLETED\n"), "slurm-{job}.a")
    assert found["slots"] == [(EXTRA, "slurm-2.a", None, "allocated")]
    with Accounts.load(site.export()) as accounts:
        with pytest.raises(CpsimError, match=r'--expected-slot "slurm": expected a text with \{job\} in it once'):
            accounts.expect(record("JobID|State\n1|COMPLETED\n"), "slurm")
        accounts.expect(record("JobID|State\n1|COMPLETED\n"), "slurm-{job}.a")
        assert cells(accounts.query("SELECT slot FROM expected_slots WHERE finding = $1", [OTHERS]), "slot") == [
            ("condor-1",)
        ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobcomp", "JobId=1 JobState=COMPLETED \nJobId=2 JobState=NODE_FAIL \nJobId=2 JobState=FAILED \n"),
        ("slots.csv", "slot,state\n1,claimed\n2,discarded\n"),
        ("jobs.csv", "job,exit_code,more\n1,0,x\n2,1:0,y\n"),
        ("log.swf", "1 0 0 5 1 -1 -1 1 -1 -1 1 1 1 1 1 1 -1 -1\n2 0 0 5 1 -1 -1 1 -1 -1 0 1 1 1 1 1 -1 -1\n"),
    ],
)
def test_formats_of_records(site, record, name, content):
    for slot in ("1", "2"):
        site.alloc(slot)
    site.claim("1", "m")
    site.apply(("discard", {"slot": "2", "reason": "failed"}))
    assert findings(site, record(content, name))["totals"] == {AGREES: 2}


@pytest.mark.parametrize("kind", ["log", "history"])
def test_records_of_htcondor(site, record, kind):
    for slot in ("42.0", "42.1"):
        site.alloc(slot)
    site.claim("42.0", "m")
    ads = [{"ClusterId": 42, "ProcId": 0, "JobStatus": 4, "ExitCode": 0, "ExitBySignal": False},
           {"ClusterId": 42, "ProcId": 1, "JobStatus": 3}]  # fmt: skip
    events = "".join(
        f"{event} 2026-03-01 12:00:0{at} {text}\n...\n"
        for at, (event, text) in enumerate(
            [("000 (042.000.000)", "Job submitted"), ("000 (042.001.000)", "Job submitted"),
             ("005 (042.000.000)", "Job terminated.\n\t(1) Normal termination (return value 0)"),
             ("009 (042.001.000)", "Job was aborted.")]
        )
    )  # fmt: skip
    found = findings(site, record(events if kind == "log" else json.dumps(ads)))
    assert found["slots"] == [
        ("different: the slot is allocated, and the job cancelled", "42.1", "cancelled", "allocated")
    ]


def test_a_mapping_says_what_is_expected(settled, record):
    record(SACCT, "jobs.txt")
    mapping = record('description = ""\n[log]\nfile = "jobs.txt"\noutcome = { failed = "claim" }\n', "map.toml")
    assert [slot for _, slot, *_ in findings(settled, mapping)["slots"]] == ["2", "5_1"]
    smoke = record('extends = "smoke"\n', "other.toml")
    with (
        Accounts.load(settled.export()) as accounts,
        pytest.raises(CpsimError, match=r"a scenario file with a \[log\]"),
    ):
        accounts.expect(smoke)


def test_a_mapping_elsewhere_says_which_jobs_and_how_slots_are_named(site, record, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    record("JobID|State|Submit|Start|End\n" + "".join(
        f"{job}|COMPLETED|2026-03-01T10:00:0{job}|2026-03-01T10:00:0{job}|2026-03-01T11:00:00\n" for job in range(1, 4)
    ), "there/jobs.txt")  # fmt: skip
    record('description = ""\n[log]\nfile = "jobs.txt"\njobs = 2\nslot = "slurm-{job}"\n', "there/map.toml")
    for slot in ("slurm-1", "slurm-2"):
        site.alloc(slot)
        site.claim(slot, "m")
    monkeypatch.chdir(tmp_path)
    assert findings(site, Path("there/map.toml")) == {"totals": {AGREES: 2}, "slots": [], "count": 0}


def test_an_end_that_is_not_known_may_be_either(site, record):
    for slot in ("1", "2", "3"):
        site.alloc(slot)
    site.claim("1", "m")
    site.apply(("discard", {"slot": "2", "reason": "x"}))
    found = findings(site, record("job,status\n1,unknown\n2,unknown\n3,unknown\n", "jobs.csv"))
    assert [slot for _, slot, *_ in found["slots"]] == ["3"]


def test_the_exit_status_says_it(cpsim, settled, record):
    status, out, _ = cpsim("report", settled.export(), "reconciliation", "--expected", record(SACCT))
    assert (status, "All 5 slots are as the job manager's record has them." in out) == (0, True)
    settled.claim("4", "m")
    status, out, _ = cpsim("report", settled.export(), "reconciliation", "--expected", record(SACCT))
    assert status == 1
    assert "1 of 5 slots are not as the job manager's record has them." in out
    assert "different: the slot is claimed, and the job unfinished" in " ".join(out.split())
    status, _, err = cpsim("report", settled.export(), "leaderboards", "--expected", record(SACCT))
    assert (status, "--expected is for the report reconciliation" in err) == (64, True)
    status, _, err = cpsim("report", settled.export(), "--expected", record("JobID|State\n1|TIRED\n"))
    assert (status, "line 2: State = 'TIRED': expected a state of Slurm" in err) == (2, True)
