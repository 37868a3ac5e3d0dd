"""What comes after a replay: the verdict on a run, by one process and by several, and reports of a ledger."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import ledger
import made
import pyarrow.parquet as pq
from rounds import Row, in_turns

from cpsim.config.catalog import find_scenario
from cpsim.judge.judge import OF_ACCOUNTS, judge
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run.pipeline import Run, run
from cpsim.run.spread import FolderToJudge, judge_folder, on_cluster, on_this_machine
from cpsim.scenario import load_workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cpsim.run.spread import Spread

OPERATIONS = 1_000_000
MADE, ODD = 4_000_000, 1_000_000
"""Operations of a run folder that is made, and of one with odd slots."""
WANTED = 90_000
"""Operations judged in a second, however many slots are wrong or unknown."""
JUDGING = "import sys; from cpsim.__main__ import main; sys.argv[1:1] = ['judge']; main()"
READING = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
pa.set_cpu_count(1)
for name in ("workload", "journal", "ledger", "accounts"):
    with pq.ParquetFile(f"{sys.argv[1]}/{name}.parquet") as file:
        columns = ["id", "due_us", "sent_us", "answered_us", "outcome", "error"] if name == "journal" else None
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns, use_threads=False)
"""
"""Reads the columns that a judgement reads, each once, by one thread."""


def rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Verification beside the replay that it judges, and a report beside the reading of its files."""
    runs: list[Run] = []

    def replayed(_: int) -> float:
        runs.append(embedded())
        return len(runs[-1].evidence.records) / runs[-1].evidence.elapsed_s

    # the replay of a round comes second, so that of the round before is judged
    runs.append(embedded())
    yield "verification / replay at the embedded fake, operations/s", in_turns(lambda _: verified(runs[-1]), replayed)
    yield from folder_rows(folder / "made")
    if find_spec("duckdb"):
        ledger.make(folder / "books", OPERATIONS)
        yield (
            f"report of {OPERATIONS:,} operations / reading its files, time",
            in_turns(lambda _: reported(folder / "books"), lambda _: read(folder / "books")),
        )


def spread_rows(folder: Path, operations: int) -> Iterator[tuple[str, Row]]:
    """A run folder judged by two processes, of this machine or of a Dask cluster, beside one process that does it."""
    chosen = FolderToJudge(folder)

    def judged(spread: Spread | None) -> float:
        begun_s = time.perf_counter()
        _, verdict = judge_folder(chosen, chosen.opened(), spread)
        assert verdict.ruling == "valid"
        return operations / (time.perf_counter() - begun_s)

    with on_this_machine(2) as spread:
        judged(spread)  # the processes have begun
        title = "verification of a run folder by two processes / by one, operations/s"
        yield title, in_turns(lambda _: judged(spread), lambda _: judged(None))
    if find_spec("distributed"):
        from distributed import LocalCluster

        ports = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", **ports) as cluster,
            on_cluster(cluster.scheduler_address) as spread,
        ):
            judged(spread)
            title = "verification of a run folder by two workers of Dask / by one process, operations/s"
            yield title, in_turns(lambda _: judged(spread), lambda _: judged(None))


def folder_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """A run folder judged, beside the reading of its files; and how fast where slots are odd. Processor time."""
    right = folder / "right"
    operations = made.make(right, MADE)
    title = f"reading {operations:,} operations and their ledger / cpsim judge, processor time"
    yield title, in_turns(lambda _: processor_s(READING, right), lambda _: processor_s(JUDGING, right))
    yield from spread_rows(right, operations)
    for variant in [each for each in made.VARIANTS if each != "right"]:
        odd = folder / variant.replace(" ", "-")
        judged = made.make(odd, ODD, variant)
        rate = in_turns(lambda _, odd=odd, judged=judged: judged / processor_s(JUDGING, odd), lambda _: WANTED)
        yield f"operations judged in a second of processor time, {variant} / wanted", rate


def processor_s(script: str, folder: Path) -> float:
    """Seconds of processor time of a process and its threads, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-P", "-c", script, folder], stdout=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def embedded() -> Run:
    """A run of the challenge at an embedded fake."""
    return run(
        lambda: load_workload(find_scenario("challenge"), None, ["arrivals.jobs=16000"]),
        None,
        AsFastAsPossible(),
        in_flight=64,
        timeout_s=10.0,
        slot_prefix=None,
        on_stage=lambda _: None,
        on_progress=lambda *_: None,
    )


def verified(done: Run) -> float:
    """Operations a second that are judged."""
    begun_s, evidence = time.perf_counter(), done.evidence
    verdict = judge(evidence.partitions(), evidence.head(), OF_ACCOUNTS)
    assert verdict.ruling == "valid"
    return len(evidence.records) / (time.perf_counter() - begun_s)


def reported(books: Path) -> float:
    """Seconds for a report of a run folder."""
    from cpsim.accounting import Accounts
    from cpsim.accounting.building import build

    begun_s = time.perf_counter()
    with Accounts.load(books) as accounts:
        build(accounts, ["leaderboards"])
    return time.perf_counter() - begun_s


def read(books: Path) -> float:
    """Seconds for reading the ledger and the accounts of a run folder."""
    begun_s = time.perf_counter()
    for name in ("ledger", "accounts"):
        pq.read_table(books / f"{name}.parquet")
    return time.perf_counter() - begun_s
