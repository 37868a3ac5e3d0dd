"""What is larger than memory, and what is spread over a cluster: the same figures."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

from cpsim.accounting import Accounts, build, files, page, screen
from cpsim.errors import CpsimError
from cpsim.system.checks import WrongArgument

FRAMES = ("projects", "machines", "users", "counters", "reasons", "outstanding", "durations", "times", "checks")
MAKE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ledger.py"))["make"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "run"
    MAKE(folder, 300_000)
    return folder


def test_what_does_not_fit_into_memory_is_spilled(folder):
    with Accounts.load(folder) as roomy, Accounts.load(folder, memory_mb=300) as narrow:
        roomy.top = narrow.top = 2
        assert [report.name for report in build(narrow)] == [report.name for report in build(roomy)]
        for name in (*FRAMES, "reconciliation", "rules"):
            pd.testing.assert_frame_equal(getattr(narrow, name), getattr(roomy, name), rtol=1e-9)
        assert narrow.reconciliation["finding"].tolist() == ["agrees"]
        assert narrow.balanced


def test_a_statement_that_is_too_long_for_memory_is_written_piece_by_piece(folder, tmp_path, monkeypatch):
    def written(name):
        (tmp_path / name).mkdir()
        with Accounts.load(folder, since="2026-01-02", memory_mb=300) as accounts:
            accounts.top = 2
            reports = build(accounts, ["user-statement", "machine-statement"])
            files.write_csv(accounts, reports, tmp_path / name)
            files.write_parquet(accounts, reports, tmp_path / name)
            shown = [page.html(accounts, reports), screen.text(accounts, reports)]
            return reports, shown, accounts

    reports, shown, _ = written("whole")
    assert all(block.whole is None for report in reports for block in report.blocks)
    monkeypatch.setattr("cpsim.accounting.statements.ROW_BYTES", 10**9)
    monkeypatch.setattr("cpsim.accounting.statements.PIECE_ROWS", 100)
    reports, shown_in_pieces, accounts = written("pieces")
    assert all(block.whole is not None for report in reports for block in report.blocks)
    assert all(len(block.frame) <= 100 < block.whole.rows for block in reports[0].blocks)
    assert shown_in_pieces == shown
    for path in sorted((tmp_path / "whole").iterdir()):
        read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
        pd.testing.assert_frame_equal(read(tmp_path / "pieces" / path.name), read(path))
    for make in (files.json_text, files.markdown):
        with pytest.raises(
            CpsimError, match=r"^User .*: too many rows .* grants in project .*--memory MB, choose .*csv"
        ):
            make(accounts, reports)


def test_less_memory_than_the_program_takes_is_refused(folder):
    with pytest.raises(WrongArgument, match="memory_mb is 48, and must be 300 or more"):
        Accounts.load(folder, memory_mb=48)


def test_a_cluster_gives_the_same_frames(folder, cluster):
    with (
        Accounts.load(folder, scheduler=cluster, since="2026-02-01") as spread,
        Accounts.load(folder, since="2026-02-01") as here,
    ):
        for name in FRAMES:
            pd.testing.assert_frame_equal(getattr(spread, name), getattr(here, name), rtol=1e-9)


def test_a_scheduler_that_is_not_there_is_told(folder):
    with pytest.raises(CpsimError, match=r"cannot reach a Dask scheduler at tcp://127.0.0.1:9"):
        Accounts.load(folder, scheduler="tcp://127.0.0.1:9")
