"""What is larger than memory, and what is spread over a cluster: the same figures."""

import runpy
import subprocess
import sys
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


CLUSTER = """
import sys
import pandas as pd
from distributed import LocalCluster
from cpsim.accounting import Accounts

if __name__ == "__main__":
    _, folder, *frames = sys.argv
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Accounts.load(folder, scheduler=cluster.scheduler_address, since="2026-02-01") as spread,
        Accounts.load(folder, since="2026-02-01") as here,
    ):
        for name in frames:
            pd.testing.assert_frame_equal(getattr(spread, name), getattr(here, name), rtol=1e-9)
            print(name)
"""


def test_a_cluster_gives_the_same_frames(folder, tmp_path):
    """In a process of its own, because a cluster leaves helpers of Python's multiprocessing behind."""
    pytest.importorskip("distributed", reason="a cluster needs dask[distributed]")
    script = tmp_path / "spread.py"
    script.write_text(CLUSTER, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), *FRAMES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(FRAMES)


def test_a_scheduler_that_is_not_there_is_told(folder):
    pytest.importorskip("distributed", reason="a cluster needs dask[distributed]")
    with pytest.raises(CpsimError, match=r"cannot reach a Dask scheduler at tcp://127.0.0.1:9"):
        Accounts.load(folder, scheduler="tcp://127.0.0.1:9")
