"""What comes after a replay: the verdict on a run, and reports of a ledger."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import ledger
import pyarrow.parquet as pq
from rounds import Row, in_turns

from cpsim.accounts.view import View
from cpsim.config.catalog import find_scenario
from cpsim.judge.books import judge_books
from cpsim.judge.history import History
from cpsim.judge.model import Span
from cpsim.judge.slots import judge_slots
from cpsim.judge.verdict import Verdict
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run.pipeline import Run, run
from cpsim.scenario import load_workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPERATIONS = 1_000_000


def rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Verification beside the replay that it judges, and a report beside the reading of its files."""
    runs: list[Run] = []

    def replayed(_: int) -> float:
        runs.append(embedded())
        return len(runs[-1].records) / runs[-1].elapsed_s

    # the replay of a round comes second, so that of the round before is judged
    runs.append(embedded())
    yield "verification / replay at the embedded fake, operations/s", in_turns(lambda _: verified(runs[-1]), replayed)
    if find_spec("duckdb"):
        ledger.make(folder / "books", OPERATIONS)
        yield (
            f"report of {OPERATIONS:,} operations / reading its files, time",
            in_turns(lambda _: reported(folder / "books"), lambda _: read(folder / "books")),
        )


def embedded() -> Run:
    """A run of the challenge at an embedded fake."""
    return run(
        lambda: load_workload(find_scenario("challenge")),
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
    begun_s = time.perf_counter()
    verdict = Verdict()
    end_ns = int(done.records["answered_ns"].max()) + 1
    seen = Span(end_ns, end_ns)
    history = History(done.workload, done.slot_prefix, done.records, done.errors, direct=False, seen=seen)
    assert done.target.credentials is not None
    judge_slots(history, done.slots, done.target.credentials[0], verdict, fresh=True)
    judge_books(View.of_tables(done.slots, done.accounts), verdict, done.links())
    assert verdict.ruling == "valid"
    return len(done.records) / (time.perf_counter() - begun_s)


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
