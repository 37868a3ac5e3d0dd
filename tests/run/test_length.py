"""A run whose columns are in files has the results of one whose columns are in memory."""

import os
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cpsim.config.catalog import find_scenario
from cpsim.evidence.journal import RECORD_TYPE, Journal, OperationOutcome, merged
from cpsim.run import latency
from cpsim.run.latency import Histogram, by_second, percentile
from cpsim.run.over_time import OverTime
from cpsim.run.pipeline import ApplyDelay
from cpsim.scenario import load_workload
from cpsim.scenario.blocks import timeline
from cpsim.scenario.models import arrivals
from cpsim.scenario.workload import Workload
from cpsim.system import growing, mapped
from cpsim.system.mapped import stretches


@pytest.fixture
def in_files(in_files, monkeypatch):
    """See tests/conftest.py; figures look at as few rows at once."""

    def begin(rows=7):
        in_files(rows)
        monkeypatch.setattr(latency, "ROWS", rows)

    return begin


@pytest.mark.parametrize("scenario", ["misbehaviour", "two-projects"])
def test_the_workload_of_a_seed_is_the_same_in_files(in_files, scenario):
    def made():
        return load_workload(find_scenario(scenario), 3, ("arrivals.jobs=80",))

    whole = made()
    assert whole.due_us.flags.writeable
    in_files()
    filed = made()
    assert not filed.due_us.flags.writeable
    assert filed.digest() == whole.digest()
    everything = filed.of_operations(np.arange(len(filed)))
    assert list(everything.on_its_own().calls(0, len(filed), "x")) == list(whole.calls(0, len(whole), "x"))


BACK_OFF = "volunteers.black_holes={machines=0.1,jobs=0.5,back_off=true,run_time={model='gamma',scale='10s',shape=2}}"
SITES = "site=[{project='a',share=2},{project='b'},{project='a'}]"
BURSTS = "arrivals={model='bursts',jobs=80,bursts=3,length='1h',share=0.6}"
LUBLIN = "arrivals={model='lublin',jobs=80}"


@pytest.mark.parametrize(
    ("scenario", "settings", "jobs"),
    [
        ("misbehaviour", [], 33),
        ("misbehaviour", [], 79),
        ("challenge", [], 40),
        ("misbehaviour", [SITES], 33),
        ("misbehaviour", [BACK_OFF], 33),
        ("lhc-scale", [LUBLIN, SITES], 27),
        ("misbehaviour", [BURSTS, BACK_OFF, SITES], 79),
    ],
)
def test_the_workload_of_a_seed_is_the_same_however_many_jobs_are_drawn_at_a_time(
    in_files, monkeypatch, scenario, settings, jobs
):
    def made():
        arrivals.arrive_together.cache_clear()
        return load_workload(find_scenario(scenario), 3, ("arrivals.jobs=80", *settings)).digest()

    whole = made()
    monkeypatch.setattr("cpsim.scenario.generation.JOBS_DRAWN", jobs)
    assert made() == whole
    in_files(jobs)
    assert made() == whole


def test_a_longer_workload_takes_no_more_memory_to_make(in_files, monkeypatch):
    in_files(2_000)
    for module in (mapped, growing):
        monkeypatch.setattr(module, "LEAST_BYTES", 4_096)
    monkeypatch.setattr("cpsim.scenario.blocks.PAGE_BYTES", 1_024)
    monkeypatch.setattr("cpsim.scenario.generation.JOBS_DRAWN", 2_000)

    def most_bytes(jobs):
        tracemalloc.start()
        try:
            made = load_workload(find_scenario("steady"), 1, (f"arrivals.jobs={jobs}", "arrivals.model=constant"))
            assert len(made) > 2 * jobs
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most_bytes(4_000)
    few, many = most_bytes(4_000), most_bytes(16_000)
    assert many - few < 20 * 12_000  # what parts are named by; their columns took 65 bytes for each job


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_operations_of_one_time_stay_in_their_order(in_files, rows):
    """Also where more come at one time than are sorted at once."""
    draw = np.random.default_rng(1)
    due_us = [np.sort(draw.choice([7, 7, 7, 8, 30, 31], 200)), draw.choice([0, 7, 31], 150), np.empty(0, np.int64)]
    blocks = [("alloc", due, np.arange(len(due), dtype=np.int32)) for due in due_us]
    in_files(rows)
    columns = timeline(blocks)
    order = np.argsort(np.concatenate(due_us), kind="stable")
    slots = np.concatenate([slot for _, _, slot in blocks])
    assert [column.tolist() for column in columns] == [
        np.concatenate(due_us)[order].tolist(),
        [0] * 350,
        slots[order].tolist(),
        np.arange(350)[order].tolist(),
    ]
    assert [column.dtype for column in columns] == [np.int64, np.uint8, np.int32, np.int32]


def test_a_part_on_its_own_has_only_what_its_operations_name(in_files):
    in_files()
    whole = load_workload(find_scenario("misbehaviour"), 3, ("arrivals.jobs=80",))
    chosen = np.flatnonzero(whole.slot_numbers[whole.slot] % 3 == 1)
    part = whole.of_operations(chosen).on_its_own()
    calls = list(whole.calls(0, len(whole), "x"))
    assert list(part.calls(0, len(part), "x")) == [calls[op] for op in chosen.tolist()]
    assert len(part.slot_numbers) == len(np.unique(whole.slot[chosen]))
    for code, table in enumerate(part.arguments.values()):
        assert {len(column.values) for column in table.columns.values()} <= {np.count_nonzero(part.kind == code)}


@pytest.mark.thorough
def test_a_run_in_files_has_the_same_evidence_and_verdict(in_files, cpsim, tmp_path, monkeypatch):
    monkeypatch.setattr("cpsim.evidence.evidence.PARTITION", 40)
    monkeypatch.setattr("cpsim.evidence.evidence.ROWS_AT_ONCE", 9)
    monkeypatch.setattr("cpsim.judge.books.ROWS", 9)
    options = ["run", "duplicate-claims", "--set", "arrivals.jobs=30", "--asap", "--output"]
    assert cpsim(*options, tmp_path / "whole")[0] == 0
    in_files()
    assert cpsim(*options, tmp_path / "filed")[0] == 0
    for name in ("workload.parquet", "verdict.json"):
        whole, filed = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "filed"))
        assert filed.replace(b"/filed", b"/whole") == whole, name
    whole, filed = (pq.read_table(tmp_path / folder / "ledger.parquet") for folder in ("whole", "filed"))
    assert filed.select(["slot", "state", "machine", "granted", "counters"]) == whole.select(
        ["slot", "state", "machine", "granted", "counters"]
    )
    assert cpsim("judge", tmp_path / "filed")[0] == 0


def test_the_partitions_of_a_run_are_made_once(cpsim, tmp_path, monkeypatch):
    """For the judge, who looks twice, the apply delays, and the journal; the workload is written from its own."""
    monkeypatch.setattr("cpsim.evidence.evidence.PARTITION", 30)
    made, on_its_own = [], Workload.on_its_own
    monkeypatch.setattr(Workload, "on_its_own", lambda part: made.append(len(part)) or on_its_own(part))
    assert cpsim("run", "duplicate-claims", "--set", "arrivals.jobs=30", "--asap", "--output", tmp_path / "out")[0] == 0
    operations = pq.read_metadata(tmp_path / "out/workload.parquet").num_rows
    assert len(made) == 2 * -(-operations // 30)
    assert sum(made) == 2 * operations


MOST_OF_POOLS = """
import sys
from cpsim.__main__ import main
try:
    main()
finally:
    import pyarrow as pa
    pools = (getattr(pa, f"{name}_memory_pool")() for name in pa.supported_memory_backends())
    print(*(pool.backend_name for pool in pools if pool.max_memory()), file=sys.stderr)
"""


def test_what_runs_and_judges_has_arrow_take_all_memory_from_the_c_library(tmp_path):
    """Arrow's own pools keep the more the longer a run is; which pool is used is chosen when Arrow is loaded."""
    run = ("run", "smoke", "--set", "arrivals.jobs=5", "--asap", "--output", tmp_path / "out")
    own = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    for command in (run, ("judge", tmp_path / "out")):
        program = [sys.executable, "-P", "-c", MOST_OF_POOLS, *command]
        done = subprocess.run(program, env=own, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "system"


@pytest.mark.parametrize("percent", [0, 37.5, 50, 99, 100])
@pytest.mark.parametrize("values", [[5], [-3, 10**15, 4, 4], list(range(0, 10**7, 37_011)), [7] * 50])
def test_a_percentile_is_that_of_all_values(in_files, values, percent):
    in_files(5)
    all_of_them = np.random.default_rng(1).permutation(np.array(values))
    found = percentile(len(values), all_of_them.__getitem__, percent)
    assert found == pytest.approx(np.percentile(all_of_them, percent), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 150])
@pytest.mark.parametrize("is_due", [False, True])
def test_figures_over_time_add_up_piece_by_piece(in_files, is_due, rows):
    draw = np.random.default_rng(3)
    records = np.zeros(300, RECORD_TYPE)
    records["op"] = np.arange(300)
    begun_ns = np.sort(draw.integers(0, 9_000_000_000, 300))
    begun_ns[200:] += 4_000_000_000
    records["sent_ns"] = begun_ns + draw.integers(0, 10**7, 300)
    records["answered_ns"] = records["sent_ns"] + draw.integers(0, 2 * 10**9, 300)
    records["answered_ns"][190:200] += 3_500_000_000
    records["error"], records["outcome"] = draw.integers(0, 3, (2, 300))
    schedule_us = begun_ns // 1000 if is_due else None
    evidence = SimpleNamespace(records=records, errors=["", "ER", "no answer within 5 s"], schedule_us=schedule_us)
    delay = ApplyDelay(draw.integers(0, 10**9, 90), np.sort(draw.integers(0, 12 * 10**9, 90)))
    due_ns = None if schedule_us is None else schedule_us * 1000
    whole, seconds = OverTime.of(evidence, delay), by_second(records, due_ns)
    assert whole.outages
    in_files(rows)
    assert OverTime.of(evidence, delay) == whole
    assert by_second(records, due_ns) == seconds
    took_ns = records["answered_ns"] - records["sent_ns"]
    joined = Histogram.joined(Histogram.of(took_ns[where]) for where in stretches(300))
    once = Histogram.of(took_ns)
    assert (joined.values.tolist(), joined.counts.tolist()) == (once.values.tolist(), once.counts.tolist())


@pytest.mark.parametrize("sent", [range(40), range(0, 40, 3), [39], []])
def test_records_are_put_in_the_order_of_operations_piece_by_piece(in_files, sent):
    in_files(5)
    journals = Journal(), Journal()
    try:
        for number, op in enumerate(reversed(sent)):
            journals[number % 2].record(op, OperationOutcome.REFUSED, f"error {op % 4}", op, 2 * op)
        parts = [(journal.records(), journal.errors, np.arange(40)) for journal in journals]
    finally:
        for journal in journals:
            journal.close()
    for records, _, _ in parts:
        assert sorted(records["op"].tolist()) == records["op"].tolist()
    records, errors = merged(parts)
    assert [(op, errors[code], sent_ns) for op, _, code, sent_ns, _ in records.tolist()] == [
        (op, f"error {op % 4}", op) for op in sent
    ]
