"""What is larger than memory, and what is spread over a cluster: the same figures."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

from cpsim.accounting import Accounts, build
from cpsim.errors import CpsimError

FRAMES = ("projects", "machines", "users", "counters", "reasons", "outstanding", "durations", "times", "checks")
MAKE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ledger.py"))["make"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "run"
    MAKE(folder, 300_000)
    return folder


def test_what_does_not_fit_into_memory_is_spilled(folder):
    with Accounts.load(folder) as roomy, Accounts.load(folder, memory_mb=48) as narrow:
        roomy.top = narrow.top = 2
        assert [report.name for report in build(narrow)] == [report.name for report in build(roomy)]
        for name in (*FRAMES, "reconciliation", "rules"):
            pd.testing.assert_frame_equal(getattr(narrow, name), getattr(roomy, name), rtol=1e-9)
        assert narrow.reconciliation["finding"].tolist() == ["agrees"]
        assert narrow.balanced


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
