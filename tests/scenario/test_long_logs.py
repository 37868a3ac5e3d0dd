"""A log or a trace that is read a few rows at a time, in files, makes the workload that it makes in memory."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpsim.scenario import load_workload
from cpsim.scenario.formats import trace_table
from cpsim.scenario.formats.job_logs import swf

SWF = "\n".join(
    f"{number % 37} {number * 7919 % 5000} {number % 7} {number * 31 % 400} 1 -1 -1 1 -1 -1 {status} {number % 5} -1 "
    f"{number % 3} -1 -1 -1 -1"
    for number, status in enumerate([1, 0, 5, -1, 2, 2, 3, 1, 2, 4, 1] * 12)
)
TABLE = "job,submit,end,status,user,machine\n" + "\n".join(
    f"job-{number % 70},{number * 7919 % 5000},{9000 + number},{status},user-{number % 4},node-{number % 6}"
    for number, status in enumerate(["COMPLETED", "FAILED", "RUNNING", "CANCELLED", "REQUEUED"] * 22)
)
TRACE = "time_s,kind,slot,project,arguments\n" + "\n".join(
    f'{number * 7919 % 500},{kind},{slot},p{number % 2},"{arguments}"'
    for number in range(30)
    for kind, slot, arguments in (
        ("alloc", f"s{number}", "min=1,max=3" if number % 3 else ""),
        ("counters", f"s{number}", f"c{number % 4}=5,x=-1"),
        ("meta", f"s{number}", f"name{number % 3}=value{number % 5}"),
        ("frame", f"s{number}", f"claim,s{number}"),
        ("claim", f"s{number}", f"machine=m{number % 7}"),
    )
)


@pytest.fixture
def in_pieces(in_files, monkeypatch):
    """A function that has everything in files, and few rows at once, from then on."""

    def begin():
        in_files(40)
        monkeypatch.setattr(trace_table, "PIECE_ROWS", 13)
        monkeypatch.setattr(swf, "PIECE_LINES", 13)

    return begin


@pytest.mark.parametrize("settings", [["log.jobs=20"], ["log.projects=executable", "log.run_time_scale=1.5"]])
def test_a_log_in_pieces_makes_the_same_workload(in_pieces, tmp_path, settings):
    path = tmp_path / "log.swf"
    path.write_text(SWF + "\n", encoding="utf-8")
    check(in_pieces, path, settings)


@pytest.mark.parametrize("settings", [[], ["log.machine=any", "log.slot=x-{job}"]])
def test_a_table_of_jobs_in_pieces_makes_the_same_workload(in_pieces, tmp_path, settings):
    path = tmp_path / "jobs.csv"
    path.write_text(TABLE + "\n", encoding="utf-8")
    check(in_pieces, path, settings)


@pytest.mark.parametrize("keep_ids", [False, True])
def test_a_trace_in_pieces_makes_the_same_workload(in_pieces, tmp_path, keep_ids):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE + "\n", encoding="utf-8")
    check(in_pieces, path, [], keep_ids=keep_ids)


def check(in_pieces, path, settings, **options):
    whole = load_workload(path, 3, settings, **options)
    in_pieces()
    read = load_workload(path, 3, settings, **options)
    assert (read.digest(), read.notes) == (whole.digest(), whole.notes)


def test_times_that_only_later_rows_have_are_found(in_pieces, tmp_path):
    in_pieces()
    rows = 40
    table = pa.table(
        {
            "scenario_us": pa.nulls(rows, pa.int64()),
            "due_us": pa.array([None] * 20 + list(range(20))),
            "kind": ["alloc"] * rows,
            "slot": [f"s{number}" for number in range(rows)],
            "arguments": [""] * rows,
        }
    )
    pq.write_table(table.slice(20), path := tmp_path / "trace.parquet")
    assert load_workload(path).due_us.tolist() == list(range(20))
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=r"trace\.parquet, row 1: due_us = nothing: expected a number of microseconds"):
        load_workload(path)
