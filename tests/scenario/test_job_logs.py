"""Logs of job managers as workloads, one small file of each format, in its documented form."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpdaemon import Client
from cpdaemon.endpoint import parse_endpoint
from cpsim.config.zones import find_zone
from cpsim.evidence.evidence import by_partition
from cpsim.evidence.files import EvidenceFolder
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay.payloads import frames, requests
from cpsim.scenario import ScenarioError, job_logs, load_workload
from cpsim.scenario.formats import columns
from cpsim.scenario.formats.times import duration_us, time_us
from cpsim.scenario.schema import Format, Log

SACCT = """JobID|JobIDRaw|User|Account|Partition|Submit|Start|End|Elapsed|State|ExitCode|NCPUS|NodeList
101|101|alice|physics|main|2026-03-01T10:00:00|2026-03-01T10:00:10|2026-03-01T10:01:10|00:01:00|COMPLETED|0:0|4|n[07-09,12]
101.batch|101.batch|||main|2026-03-01T10:00:10|2026-03-01T10:00:10|2026-03-01T10:01:10|00:01:00|COMPLETED|0:0|4|n07
101.extern|101.extern|||main|2026-03-01T10:00:10|2026-03-01T10:00:10|2026-03-01T10:01:10|00:01:00|COMPLETED|0:0|4|n07
101.0|101.0|||main|2026-03-01T10:00:10|2026-03-01T10:00:10|2026-03-01T10:01:10|00:01:00|FAILED|1:0|4|n07
102_1|103|bob|physics|main|2026-03-01T10:00:30|2026-03-01T10:00:40|2026-03-01T10:00:45|00:00:05|FAILED|1:0|1|n07
102_2|104|bob|physics|long|2026-03-01T10:00:30|2026-03-01T10:00:40|2026-03-02T11:00:40|1-01:00:00|TIMEOUT|0:0|1|n08
102_[3-9%2]|102|bob|physics|main|2026-03-01T10:00:30|Unknown|Unknown|00:00:00|PENDING|0:0|1|None assigned
105|105|carol|bio|main|2026-03-01T10:02:00|None|2026-03-01T10:02:30|00:00:00|CANCELLED by 1001|0:0|1|None assigned
106|106|carol|bio|main|2026-03-01T10:03:00|2026-03-01T10:03:00|2026-03-01T10:03:20|00:00:20|REQUEUED|0:0|1|n08
106|106|carol|bio|main|2026-03-01T10:03:20|2026-03-01T10:04:00|2026-03-01T10:04:30|00:00:30|COMPLETED|0:0|1|n09
107|107|carol|bio|main|2026-03-01T10:05:00|2026-03-01T10:05:01|Unknown|00:00:30|RUNNING|0:0|1|n09
"""
SACCT_SETTLED = {"101": "claim", "102_1": "failed", "102_2": "failed", "105": "cancelled", "106": "claim"}

JOBCOMP = """JobId=1 UserId=alice(1001) GroupId=users(100) Name=wrap JobState=COMPLETED Partition=main \
TimeLimit=UNLIMITED StartTime=2026-03-01T16:58:00 EndTime=2026-03-01T16:58:07 NodeList=node1 NodeCnt=1 ProcCnt=1 \
WorkDir=/home/alice ReservationName= Tres=cpu=1,mem=500M,node=1,billing=1 Account= QOS= WcKey= Cluster=unknown \
SubmitTime=2026-03-01T16:57:58 EligibleTime=2026-03-01T16:57:58 DerivedExitCode=0:0 ExitCode=0:0 \n\
JobId=2 UserId=bob(1002) GroupId=users(100) Name=my job x JobState=NODE_FAIL Partition=main TimeLimit=10 \
StartTime=2026-03-01T16:58:00 EndTime=2026-03-01T16:59:00 NodeList=node2 NodeCnt=1 ProcCnt=1 WorkDir=/home/bob \
Account=bio SubmitTime=2026-03-01T16:57:59 EligibleTime=2026-03-01T16:57:59 DerivedExitCode=0:0 ExitCode=0:0 \n\
JobId=2 UserId=bob(1002) GroupId=users(100) Name=my job x JobState=COMPLETED Partition=main TimeLimit=10 \
StartTime=2026-03-01T17:00:00 EndTime=2026-03-01T17:01:00 NodeList=node1 NodeCnt=1 ProcCnt=1 WorkDir=/home/bob \
Account=bio SubmitTime=2026-03-01T16:59:00 EligibleTime=2026-03-01T16:59:00 DerivedExitCode=0:0 ExitCode=0:0 \n\
JobId=3 UserId=bob(1002) GroupId=users(100) Name=gone JobState=CANCELLED Partition=main TimeLimit=10 \
StartTime=2026-03-01T17:00:00 EndTime=2026-03-01T17:00:00 NodeList=(null) NodeCnt=0 ProcCnt=1 WorkDir=/home/bob \
Account=bio SubmitTime=2026-03-01T16:59:30 EligibleTime=2026-03-01T16:59:30 DerivedExitCode=0:0 ExitCode=0:15 \n"""

CONDOR_LOG = """000 (042.000.000) 2026-03-01 12:00:00 Job submitted from host: <10.0.0.1:9618?addrs=10.0.0.1-9618>
...
000 (042.001.000) 2026-03-01 12:00:00 Job submitted from host: <10.0.0.1:9618>
...
001 (042.000.000) 2026-03-01 12:00:10 Job executing on host: <10.0.0.7:9618?addrs=10.0.0.7-9618&alias=ep7.example>
\tSlotName: slot1_2@ep7.example
\tCondorScratchDir = "/var/lib/condor/execute/dir_123"
...
006 (042.000.000) 2026-03-01 12:00:20 Image size of job updated: 3588
\t1  -  MemoryUsage of job (MB)
...
001 (042.001.000) 2026-03-01 12:00:10 Job executing on host: <10.0.0.8:9618?addrs=10.0.0.8-9618&alias=ep8.example>
...
004 (042.000.000) 2026-03-01 12:00:30 Job was evicted.
\t(0) CPU times
...
012 (042.001.000) 2026-03-01 12:00:40 Job was held.
\tReason unspecified
...
001 (042.000.000) 2026-03-01 12:01:00 Job executing on host: <10.0.0.8:9618>
...
005 (042.000.000) 2026-03-01 12:02:00 Job terminated.
\t(1) Normal termination (return value 0)
\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  Run Remote Usage
...
009 (042.001.000) 2026-03-01 12:03:00 Job was aborted.
\tvia condor_rm (by user alice)
...
000 (043.000.000) 2026-03-01 12:04:00 Job submitted from host: <10.0.0.1:9618>
...
001 (043.000.000) 2026-03-01 12:04:01 Job executing on host: <10.0.0.8:9618>
...
005 (043.000.000) 2026-03-01 12:04:09 Job terminated.
\t(0) Abnormal termination (signal 9)
...
000 (044.000.000) 2026-03-01 12:05:00 Job submitted from host: <10.0.0.1:9618>
...
"""
CONDOR_SETTLED = {"42.0": "claim", "42.1": "cancelled", "43.0": "failed"}

HISTORY = [
    {"ClusterId": 42, "ProcId": 0, "Owner": "alice", "QDate": 1772366400, "JobCurrentStartDate": 1772366410,
     "CompletionDate": 1772366470, "JobStatus": 4, "ExitCode": 0, "ExitBySignal": False, "Env": "A=1",
     "LastRemoteHost": "slot1@ep7.example", "RemoteWallClockTime": 60.0, "NumJobStarts": 1},
    {"ClusterId": 42, "ProcId": 1, "Owner": "bob", "QDate": 1772366400, "CompletionDate": 0, "JobStatus": 3,
     "EnteredCurrentStatus": 1772366500, "RemoteWallClockTime": 0.0},
    {"ClusterId": 43, "ProcId": 0, "Owner": "bob", "QDate": 1772366460, "JobStartDate": 1772366470,
     "CompletionDate": 1772366480, "JobStatus": 4, "ExitBySignal": True, "ExitSignal": 9},
    {"ClusterId": 44, "ProcId": 0, "Owner": "bob", "QDate": 1772366460, "JobStatus": 2},
]  # fmt: skip

TABLE = """id;queued;took;outcome;who;host
7;2026-03-01T12:00:00+01:00;1:30;OK;alice;pc-1
8;2026-03-01 11:00:10Z;2 min;KILLED;bob;pc-2
9;1772362820.5;90s;OK;alice;pc-1
"""
MAP = """
delimiter = ";"
columns = { job = "id", submit = "queued", run_time = "took", status = "outcome", user = "who", machine = "host" }
statuses = { OK = "completed", KILLED = "cancelled" }
"""


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def jobs_of(path, **log):
    jobs, notes = job_logs.read(path, Log(file=str(path), **log))
    return jobs, notes


def settled(path, settings=()):
    """How each job's slot is settled by the workload, by the job's id."""
    jobs, _ = jobs_of(path)
    workload = load_workload(path, settings=settings)
    names = dict(zip(jobs.numbers.tolist(), jobs.ids, strict=True))
    return {
        names[int(arguments["slot"].rpartition("-")[2])]: arguments.get("reason", kind)
        for kind, arguments in workload.calls(0, len(workload), "s")
        if kind in {"claim", "discard"}
    }


def spans(path, **log):
    """When each record ended, in seconds after the first submission, and for how long it ran."""
    jobs, _ = jobs_of(path, **log)
    end_s = (jobs.end_us - jobs.submit_us.min()) / 1e6
    return list(zip((jobs.ids[row] for row in jobs.job), end_s.tolist(), jobs.run_s.tolist(), strict=True))


def test_a_format_is_a_file():
    assert tuple(sorted(job_logs.found())) == tuple(sorted(get_args(Format)))


def test_sacct(write):
    path = write("jobs.txt", SACCT)
    assert settled(path) == SACCT_SETTLED
    assert spans(path) == [
        ("101", 70, 60), ("102_1", 45, 5), ("102_2", 90_040, 90_000), ("105", 150, 0), ("106", 200, 20),
        ("106", 270, 30), ("107", 300, 0),
    ]  # fmt: skip
    workload = load_workload(path)
    assert workload.users == ("alice", "bob", "carol")
    assert any("1 lines of arrays whose tasks had not begun" in note for note in workload.notes)
    assert any("1 jobs have not ended" in note for note in workload.notes)
    assert settled(write("p.txt", SACCT.replace("\n", "|\n"))) == SACCT_SETTLED  # as sacct -p prints them


def test_the_nodes_of_a_log_are_its_machines_if_asked(write):
    workload = load_workload(write("jobs.txt", SACCT), settings=["log.machine=node"])
    assert workload.machines == ("n07", "n08", "n09")
    claims = [arguments["machine"] for kind, arguments in workload.calls(0, len(workload), "s") if kind == "claim"]
    assert claims == ["n07", "n09"]
    assert workload.users == ()


def test_projects_of_slurm(write):
    workload = load_workload(write("jobs.txt", SACCT), settings=["log.projects=account"])
    assert workload.projects == ("account-bio", "account-physics")
    with pytest.raises(ScenarioError, match='projects = "group": this log does not say it; of such fields it has'):
        load_workload(write("jobs.txt", SACCT), settings=["log.projects=group"])


def test_jobcomp(write):
    path = write("jobcomp.log", JOBCOMP)
    assert settled(path) == {"1": "claim", "2": "claim", "3": "cancelled"}
    assert spans(path) == [("1", 9, 7), ("2", 62, 60), ("2", 182, 60), ("3", 122, 0)]
    assert load_workload(path).users == ("alice", "bob")


def test_a_job_without_the_field_of_projects_shifts_no_other(write):
    lines = [f"JobId={job} UserId=u(1) JobState=FAILED Account={job} SubmitTime=2026-03-01T10:00:00 "
             "EndTime=2026-03-01T10:00:01 \n" for job in (1, 2, 3, 4)]  # fmt: skip
    lines[1] = lines[1].replace(" Account=2", "")
    lines[3] = lines[3].replace(" Account=4", "")
    workload = load_workload(write("jobcomp", "".join(lines)), settings=["log.projects=account"])
    assert [workload.sites[site] for site in workload.site] == [
        "account-1", "account-unknown", "account-3", "account-unknown",
    ]  # fmt: skip


def test_the_event_log_of_htcondor(write):
    path = write("jobs.log", CONDOR_LOG)
    assert settled(path) == CONDOR_SETTLED
    assert spans(path) == [
        ("42.0", 30, 20), ("42.1", 40, 30), ("42.0", 120, 60), ("42.1", 180, 0), ("43.0", 249, 8), ("44.0", 300, 0),
    ]  # fmt: skip
    assert jobs_of(path)[0].nodes == ("slot1_2@ep7.example", "ep8.example", "10.0.0.8:9618")


def test_an_event_log_without_years(write):
    older = CONDOR_LOG.replace("2026-03-01 ", "12/31 ").replace("12/31 12:05:00", "01/01 00:00:00")
    path = write("jobs.log", older)
    assert settled(path) == CONDOR_SETTLED
    assert spans(path)[-1] == ("44.0", 12 * 3600, 0)
    assert any("have no year" in note for note in load_workload(path).notes)


def test_an_event_log_that_begins_late_and_ends_early(write):
    first = CONDOR_LOG.index("001 (042.000.000)")
    workload = load_workload(write("jobs.log", CONDOR_LOG[first:].removesuffix("...\n")))
    assert any("2 jobs have no event of their submission" in note for note in workload.notes)
    assert any("the last one, has no end" in note for note in workload.notes)


@pytest.mark.parametrize("lines", [False, True])
def test_the_history_of_htcondor(write, lines):
    text = "".join(json.dumps(ad) + "\n" for ad in HISTORY) if lines else json.dumps(HISTORY, indent=1)
    path = write("history.json", text)
    assert settled(path) == CONDOR_SETTLED
    assert spans(path) == [("42.0", 70, 60), ("42.1", 100, 0), ("43.0", 80, 10), ("44.0", 60, 0)]
    assert load_workload(path).users == ("alice", "bob")


def test_a_table_with_a_map_of_its_columns(write):
    write("jobs.csv", TABLE)
    path = write("table.toml", f'description = ""\n[log]\nfile = "jobs.csv"{MAP}')
    workload = load_workload(path)
    assert [
        (due_us / 1e6, kind, arguments.get("reason", arguments.get("job/cpuusage")))
        for due_us, (kind, arguments) in zip(
            workload.due_us.tolist(), workload.calls(0, len(workload), "t"), strict=True
        )
    ] == [
        (0, "alloc", None), (10, "alloc", None), (20.5, "alloc", None), (90, "counters", 90), (90, "claim", None),
        (110.5, "counters", 90), (110.5, "claim", None), (130, "counters", 120), (130, "discard", "cancelled"),
    ]  # fmt: skip
    assert workload.slot_numbers.tolist() == [7, 8, 9]


def test_a_table_says_whose_a_machine_is(write):
    workload = load_workload(
        write("jobs.csv", "job,submit,end,exit_code,machine,owner\n1,0,9,0,pc,alice\n2,1,8,1,pc,\n3,1,8,0:9,mac,bob\n")
    )
    assert (workload.machines, workload.users, workload.owner.tolist()) == (("pc", "mac"), ("alice", "bob"), [0, 1])
    assert [arguments.get("machine") for _, arguments in workload.calls(0, len(workload), "s")].count("pc") == 1


def test_a_table_in_parquet(write, tmp_path):
    begin = datetime(2026, 3, 1, 12, tzinfo=UTC)
    table = pa.table(
        {
            "job": ["a", "b"],
            "submit": pa.array([begin, begin + timedelta(seconds=1)], pa.timestamp("ns", "UTC")),
            "run_time": pa.array([timedelta(seconds=5), timedelta(minutes=1)], pa.duration("ms")),
            "status": ["completed", "OUT_OF_MEMORY"],
        }
    )
    pq.write_table(table, tmp_path / "jobs.parquet")
    path = tmp_path / "jobs.parquet"
    assert settled(path) == {"a": "claim", "b": "failed"}
    assert spans(path) == [("a", 5, 5), ("b", 61, 60)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s", SACCT.replace("10:01:10|00:01:00|COMPL", "25:01:10|00:01:00|COMPL", 1),
         "s, line 2: End = '2026-03-01T25:01:10': expected a time, such as"),
        ("s", SACCT.replace("00:00:05", "soon"), "s, line 6: Elapsed = 'soon': expected a duration, such as"),
        ("s", SACCT.replace("TIMEOUT", "TIRED"), "s, line 7: State = 'TIRED': expected a state of Slurm, such as"),
        ("s", SACCT.replace("bob|physics|long", "b,b|physics|long"), "s, line 7: User = 'b,b': expected a text"),
        ("s", SACCT.replace("|n08\n", "\n", 1), "s, line 7: 12 fields: expected 13, as in the first line"),
        ("s", SACCT.replace("|Submit|", "|Eligible|"), "s, line 1: no field Submit; it has JobID, JobIDRaw"),
        ("s", SACCT.replace("2026-03-01T10:00:45", "2026-02-01T10:00:45"), "s, line 6: job 102_1 ended before it was"),
        ("j", JOBCOMP.replace("JobState=NODE", "State=NODE"), "j, line 2: JobState = nothing: expected a line as"),
        ("j", JOBCOMP.replace("T16:58:07", "?"), r"j, line 1: EndTime = '2026-03-01\?': expected a time"),
        ("c", CONDOR_LOG.replace("12:00:40 Job was", "1x Job was"), "c, line .*: the time = '2026-03-01T1x': expected"),
        ("c", CONDOR_LOG.replace("...\n012", "...\nx\n012"), "c, line .*: the line = 'x': expected an event, such as"),
        ("h", json.dumps([*HISTORY, {**HISTORY[0], "QDate": "/Expr(time())/"}]),
         r"h, ClassAd 5: QDate = '/Expr\(time\(\)\)/': expected a time"),
        ("h", json.dumps([{**HISTORY[0], "JobStatus": "4"}]), "h, ClassAd 1: JobStatus = '4': expected a whole number"),
        ("h", json.dumps([{**HISTORY[2], "CompletionDate": 0}]), "h, ClassAd 1: job 43.0 is failed, and has no time"),
        ("h", '[{"ClusterId": 1', "h: not a list of ClassAds in JSON"),
        ("t.csv", "job,submit,end,status\n1,0,9,fine\n",
         "line 2: status = 'fine': expected one of completed, failed, cancelled, unknown, or what"),
        ("t.csv", "job,submit,end,exit_code\n1,0,9,x\n", "line 2: exit_code = 'x': expected a whole number, 0 where"),
        ("t.csv", "job,submit,end,status\n1,0,9\n", "line 2: 3 fields: expected 4"),
        ("t.csv", "job,submit,status\n1,0,failed\n", r"t.csv: no column end \(or run_time\): it has job, sub"),
        ("t.csv", "job,submit,end,status\n,0,9,failed\n", "line 2: it has no id of a job"),
        ("t.csv", "job,submit,end,status\n1,,9,failed\n", "line 2: job 1 has no time of submission"),
        ("x.dat", "hello", "x.dat: expected a scenario .* or a job log: what HTCondor's condor_history -json"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(write, name, content, message):
    with pytest.raises(ScenarioError, match=message):
        load_workload(write(name, content))


def test_a_column_that_the_map_names_wrongly(write):
    with pytest.raises(ScenarioError, match=r"no column id, as .log. columns has it: it has job, submit"):
        load_workload(write("t.csv", "job,submit,end,status\n1,0,9,failed\n"), settings=["log.columns.job=id"])


def test_bad_rows_are_counted_and_skipped(write):
    bad = SACCT.replace("TIMEOUT", "TIRED").replace("00:00:05", "soon")
    workload = load_workload(write("jobs.txt", bad), settings=["log.skip_bad=2"])
    assert len(workload.slot_numbers) == 4
    assert any("2 bad rows were skipped; the first: " in note and "line 6: Elapsed" in note for note in workload.notes)
    with pytest.raises(ScenarioError, match=r"line 7: State = 'TIRED'.*; 1 bad rows before it were skipped"):
        load_workload(write("jobs.txt", bad), settings=["log.skip_bad=1"])


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        (["jobs=2"], ["101", "102_1"]),
        (['since="2026-03-01T10:02:00"', 'until="2026-03-01T10:05:00"'], ["105", "106"]),
        (['since="3min"'], ["106", "107"]),
        (['until="30s"'], ["101"]),
        (['since="2026-03-01T05:02:00-05:00"', "jobs=1"], ["105"]),
    ],
)
def test_a_part_of_a_log(write, settings, left):
    path = write("jobs.txt", SACCT)
    jobs, _ = jobs_of(path)
    workload = load_workload(path, settings=[f"log.{setting}" for setting in settings])
    first_us = dict(zip(jobs.ids, jobs.submit_us.tolist(), strict=True))[left[0]]
    assert len(workload.slot_numbers) == len(left)
    alloc_us = workload.due_us[workload.kind == 0].tolist()
    assert alloc_us == [
        us - first_us for name, us in zip(jobs.ids, jobs.submit_us.tolist(), strict=True) if name in left
    ]


def test_a_part_that_is_none(write):
    path = write("jobs.txt", SACCT)
    for settings, message in (
        (['log.since="2027-01-01"'], "none of its 6 jobs is left with since = 2027-01-01"),
        (['log.since="soon"'], 'since = "soon": expected a time, such as .*, or a duration since the first job'),
        (["log.jobs=0"], "log.jobs = 0: expected a whole number from 1"),
    ):
        with pytest.raises(ScenarioError, match=message):
            load_workload(path, settings=settings)


def test_times_are_those_of_a_zone(write):
    march = SACCT.replace("2026-03-01", "2026-03-29").replace("2026-03-02", "2026-03-30")
    march = march.replace("T10:00:00", "T01:59:00")  # the first job's, before the clocks skip an hour
    hours = np.diff(jobs_of(write("s", march), timezone="Europe/Zurich")[0].submit_us[[0, 1]])
    assert hours.tolist() == [7 * 3_600_000_000 + 90_000_000]
    with pytest.raises(ScenarioError, match='timezone = "Mars": no time zone "Mars"'):
        load_workload(write("s", march), settings=["log.timezone=Mars"])


def test_a_log_may_be_compressed_and_begin_with_a_mark(write):
    for content in (SACCT, JOBCOMP, CONDOR_LOG, json.dumps(HISTORY)):
        path = write("a log", content)
        marked = write("marked", b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
        packed = write("packed", gzip.compress(content.encode()))
        assert settled(path) == settled(marked) == settled(packed)


UTC_ZONE = find_zone("UTC")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-03-01T12:00:00", 1772366400), ("2026-03-01 12:00:00.25", 1772366400.25),
        ("2026-03-01T13:00:00+0100", 1772366400), ("2026-03-01T13:00+01", 1772366400),
        ("2026-03-01T12:00:00Z", 1772366400), ("2026-03-01T12:00:00.123456789Z", 1772366400.123456),
        ("1772366400", 1772366400), (1772366400.5, 1772366400.5), ("Unknown", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_times(text, seconds):
    assert time_us(text, UTC_ZONE) == (None if seconds is None else round(seconds * 1e6))


def test_times_of_another_unit():
    assert time_us(1772366400123, UTC_ZONE, "ms") == 1772366400123000
    assert time_us("1772366400123456789", UTC_ZONE, "ns") == pytest.approx(1772366400123457, abs=1000)


@pytest.mark.parametrize(
    "value", ["soon", "2026-03-01", "2026-13-01T00:00:00", "-5", True, float("nan"), 1e300, "03/01/2026", []]
)
def test_what_is_no_time(value):
    with pytest.raises(ValueError, match=r"^expected a time, such as"):
        time_us(value, UTC_ZONE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), (1.5, 1.5), ("00:01:30", 90), ("1-12:00:00", 129_600), ("05:00.250", 300.25), ("1.5h", 5400),
        ("2h30m", 9000), ("1 day, 2:03:04", 93_784), ("PT1H30M", 5400), ("P1DT2S", 86_402), ("90 min", 5400),
        (timedelta(seconds=3), 3), ("None", None),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    assert duration_us(text) == (None if seconds is None else round(seconds * 1e6))


@pytest.mark.parametrize("value", ["long", "P1M", "-5", "1:2:3:4", True, float("inf"), "5 parsecs"])
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match=r"^expected a duration, such as"):
        duration_us(value)


def test_a_trace_says_whose_a_machine_is(write):
    trace = (
        "time,kind,slot,arguments,user\n2026-03-01T12:00:00Z,alloc,a,,\n2026-03-01T13:00:01+01:00,claim,a,machine=m,x\n"
    )
    workload = load_workload(write("t.csv", trace))
    assert workload.due_us.tolist() == [0, 1_000_000]
    assert (workload.machines, workload.users, workload.owner.tolist()) == (("m",), ("x",), [0])
    with pytest.raises(ScenarioError, match="row 3: user = 'y': expected 'x', whose machine m is in an earlier row"):
        load_workload(write("t.csv", trace + "2026-03-01T12:00:02Z,claim,b,machine=m,y\n"))
    with pytest.raises(ScenarioError, match="row 2: time = nothing: expected a time, such as"):
        load_workload(write("t.csv", trace.replace("2026-03-01T13:00:01+01:00", "")))


def test_jobs_that_outlive_the_day_of_a_slot_without_expire_are_told(write):
    allocated = "time_s,kind,slot,arguments\n0,alloc,a,\n0,alloc,b,expire=9999\n"
    trace = f"{allocated}86401,claim,a,machine=m\n90000,discard,b,reason=x\n"
    assert ["1 jobs outlive the day" in note for note in load_workload(write("t.csv", trace)).notes] == [True]
    assert load_workload(write("t.csv", trace.replace("86401", "86400"))).notes == ()


# Ids of slots that are kept


TRACE = """time_s,kind,slot,arguments,project
0,alloc,job 1,credits=5,a
0,alloc,j\u00f6b%2,,b
1,counters,job 1,n=3,a
2,claim,job 1,machine=m,a
3,discard,j\u00f6b%2,reason=x,b
3,frame,,"claim,slot={slot}",b
"""


def sent(workload):
    """What is sent, as frames and as bodies of requests."""
    requested = requests(workload, "p", parse_endpoint("http://127.0.0.1:1/api"), ("id", "secret"))
    bodies = [request.partition(b"\r\n\r\n")[2].decode() for part in requested for request in part]
    return [frame.decode() for part in frames(workload, "p") for frame in part], bodies


def test_a_trace_keeps_the_ids_of_its_slots(write, tmp_path):
    path = write("t.csv", TRACE)
    workload = load_workload(path, keep_ids=True)
    assert workload.slot_ids == ("job 1", "j\u00f6b%2", "frame-5")
    texts, bodies = sent(workload)
    assert texts == [
        "alloc,slot=job 1,credits=5", "alloc,slot=j\u00f6b%2", "counters,slot=job 1,n=3", "claim,slot=job 1,machine=m",
        "discard,slot=j\u00f6b%2,reason=x", "claim,slot={slot}".replace("{slot}", "frame-5"),
    ]  # fmt: skip
    assert [json.loads(body)["slot"] for body in bodies[:2]] == ["job 1", "j\u00f6b%2"]
    assert [arguments["slot"] for _, arguments in workload.calls(0, 2, "p")] == ["job 1", "j\u00f6b%2"]
    assert load_workload(path).digest() != workload.digest()
    columns.write(iter([workload]), tmp_path / "kept.parquet")
    again = load_workload(tmp_path / "kept.parquet")
    assert (again.digest(), again.slot_ids) == (workload.digest(), workload.slot_ids)
    part, _ = workload.of_project("b")
    assert part.slot_ids == ("j\u00f6b%2", "frame-5")


def test_slots_of_equal_ids_have_equal_numbers_in_all_projects(write):
    trace = "time_s,kind,slot,arguments,project\n0,alloc,z,,a\n0,alloc,x,,a\n0,alloc,x,,b\n"
    workload = load_workload(write("t.csv", trace), keep_ids=True)
    z, x, also_x = workload.slot_numbers.tolist()
    assert (workload.slot_ids, x == also_x, x == z) == (("z", "x", "x"), True, False)


def test_slots_are_named_after_the_jobs_of_a_log(write):
    path = write("jobs.txt", SACCT)
    assert load_workload(path, keep_ids=True).slot_ids == ("101", "102_1", "102_2", "105", "106", "107")
    named = load_workload(path, settings=['log.slot="slurm-{job}"'])
    assert named.slot_ids[:2] == ("slurm-101", "slurm-102_1")
    swf = "".join(f"{job} {job} 0 5 1 -1 -1 1 -1 -1 1 1 1 1 1 1 -1 -1\n" for job in (3, 3, 4))
    assert load_workload(write("log.swf", swf), keep_ids=True).slot_ids == ("3", "5", "4")
    with pytest.raises(ScenarioError, match=r'log.slot = "job": expected a text with \{job\} in it, such as'):
        load_workload(path, settings=["log.slot=job"])
    with pytest.raises(ScenarioError, match="--keep-ids is for a job log or a trace"):
        load_workload(write("x.toml", 'extends = "smoke"'), keep_ids=True)


@pytest.mark.thorough
def test_a_run_with_kept_ids_is_judged_and_reconciled_like_any_other(write, tmp_path, cpsim, monkeypatch):
    path = write("jobs.txt", SACCT)
    status, out, _ = cpsim("run", path, "--keep-ids", "--output", tmp_path / "run", "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (0, "valid")
    assert document["slots_by_state"] == {"claimed": 2, "discarded": 3, "allocated": 1}
    evidence = EvidenceFolder(tmp_path / "run").whole()
    ids = dict(zip(evidence.workload.slot_ids, evidence.workload.slot_numbers.tolist(), strict=True))
    assert set(evidence.ledger["slot"].to_pylist()) == set(ids)
    slots_of = by_partition(evidence.ledger, 3, None)
    for index in range(3):
        assert {slot for slot, number in ids.items() if number % 3 == index} == set(slots_of(index)["slot"].to_pylist())
    assert cpsim("judge", tmp_path / "run")[0] == 0
    monkeypatch.setattr("cpsim.evidence.evidence.PARTITION", 3)  # written in several partitions
    assert cpsim("run", path, "--keep-ids", "--output", tmp_path / "parted")[0] == 0
    assert len(list(EvidenceFolder(tmp_path / "parted").partitions())) > 3
    assert cpsim("judge", tmp_path / "parted")[0] == 0
    status, out, _ = cpsim("report", tmp_path / "run", "reconciliation", "--expected", path)
    assert (status, "All 6 slots are as the job manager's record has them." in out) == (0, True)
    assert "All 6 slots agree, and so do the credits." in out
    status, _, err = cpsim("run", path, "--keep-ids", "--slot-prefix", "x", "--output", tmp_path / "other")
    assert (status, "keeps the ids of its slots, and takes no --slot-prefix" in err) == (64, True)
    assert not (tmp_path / "other").exists()


def test_slots_of_another_project_are_not_counted_though_their_ids_are_the_same(write, tmp_path, cpsim):
    path = write("jobs.txt", SACCT)
    (tmp_path / "secret").write_text("s", encoding="utf-8")
    with Fake({"p": "s", "q": "s"}, http=ANY_PORT, flush_interval_s=0) as fake:
        with Client(fake.addresses["http"], ("q", "s")) as other:
            other.alloc("101", credits=7)
            other.claim("101", "theirs")
        at = ["--target", fake.addresses["http"], "--project", "p", "--secret-file", tmp_path / "secret"]
        status, out, _ = cpsim("run", path, "--keep-ids", *at, "--output", tmp_path / "run", "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (0, "valid")
    assert document["slots_by_state"] == {"claimed": 2, "discarded": 3, "allocated": 1}
    assert document["credits_granted"] == 2
