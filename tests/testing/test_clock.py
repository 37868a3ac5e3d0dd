"""A clock that stands still until it is advanced."""

import sqlite3
import threading
from contextlib import closing

import pytest

from cpsim.fake import Fake
from cpsim.testing import ManualClock


def test_time_passes_only_when_it_is_advanced():
    clock = ManualClock(now_us=5_000_000)
    clock.advance(1.5)
    clock.sleep(0.5)
    assert (clock.now_us(), clock.monotonic(), clock.monotonic_ns()) == (7_000_000, 2.0, 2_000_000_000)


def test_the_wall_time_can_be_set_back_and_monotonic_time_goes_on():
    clock = ManualClock(now_us=5_000_000)
    clock.advance(1)
    clock.set_wall(0)
    clock.advance(1)
    assert (clock.now_us(), clock.monotonic()) == (1_000_000, 2.0)


def test_it_does_not_go_back():
    with pytest.raises(ValueError, match="cannot go back: -1 seconds"):
        ManualClock().advance(-1)


def waited(clock, timeout_s, then):
    """Wait in a thread; return what the wait returned after `then(condition)`."""
    condition, outcome = threading.Condition(), []
    ready = threading.Event()

    def wait():
        with condition:
            ready.set()
            outcome.append(clock.wait(condition, timeout_s))

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    then(condition)
    thread.join()
    return outcome


def test_who_waits_is_woken_when_the_time_is_over():
    clock = ManualClock()
    assert waited(clock, 10, lambda _: clock.advance(10)) == [False]


def test_who_waits_is_notified():
    def notify(condition):
        with condition:
            condition.notify_all()

    assert waited(ManualClock(), None, notify) == [True]


def test_no_time_is_no_wait():
    condition = threading.Condition()
    with condition:
        assert ManualClock().wait(condition, 0) is False


@pytest.mark.parametrize("store", [False, True])
def test_a_fake_goes_by_it(tmp_path, store):
    clock = ManualClock(now_us=5_000_000)
    with Fake({"p": "s"}, clock=clock, store=tmp_path / "store" if store else None) as fake:
        fake.accounts.apply("p", [("alloc", {"slot": "job-1"})])
        assert fake.inspector.slots("p").items[0].allocated_us == 5_000_000
        clock.advance(24 * 3600)
        (slot,) = fake.inspector.slots("p").items
        assert (slot.state, fake.accounts.clock.now_us()) == ("expired", 5_000_000 + 24 * 3_600_000_000)
    if store:
        with closing(sqlite3.connect(tmp_path / "store")) as database:
            times_us = {at_us for (at_us,) in database.execute("SELECT at_us FROM log")}
        assert clock.now_us() in times_us <= {5_000_000, clock.now_us()}
