"""Times: when operations are due, and that a stall of the target counts against everything it held up."""

import numpy as np
import pytest

from cpsim.replay.engine import operations
from cpsim.replay.pace import LATEST_US, AsFastAsPossible, Rate, Speed

MS = 1_000_000


def acknowledge(connection, peer):
    if connection.recv(1500):
        connection.sendall(b"OK")


def test_schedules():
    due_us = np.array([0, 10, 10, 1_000_000])
    assert AsFastAsPossible().schedule(due_us) is None
    assert Speed(4).schedule(due_us).tolist() == [0, 2, 2, 250_000]
    assert Speed(0.5).schedule(due_us).tolist() == [0, 20, 20, 2_000_000]
    assert Rate(1000).schedule(due_us).tolist() == [0, 1000, 2000, 3000]
    assert Rate(0.5).schedule(due_us).tolist() == [0, 2_000_000, 4_000_000, 6_000_000]
    assert [str(pace) for pace in (AsFastAsPossible(), Speed(2), Rate(1e3))] == [
        "as fast as possible",
        "2 times the scenario's speed",
        "1000 operations/s",
    ]


@pytest.mark.parametrize("pace", [Speed(1e-6), Rate(1e-6)])
def test_schedules_end_before_their_numbers_do(pace):
    schedule = pace.schedule(np.full(100_000, 3_650 * 86_400_000_000))
    assert schedule.max() == LATEST_US
    assert (np.diff(schedule) >= 0).all()
    assert (schedule * 1000 >= 0).all()  # in nanoseconds, too


@pytest.mark.parametrize("schedule", [None, np.array([0, 5, 7, 9, 11])])
def test_operations_are_numbered_across_chunks(schedule):
    slots = np.array([3, 1, 3, 2, 1], dtype=np.int32)
    made = list(operations(slots, schedule, [[b"a", b"b"], [b"c", b"d"], [b"e"]]))
    due_ns = [0] * 5 if schedule is None else [0, 5000, 7000, 9000, 11000]
    assert made == [*zip(range(5), slots.tolist(), due_ns, [b"a", b"b", b"c", b"d", b"e"], strict=True)]


@pytest.mark.parametrize("pace", [Rate(200), Speed(10)])
def test_operations_are_sent_when_they_are_due(replay_by_hand, pace):
    due_ns = pace.schedule(np.arange(60) * 50_000) * 1000  # 200/s, either way
    replayed = replay_by_hand([b"x"] * 60, lambda _: 0.001, due_ns=due_ns.tolist())
    lateness_ns = replayed.records["sent_ns"] - due_ns
    assert ((lateness_ns >= 0) & (lateness_ns <= 0.01 * MS)).all()
    assert replayed.elapsed_s == pytest.approx(0.296, abs=1e-5)
    assert replayed.effort.busy == 0  # it waits for the next to be due, and says so


def test_none_is_sent_before_it_is_due(peer, replay):
    due_ns = Rate(200).schedule(np.zeros(20)) * 1000
    replayed = replay(peer(acknowledge, "unix").endpoint, [b"x"] * 20, due_ns=due_ns.tolist())
    assert (replayed.records["sent_ns"] >= due_ns).all()


def test_a_stall_counts_against_what_it_held_up(replay_by_hand):
    payloads = [b"%d" % n for n in range(60)]
    due_ns = Rate(200).schedule(np.zeros(60)) * 1000
    records = replay_by_hand(
        payloads, lambda payload: 0.3 if payload == b"20" else 0.001, due_ns=due_ns.tolist(), in_flight=1
    ).records
    service_ns = records["answered_ns"] - records["sent_ns"]
    response_ns = records["answered_ns"] - due_ns
    assert service_ns.tolist() == [300 * MS if n == 20 else MS for n in range(60)]
    assert response_ns[20] == pytest.approx(300 * MS, abs=0.01 * MS)
    assert np.diff(response_ns[20:]).tolist() == pytest.approx([-4 * MS] * 39)  # it is caught up with, bit by bit


def test_a_slow_slot_holds_up_no_other(replay_by_hand):
    due_ns = Rate(200).schedule(np.zeros(40)) * 1000
    slots = [0 if n % 10 == 0 else n for n in range(40)]
    payloads = [b"%d" % n for n in range(40)]
    records = replay_by_hand(
        payloads, lambda payload: 0.3 if payload == b"0" else 0.001, slots=slots, due_ns=due_ns.tolist()
    ).records
    records = records[np.argsort(records["op"])]
    lateness_ns = records["sent_ns"] - due_ns
    assert lateness_ns[[10, 20, 30]].tolist() == pytest.approx([250 * MS, 201 * MS, 152 * MS])
    assert (np.delete(lateness_ns, [10, 20, 30]) <= 0.01 * MS).all()
