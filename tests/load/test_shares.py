"""What workers answer of their shares adds up to what one process finds of the whole: the verdict, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.fake import ANY_PORT, Fake
from cpsim.run.documents import json_text
from cpsim.run.plan import ReplayTarget
from tests.judge.test_judge_again import PROJECT, SECRET, perform, server_of

PROGRAM = Path(__file__).with_name("shares_program.py")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """The folder of a run with wrong slots, and what a program makes of it in shares."""
    folder = tmp_path_factory.mktemp("wrong")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=ANY_PORT, quirks=frozenset({"reclaim"})) as site:
            target = ReplayTarget(UnixEndpoint("cp.sock"), *server_of(site))
            perform(target, scenario="duplicate-claims", settings=["arrivals.jobs=300"])
    done = subprocess.run(
        [sys.executable, PROGRAM, folder / "out"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", [json.loads(line) for line in done.stdout.splitlines()]


def test_the_verdict_is_that_of_one_process_byte_for_byte(wrong):
    folder, (_, *loads) = wrong
    kept = json.loads((folder / "verdict.json").read_text())
    assert len(kept["anomalies"]) > 10
    assert len(kept["examples"]) > 1
    for load in loads:
        assert json_text(load["verdict"]) == (folder / "verdict.json").read_text()


def test_a_worker_that_is_lost_before_it_has_judged_leaves_its_slots_unknown(wrong):
    for load in wrong[1][1:]:
        assert "The slots of worker-0: it was lost before it had judged them." in load["lost"]["not_verified"]
        assert load["lost"]["checked"].get("slots", 0) < load["verdict"]["checked"]["slots"]


def test_figures_add_up_bucket_by_bucket(wrong):
    one, *loads = (each["figures"] for each in wrong[1])
    exact = {"by_kind", "errors", "sent", "left_out", "per_second", "by_kind_ms", "step_s", "offered", "achieved"}
    exact |= {"refused", "unknown", "in_flight", "outages"}
    for load in loads:
        assert {name: load[name] for name in exact} == {name: one[name] for name in exact}
        assert all_close(load["service_ms"]["p99"], one["service_ms"]["p99"])
        for row, mine in zip(one["seconds"], load["seconds"], strict=True):
            assert row.keys() == mine.keys()
            assert (row["operations"], row["not_accepted"]) == (mine["operations"], mine["not_accepted"])
            assert all_close([mine["service_max_ms"]], [row["service_max_ms"]])
    assert all(load == loads[0] for load in loads)


def all_close(found, exact):
    """Whether each figure is that of a histogram of three significant digits, in whole microseconds."""
    return all(
        mine is one is None or one - 1e-3 <= mine <= one * 1.001 + 1e-3 for mine, one in zip(found, exact, strict=True)
    )


def test_rows_of_shares_are_joined_to_the_file_of_one_process(wrong):
    for load in wrong[1][1:]:
        assert load["is_joined"]
        assert len(load["slowest"]) == 3
        assert load["slowest"] == wrong[1][1]["slowest"]
        assert sum(sent for _, sent in load["parts"]) == load["figures"]["sent"]


def test_a_master_hears_no_more_of_ten_times_as_many_operations(wrong):
    one, ten = wrong[1][0]["heard"]
    assert ten == one
