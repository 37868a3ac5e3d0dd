"""A run folder is judged by several processes, or by a Dask cluster: the verdict is the same, byte for byte."""

import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.errors import CpsimError
from cpsim.evidence import evidence as evidence_module
from cpsim.evidence.files import EvidenceFolder
from cpsim.fake import ANY_PORT, Fake
from cpsim.run.plan import ReplayTarget
from cpsim.run.spread import FolderToJudge, judge_folder, on_this_machine
from cpsim.system.cluster import workers_errors

from .test_judge_again import PROJECT, SECRET, perform, server_of


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """The folder of a run in several partitions, with wrong slots in each."""
    folder = tmp_path_factory.mktemp("wrong")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(evidence_module, "PARTITION", 60)
        with Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=ANY_PORT, quirks=frozenset({"reclaim"})) as site:
            target = ReplayTarget(UnixEndpoint("cp.sock"), *server_of(site))
            result = perform(target, scenario="duplicate-claims", settings=["arrivals.jobs=100"])
    assert EvidenceFolder(folder / "out").count > 3
    assert result.verdict.ruling == "invalid"
    return folder / "out"


def test_several_processes_come_to_the_same_verdict(wrong):
    command = [sys.executable, "-m", "cpsim", "judge", str(wrong), "--json", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, (wrong / "verdict.json").read_text(), "")


@pytest.mark.parametrize("judges", [nullcontext, partial(on_this_machine, 2)])
def test_it_is_told_how_many_partitions_are_judged(wrong, judges):
    told, evidence = [], EvidenceFolder(wrong)
    with judges() as spread:
        judge_folder(FolderToJudge(wrong), evidence, spread, told.append)
    assert told == list(range(1, evidence.count + 1))


def test_a_cluster_comes_to_the_same_verdict(cpsim, wrong, cluster):
    dask = ["--engine", "dask", "--scheduler", cluster]
    assert cpsim("judge", wrong, "--json", *dask) == (1, (wrong / "verdict.json").read_text(), "")
    later = cpsim("judge", wrong, "--json", "--accounts", wrong)
    assert cpsim("judge", wrong, "--json", "--accounts", wrong, *dask) == later


def test_slots_of_a_partition_stand_together_and_those_of_earlier_folders_are_handed_on(
    cpsim, wrong, cluster, tmp_path
):
    folder = EvidenceFolder(wrong)
    parts = [folder.partition(index, None) for index in range(folder.count)]
    assert sorted(id for part in parts for id in part.ledger["slot"].to_pylist()) == sorted(
        folder.whole().ledger["slot"].to_pylist()
    )
    for file in wrong.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    document = json.loads((wrong / "evidence.json").read_text())
    for part in document["partitions"]:
        del part["ledger.parquet"]
    (tmp_path / "evidence.json").write_text(json.dumps(document))
    kept = (wrong / "verdict.json").read_text()
    assert cpsim("judge", tmp_path, "--json") == (1, kept, "")
    assert cpsim("judge", tmp_path, "--json", "--engine", "dask", "--scheduler", cluster) == (1, kept, "")


def test_workers_that_see_another_folder_or_none_are_told(cpsim, wrong, cluster, monkeypatch):
    monkeypatch.chdir(wrong)
    status, _, err = cpsim("judge", "/proc/self/cwd", "--engine", "dask", "--scheduler", cluster)
    assert status == 2
    assert f"a worker of the Dask cluster at {cluster}: /proc/self/cwd is not a run folder" in err


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ModuleNotFoundError("No module named 'cpsim'", name="cpsim"), "lacks cpsim: its scheduler and workers need"),
        (CpsimError("no room"), "a worker of the Dask cluster at tcp://there: no room"),
    ],
)
def test_what_goes_wrong_at_a_worker_is_said_in_a_line(raised, message):
    with pytest.raises(CpsimError, match=message), workers_errors("tcp://there"):
        raise raised


def test_a_scheduler_that_is_not_there_is_told(cpsim, wrong):
    status, _, err = cpsim("judge", wrong, "--engine", "dask", "--scheduler", "tcp://127.0.0.1:9")
    assert status == 2
    assert "cannot reach a Dask scheduler at tcp://127.0.0.1:9" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "dask"], "--engine dask and --scheduler ADDRESS go together"),
        (["--scheduler", "tcp://127.0.0.1:9"], "--engine dask and --scheduler ADDRESS go together"),
        (["--engine", "dask", "--scheduler", "x", "--processes", "2"], "leave one of them out"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(cpsim, tmp_path, options, message):
    status, _, err = cpsim("judge", tmp_path, *options)
    assert status == 64
    assert message in " ".join(err.split())


def test_processes_that_judge_end_with_the_one_that_asked(wrong, tmp_path, wait_for):
    """A pool whose parent is killed ends: nobody else would end it."""
    code = (
        "import os, sys\n"
        "from cpsim.run.spread import on_this_machine\n"
        "if __name__ == '__main__':\n"
        "    with on_this_machine(1) as spread:\n"
        "        print(spread.pool.submit(os.getpid).result(), flush=True)\n"
        "        sys.stdin.read()\n"
    )
    (tmp_path / "parent.py").write_text(code)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not is_running(child))


def is_running(process):
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
