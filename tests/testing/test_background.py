"""Traffic in the background: it shows, and rules do not take it for the code under test's."""

import pytest

from cpdaemon import Client
from cpsim.errors import CpsimError
from cpsim.testing import CreditPiggy


@pytest.fixture
def strict():
    with CreditPiggy() as creditpiggy:
        yield creditpiggy


def test_it_shows_beside_the_code_under_test(strict):
    replay = strict.replay("smoke", seed=7)
    with Client(strict.endpoint) as client:
        client.alloc("job-1", credits=5)
        client.claim("job-1", "worker-7")
    progress = replay.wait()
    assert not replay.is_running
    assert progress.accepted == len(replay.workload)
    assert progress.refused == progress.unknown == 0
    replayed = [slot for slot in strict.slots if slot.startswith(replay.slot_prefix)]
    assert len(replayed) == 500
    assert len(strict.slots) == 501
    assert strict.users
    strict.assert_claimed("job-1", machine="worker-7", credits=5)
    strict.assert_no_slot_leaked()  # some of the scenario's jobs never end
    strict.assert_settled_once()
    strict.assert_nothing_sent_twice()
    strict.assert_no_claim_before_alloc()
    assert "last commands of 2 received" in strict.report()
    assert f"in the background: <Replay 'smoke', seed 7: {len(replay.workload):,} of" in strict.report()


def test_refusals_of_the_background_are_not_the_tests(strict):
    strict.replay("smoke", seed=7).wait()
    strict.replay("smoke", seed=7).wait()  # slots of its own
    strict.wait_until_idle()
    strict.assert_no_refusals()
    assert len(strict.slots) == 1000


def test_faults_meet_the_background_and_fail_no_test(strict):
    with strict.faults.error(kind="alloc"), strict.faults.late(1.0, kind="counters", count=1):
        progress = strict.replay("smoke").wait()
    assert progress.refused == 500
    assert len(strict.refusals) == 0
    strict.assert_never_blocked(0.9)


def test_it_ends_when_it_is_stopped(strict):
    with strict.replay("smoke", rate=20) as replay:
        assert replay.is_running
        with pytest.raises(TimeoutError, match=r"'smoke', seed 1: \d+ of 1,968 operations> were sent in 0\.01 s"):
            replay.wait(timeout_s=0.01)
    assert not replay.is_running
    assert replay.progress.accepted < len(replay.workload)


def test_it_ends_with_the_test():
    with CreditPiggy() as creditpiggy:
        replay = creditpiggy.replay("smoke", speed=100)
    assert not replay.is_running


def test_what_cannot_be_replayed_is_said(strict):
    with pytest.raises(CpsimError, match="smoek"):
        strict.replay("smoek")
    with pytest.raises(ValueError, match="rate is 0, and must be above 0"):
        strict.replay("smoke", rate=0)
    with pytest.raises(ValueError, match="a rate or a speed, not both"):
        strict.replay("smoke", rate=1, speed=1)


def test_an_endpoint_out_of_reach_is_told(strict):
    with strict.faults.refuse():
        replay = strict.replay("smoke")
        with pytest.raises(CpsimError, match="cannot reach"):
            replay.wait()


@pytest.mark.parametrize("fault", [None, "daemon.hang:nth=20", "daemon.refuse"])
def test_a_reset_ends_it(strict, fault, wait_for):
    replay = strict.replay("smoke", rate=1000)
    wait_for(lambda: replay.progress.accepted)
    if fault is not None:
        strict.faults.add(fault)
        wait_for(lambda: strict.faults.firings or not replay.is_running)
    strict.reset()
    assert not replay.is_running
    assert strict.slots == {}
    assert "in the background" not in strict.report()
