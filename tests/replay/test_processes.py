"""A replay by several processes is that of one: every operation once, each slot in its order, one start."""

import dataclasses
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.config.catalog import find_scenario
from cpsim.errors import CpsimError
from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.assignment import Assignment
from cpsim.replay.engine import Effort, joint_effort
from cpsim.replay.pace import AsFastAsPossible, Rate
from cpsim.replay.payloads import frames
from cpsim.replay.processes import Processes
from cpsim.scenario import load_workload

MS = 1_000_000
ASAP = AsFastAsPossible()
GUARD_S = 60


@pytest.fixture(scope="module")
def smoke():
    return load_workload(find_scenario("smoke"))


def assignment(workload, endpoint, pace=ASAP, timeout_s=5.0):
    return Assignment(
        workload, np.arange(len(workload)), pace.schedule(workload.due_us), "p", endpoint, None, 8, timeout_s
    )


def acknowledge(connection, served):
    frame = connection.recv(1500)
    if frame:
        with served.lock:
            served.received.append(frame)
        connection.sendall(b"ER" if frame.startswith(b"discard") else b"OK")


def test_every_operation_is_sent_once_and_recorded_under_its_number(smoke, peer):
    served = peer(acknowledge)
    with Processes(assignment(smoke, served.endpoint), 3, lambda _: None) as processes:
        elapsed_s, records, errors = processes.run()
    sent = [frame for chunk in frames(smoke, "p") for frame in chunk]
    assert sorted(served.received) == sorted(sent)
    assert records["op"].tolist() == list(range(len(smoke)))
    refused = [frame.startswith(b"discard") for frame in sent]
    assert (records["outcome"] == OperationOutcome.REFUSED).tolist() == refused
    assert [errors[code] for code in records["error"]] == ["ER" if was else "" for was in refused]
    assert elapsed_s > 0
    for slot in {frame.split(b",")[1] for frame in sent}:
        of_slot = [frame for frame in served.received if frame.split(b",")[1] == slot]
        assert of_slot == [frame for frame in sent if frame.split(b",")[1] == slot]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_are_disjoint_by_slot_and_keep_their_schedule(smoke, count):
    whole = assignment(smoke, UnixEndpoint("nowhere"), Rate(100))
    parts = [whole.part(index, count) for index in range(count)]
    assert sorted(op for part in parts for op in part.ops.tolist()) == list(range(len(smoke)))
    slots = [set(smoke.slot[part.ops].tolist()) for part in parts]
    assert sum(map(len, slots)) == len(set.union(*slots))
    assert all(part.schedule_us.tolist() == whole.schedule_us[part.ops].tolist() for part in parts)
    assert sum(part.in_flight for part in parts) == 8


def test_all_begin_at_the_same_moment(smoke, peer):
    """None has an answer before the other has begun, and none is too early."""
    sent = (frame for chunk in frames(smoke, "p") for frame in chunk)
    share_of = dict(zip(sent, (smoke.slot % 2).tolist(), strict=True))
    begun = [threading.Event(), threading.Event()]

    def handle(connection, served):
        if frame := connection.recv(1500):
            begun[share_of[frame]].set()
            if all(each.wait(GUARD_S) for each in begun):
                connection.sendall(b"OK")

    served = peer(handle)
    with Processes(assignment(smoke, served.endpoint, Rate(5_000), 2 * GUARD_S), 2, lambda _: None) as processes:
        _, records, _ = processes.run()
    assert (records["outcome"] == OperationOutcome.ACCEPTED).all()
    assert (records["sent_ns"] >= records["op"].astype(np.int64) * MS // 5).all()


def test_stopping_records_what_was_under_way_as_unknown(smoke, peer):
    stop = threading.Event()

    def handle(connection, served):
        frame = connection.recv(1500)
        if not frame:
            return
        with served.lock:
            served.received.append(frame)
            if len(served.received) == 50:
                stop.set()
            hang = len(served.received) > 50
        if hang:
            served.stopping.wait(10)
        else:
            connection.sendall(b"OK")

    served = peer(handle)

    def when_told(progress):
        if stop.is_set():
            processes.stop()

    with Processes(assignment(smoke, served.endpoint), 2, when_told) as processes:
        _, records, errors = processes.run()
    assert len(records) == len(served.received) < len(smoke)
    unknown = records[records["outcome"] == OperationOutcome.UNKNOWN]
    assert 1 <= len(unknown) <= 8
    assert {errors[code] for code in unknown["error"]} == {"interrupted"}


def test_a_process_that_dies_is_an_error(smoke, peer):
    served = peer(lambda connection, served: connection.recv(1500) and served.stopping.wait(10))

    def kill(progress):
        if served.connections > 4:
            processes._replayers[0].process.kill()

    with (
        Processes(assignment(smoke, served.endpoint), 2, kill) as processes,
        pytest.raises(CpsimError, match="status -9"),
    ):
        processes.run()


def test_an_exception_in_a_process_ends_the_replay_with_its_message(smoke, peer, capfd):
    served = peer(acknowledge)
    broken = assignment(dataclasses.replace(smoke, machines=()), served.endpoint)
    raised = r"IndexError: list index out of range \(cpsim\.replay\.payloads, line \d+\); what it had sent is not known"
    with Processes(broken, 2, lambda _: None) as processes, pytest.raises(CpsimError, match=raised):
        processes.run()
    assert capfd.readouterr() == ("", "")


def test_what_several_senders_tried_again_adds_up():
    joint = joint_effort([Effort(0.25, {"backlog full": 3}), Effort(0.75, {"backlog full": 4, "other": 1})])
    assert joint == Effort(0.75, {"backlog full": 7, "other": 1})


def test_a_process_whose_parent_has_gone_in_the_middle_says_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-P", "-c", "from cpsim.replay.processes import main; main()"]
    cut_short = pickle.dumps((3, "assignment"))[:-2]
    done = subprocess.run(command, input=cut_short, stdout=writing, stderr=subprocess.PIPE, timeout=280, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
