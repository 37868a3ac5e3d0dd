"""Rates that change, users who think, what a replay cost, and what each second was like."""

import numpy as np
import pytest

from cpsim.evidence.journal import RECORD_TYPE
from cpsim.replay.failures import kind_of
from cpsim.replay.pace import Profile, Users
from cpsim.run.latency import by_second

MS = 1_000_000


def test_a_profile_ramps_steps_and_then_stays():
    due_us = Profile.parse("0..100:10s, 100:5s,500:1s,50:2s").schedule(np.zeros(1_700))
    a_second = np.bincount(due_us // 1_000_000)
    assert a_second[:10].sum() == pytest.approx(500, abs=1)
    assert a_second[:10].tolist() == pytest.approx([10 * second + 5 for second in range(10)], abs=1)
    assert a_second[10:19].tolist() == [100] * 5 + [500] + [50] * 3
    assert (np.diff(due_us) >= 0).all()


def test_a_profile_can_ramp_down():
    due_us = Profile.parse("100..50:2s").schedule(np.zeros(200))
    assert np.count_nonzero(due_us < 2_000_000) == pytest.approx(150, abs=1)
    assert np.diff(due_us)[-10:].tolist() == pytest.approx([20_000] * 10, abs=1)


@pytest.mark.parametrize("text", ["", "100", "100:s", "1..2..3:4s", "100..0:5s", "0:5s", "5:0s", "1e12:1s", "-1..5:2s"])
def test_a_profile_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match=r"RATE|rate"):
        Profile.parse(text)


def test_users_wait_for_their_answer_and_then_think(replay_by_hand):
    think_s = 0.05
    replayed = replay_by_hand([b"x"] * 21, lambda _: 0.01, slots=[0, 1, 2] * 7, in_flight=3, think_s=think_s)
    records = replayed.records
    assert len(records) == 21
    assert replayed.elapsed_s == pytest.approx(7 * 0.01 + 6 * think_s)
    under_way_or_thinking = [
        np.count_nonzero((records["sent_ns"] <= at) & (records["answered_ns"] + think_s * 1e9 > at))
        for at in records["sent_ns"]
    ]
    assert max(under_way_or_thinking) == 3
    assert Users(3, think_s).schedule(np.zeros(3)) is None


@pytest.mark.parametrize(("cost_s", "busy"), [(0.0, 0.0), (0.05, 0.5), (0.45, 0.9)])
def test_a_sender_is_busy_as_far_as_it_does_not_wait(replay_by_hand, cost_s, busy):
    replayed = replay_by_hand([b"x"] * 10, lambda _: 0.05, cost_s=cost_s, in_flight=1)
    assert replayed.effort.busy == pytest.approx(busy)
    assert replayed.effort.retried == {}


def test_each_second_has_what_was_due_in_it():
    records = np.zeros(5, RECORD_TYPE)
    due_ns = np.array([0, 500, 2_100, 2_200, 2_900]) * MS
    records["sent_ns"] = due_ns + np.array([0, 0, 0, 1_000, 0]) * MS
    records["answered_ns"] = records["sent_ns"] + 10 * MS
    records["outcome"][3] = 2
    first, second, third = by_second(records, due_ns)
    assert (first["operations"], second["operations"], third["operations"]) == (2, 0, 3)
    assert (first["not_accepted"], third["not_accepted"]) == (0, 1)
    assert (third["service_max_ms"], third["response_max_ms"], third["lateness_max_ms"]) == (10, 1010, 1000)
    assert second["service_p99_ms"] is None
    assert [row["operations"] for row in by_second(records, None)] == [2, 0, 2, 1]
    assert by_second(records[:0], None) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("backlog full", "backlog"),
        ("cannot connect: no port is free here", "ports"),
        ("cannot connect: Connection refused", "refused"),
        ("cannot connect: No route to host", "unreachable"),
        ("no answer in time", "timeout"),
        ("ER", "ER"),
        ("reply lost: Connection reset by peer", "reset"),
        ("reply lost: closed without an answer", "closed"),
        ("HTTP 503 with a body that is not the API's", "HTTP 503"),
        ("HTTP 500: slot ... is not there", "HTTP 500"),
        ("something else", "other"),
    ],
)
def test_failures_have_few_kinds(error, kind):
    assert kind_of(error) == kind
