"""Crashes in a run of the embedded fake: its process dies, is there again, and has all that it acknowledged."""

import os
import signal
import socket
import tempfile

import numpy as np
import pytest

from cpsim.errors import CpsimError
from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.pace import AsFastAsPossible, Rate, Virtual
from cpsim.run.pipeline import run as perform
from cpsim.scenario import generate, source

SCENARIO = """
description = "small"
duration = "1h"
population = { machines = 10, users = 5 }
arrivals = { model = "poisson", jobs = 200 }
run_time = { model = "constant", value = "5min" }
credits = { policy = "fixed", credits = 2 }
"""


@pytest.fixture
def crashing(tmp_path, monkeypatch):
    """Return crashing(*faults) -> the run that had them, which left neither files nor processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(*faults, scenario=SCENARIO, pace=None, processes=1, on_progress=lambda planned, progress: None):
        return perform(
            lambda: generate(source.parse(scenario, "small.toml")),
            None,
            pace or Rate(400),
            in_flight=16,
            timeout_s=100.0,
            processes=processes,
            slot_prefix=None,
            faults=faults,
            on_stage=lambda stage: None,
            on_progress=on_progress,
        )

    yield run
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def met(run):
    """(fault, how often it fired) of a run, of which nothing that was acknowledged was lost."""
    assert run.verdict.ruling == "valid", (run.verdict.anomalies[:3], run.verdict.not_verified)
    return [(fault["fault"], fault["fired"]) for fault in run.evidence.faults]


def test_a_daemon_may_refuse_from_the_start(crashing):
    run = crashing("daemon.refuse:until=0.3")
    assert met(run) == [("daemon.refuse:until=0.3", 1)]
    assert 0 < np.count_nonzero(run.evidence.records["outcome"] == OperationOutcome.REFUSED) < len(run.evidence.records)


def test_a_daemon_may_refuse_several_processes_all_the_time(crashing):
    run = crashing("daemon.refuse", processes=2)
    assert run.verdict.not_verified == ["Everything: no operation was accepted."]
    assert set(run.evidence.records["outcome"]) == {OperationOutcome.REFUSED}


@pytest.mark.parametrize(
    ("fault", "nth"),
    [
        ("daemon.crash-before-ok", 50),
        ("daemon.crash-after-ok", 50),
        ("daemon.crash-after-commit", 2),  # the number of a batch, of which a busy machine makes few
        ("server.crash-after-commit", 2),
    ],
)
def test_a_crash_comes_once_and_loses_nothing(crashing, fault, nth, tmp_path, wait_for):
    def answers():
        with socket.socket(socket.AF_UNIX) as sock:
            return all(sock.connect_ex(str(path)) == 0 for path in tmp_path.glob("*/daemon.sock"))

    # the sender waits for the next life, however long that takes to begin
    run = crashing(f"{fault}:nth={nth}", on_progress=lambda planned, progress: wait_for(answers))
    assert met(run) == [(f"{fault}:nth={nth}", 1)]
    assert run.evidence.faults[0]["selected"] >= nth
    assert [f"{firing['stage']}.{firing['action']}" for firing in run.evidence.firings] == [fault]
    outcomes = run.evidence.records["outcome"]
    if fault == "daemon.crash-before-ok":  # at the others' moments, perhaps nobody waits for an answer
        assert (outcomes != OperationOutcome.ACCEPTED).any()
    assert (outcomes[-5:] == OperationOutcome.ACCEPTED).all()


def test_faults_go_on_after_crashes_where_they_were(crashing):
    """Each of the crashes is another life's, and what else was asked for comes to pass as in one.

    While the next life begins, commands are refused, and what two are to crash at once crashes once: how many are
    selected and how many of them fire depends on how long that takes, but never are there more than in one life.
    """
    run = crashing(
        "daemon.crash-after-ok:kind=alloc,nth=20,count=3",
        "server.crash-after-commit:nth=4",
        "daemon.lose-reply:kind=claim,nth=25,count=2",
        "daemon.lose-reply:until=0.02,kind=claim",  # is over before the first crash
        scenario='faults = ["daemon.crash-before-ok:kind=claim,nth=20"]' + SCENARIO,
    )
    fired = [number for _, number in met(run)]
    limits = [(20, 1), (20, 3), (4, 1), (25, 2), (1, 0)]
    seen = [fault["selected"] for fault in run.evidence.faults]
    most = [min(count, max(0, each - nth + 1)) for each, (nth, count) in zip(seen, limits, strict=True)]
    assert all(number <= limit for number, limit in zip(fired, most, strict=True)), (fired, most)
    assert sum(fired[:3]) >= 3
    assert len(run.evidence.firings) == sum(fired)


def test_a_process_that_cannot_live_long_is_looked_at_all_the_same(crashing):
    """Each delivery crashes it, until the faults end, which only a life between two crashes can be told."""
    late = SCENARIO.replace("users = 5", 'users = 5, link = "after"')
    [(_, fired)] = met(crashing("daemon.crash-after-commit", scenario=late))
    assert fired > 2


def test_sites_crash_together(crashing):
    sites = '[[site]]\nproject = "a"\n[[site]]\nproject = "b"\n[[site]]\nproject = "b"\n'
    run = crashing("crash-after-ok:nth=150", scenario=SCENARIO + sites, processes=2)
    assert met(run) == [("daemon.crash-after-ok:nth=150", 1)]


def test_interrupting_leaves_nothing(crashing):
    def interrupt(planned, progress):
        if progress.accepted >= 5:
            os.kill(os.getpid(), signal.SIGINT)

    run = crashing("crash-after-ok:nth=5,count=1000", on_progress=interrupt)
    assert run.evidence.interrupted
    assert run.verdict.counts == {}


def test_a_clock_that_stands_still_cannot_be_taken_along(crashing):
    with pytest.raises(
        CpsimError, match=r"'daemon.crash-after-ok:nth=2': a process that crashes .*leave out --virtual"
    ):
        crashing("crash-after-ok:nth=2", pace=Virtual())


def test_without_crashes_nothing_is_kept_on_disk(crashing, tmp_path):
    seen = set()

    def look(planned, progress):
        seen.update(path.name for path in tmp_path.glob("*/*"))

    crashing("daemon.lose-reply:nth=3", pace=AsFastAsPossible(), on_progress=look)
    assert seen == {"daemon.sock"}
