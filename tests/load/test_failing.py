"""`cpsim load` in which something raises: all of it ends at once, and says why."""

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

import cpsim
from cpsim.replay.failures import was_answered

SPOILER = """
import os
from gevent.event import Event
from locust import events
from locust.runners import MasterRunner, WorkerRunner

WHAT = os.environ["SPOIL"]
BEATS = 18  # one a second, which a worker leaves out: more than those of silence after which it is lost


def first(runner):
    return not isinstance(runner, WorkerRunner) or runner.worker_index == 0


@events.init.add_listener
def spoil(environment, runner, **_):
    send, sent = runner.send_message, []
    left_out, is_over = [], Event()

    def noted(name, *arguments, **named):
        if WHAT == "silent" and name == "cpsim-ready" and first(runner):
            beat, runner.client.send = runner.client.send, silent
            is_over.wait()
            runner.client.send = beat
        send(name, *arguments, **named)
        sent.append(name)

    def silent(message):
        assert message.type in {"heartbeat", "stats", "spawning_complete"}, message.type
        left_out.append(message.type == "heartbeat")
        if sum(left_out) == BEATS:
            is_over.set()

    def spoiled(batch):
        if "cpsim-progress" in sent:
            if WHAT == "kill":
                os.kill(os.getpid(), 9)
            if WHAT == "master":
                send("cpsim-progress", {})
            else:
                raise IndexError("one\\ntwo")

    def share(**_):
        clients = runner.clients.all if isinstance(runner, MasterRunner) else ()
        runner.send_message("cpsim-share", None, next((client.id for client in clients), "local"))

    def asked(environment, msg):
        if msg.data["what"] == "judge":
            os.kill(os.getpid(), 9)
        answer(environment=environment, msg=msg)

    if WHAT == "judge" and isinstance(runner, WorkerRunner) and first(runner):
        answer, _ = runner.custom_messages["cpsim-ask"]
        runner.custom_messages["cpsim-ask"] = asked, False
    runner.send_message = noted
    if WHAT == "handler" and not isinstance(runner, WorkerRunner):
        environment.events.spawning_complete.add_listener(share)
    if WHAT in {"replay", "master", "kill"} and not isinstance(runner, MasterRunner) and first(runner):
        environment.events.test_start.add_listener(lambda **_: setattr(runner.stats.total, "extend", spoiled))
"""
PROGRAM = """
import sys
from cpsim.config.catalog import find_scenario
from cpsim.scenario import load_workload

def workload(seed):
    if {"-f", "--worker"} <= set(sys.argv):
        raise LookupError("not on this machine")
    return load_workload(find_scenario("smoke"), seed)
"""
LOCUSTFILE = Path(cpsim.__file__).parent / "load" / "locustfile.py"
RAISED = {
    "replay": "IndexError: one two (spoil, line ",
    "handler": "TypeError: ",
    "master": "KeyError: 'counted' (cpsim.load.followers, line ",
}
SLOWLY = ["--output", "run", "--rate", "300", "--timeout", "2"]


@pytest.fixture
def spoiled(loads, tmp_path):
    """Starts loads with a second locustfile, that of somebody whose code raises."""
    (tmp_path / "spoil.py").write_text(SPOILER)

    def start(what, *locust):
        return loads.start("smoke", *locust, "-f", f"{LOCUSTFILE},spoil.py", options=SLOWLY, variables={"SPOIL": what})

    return start


def said(process):
    output, _ = process.communicate(timeout=280)
    return output


def complaints(output):
    return [line for line in output.splitlines() if line.startswith("cpsim: ") and "a worker: " not in line]


def running(process):
    """What runs of a process and those that it has started; one that only nobody has waited for does not."""
    running = []
    for other in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                running.append(other)
    return running


def document(path):
    return json.loads((path / "run.json").read_text()) | json.loads((path / "verdict.json").read_text())


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("ways", [[], ["--processes", "2"]], ids=["embedded", "processes"])
def test_an_exception_ends_the_run_with_its_message(spoiled, tmp_path, what, ways):
    process = spoiled(what, "--headless", *ways)
    output = said(process)
    assert process.returncode == 2, output
    (complaint,) = complaints(output)
    assert RAISED[what] in complaint
    assert "Traceback" not in output
    assert not running(process)
    if what != "handler":  # which raises before anything is sent
        told_honestly(tmp_path / "run", complaint, lost=what == "replay")


def told_honestly(folder, complaint, *, lost):
    """A run folder has what was heard of; what a lost worker may have sent is unknown, and takes no time."""
    run = document(folder)
    assert run["verdict"] == "unknown"
    assert complaint.removeprefix("cpsim: ") in str(run["not_verified"]).replace('\\"', '"')
    journal = pq.read_table(folder / "journal.parquet").to_pylist()
    heard = [row for row in journal if row["error"] != "lost with its worker"]
    assert len(heard) > 0
    assert (len(heard) < len(journal)) == lost
    assert sum(pq.read_table(folder / "seconds.parquet")["operations"].to_pylist()) == len(heard)
    answered = [row for row in heard if was_answered(row["error"])]
    assert run["operations_per_s"] == pytest.approx(len(answered) / run["elapsed_s"], rel=0.01)


def test_workers_elsewhere_end_too_and_say_why(spoiled, port):
    bind = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2"]
    master = spoiled("replay", "--headless", *bind)
    workers = [spoiled("replay", "--worker", "--master-host", "127.0.0.1", "--master-port", port) for _ in range(2)]
    outputs = [said(process) for process in (master, *workers)]
    assert [process.returncode for process in (master, *workers)] == [2, 2, 2], outputs
    assert {*map(str, map(complaints, outputs))} == {str(complaints(outputs[0]))}
    assert RAISED["replay"] in str(complaints(outputs[0]))
    assert not [output for output in outputs if "Traceback" in output]


def test_a_worker_that_cannot_make_its_workload_ends_the_run(loads, tmp_path, port):
    (tmp_path / "made.py").write_text(PROGRAM)
    bind = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "1"]
    master = loads.start("made.py", "--headless", *bind)
    worker = loads.start("made.py", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    outputs = [said(process) for process in (master, worker)]
    assert [master.returncode, worker.returncode] == [2, 2], outputs
    assert all("LookupError: not on this machine" in complaints(output)[0] for output in outputs), outputs
    assert not [output for output in outputs if "Traceback" in output]


def test_a_worker_that_is_silent_while_it_makes_its_share_is_not_lost(spoiled, tmp_path):
    process = spoiled("silent", "--headless", "--processes", "2")
    output = said(process)
    assert process.returncode == 0, output
    assert "is lost" not in output
    assert document(tmp_path / "run")["verdict"] == "valid"


def test_workers_that_are_all_killed_end_the_run(spoiled, tmp_path):
    process = spoiled("kill", "--headless", "--processes", "1")
    output = said(process)
    assert process.returncode == 2, output
    assert "is lost: nothing is heard of it any more" in complaints(output)[0]
    assert document(tmp_path / "run")["verdict"] == "unknown"


def test_a_worker_that_is_killed_before_it_has_judged_leaves_its_slots_unknown(spoiled, tmp_path):
    process = spoiled("judge", "--headless", "--processes", "2")
    output = said(process)
    assert process.returncode == 2, output
    assert "it was lost before it had judged them" in output
    assert "is lost, which has them" in output
    run = document(tmp_path / "run.partial")
    assert (run["verdict"], run["anomalies_by_name"]) == ("unknown", {})
    assert 0 < run["checked"]["slots"] < 500
    assert run["checked"]["replies"] == run["operations"]


def test_malformed_frames_are_counted_like_other_operations(loads, tmp_path):
    process = loads.start(
        "misbehaviour", "--headless", "--processes", "2", "--json-file", "stats", options=["--output", "run"]
    )
    output = said(process)
    assert process.returncode == 0, output
    counted = {entry["name"]: entry["num_requests"] for entry in json.loads((tmp_path / "stats.json").read_text())}
    assert counted == {kind: counts["planned"] for kind, counts in document(tmp_path / "run")["by_kind"].items()}
    assert counted["frame"] > 0
