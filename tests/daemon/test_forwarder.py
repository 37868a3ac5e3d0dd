"""From the daemon to the accounts: in batches and in order."""

import itertools
import threading

import pytest

from cpdaemon import (
    Client,
)
from cpsim.daemon.forwarder import Forwarder
from cpsim.fake import Fake


def alloc(slot):
    return "alloc", {"slot": str(slot)}


class Batches:
    """What a forwarder delivers, batch by batch."""

    def __init__(self):
        self.batches = []
        self.came = threading.Semaphore(0)

    def __call__(self, calls):
        self.batches.append(list(calls))
        self.came.release()

    @property
    def calls(self):
        return list(itertools.chain(*self.batches))


@pytest.fixture
def batches():
    return Batches()


@pytest.fixture
def start():
    """Return start(deliver, flush_interval_s) -> Forwarder, stopped in the end."""
    started = []

    def start(deliver, flush_interval_s):
        started.append(Forwarder(deliver, flush_interval_s))
        started[-1].start()
        return started[-1]

    yield start
    for forwarder in started:
        forwarder.stop()


# The queue


def test_without_an_interval_commands_go_at_once_and_in_order(start, batches):
    forwarder = start(batches, 0)
    for number in range(200):
        forwarder.put([alloc(number), alloc(-number)])
    forwarder.stop()
    assert batches.calls == [alloc(sign * number) for number in range(200) for sign in (1, -1)]
    assert forwarder.pending == 0


def test_an_interval_makes_batches(start, batches):
    forwarder = start(batches, 0.1)
    for number in range(10):
        forwarder.put([alloc(number)])
    assert (batches.batches, forwarder.pending) == ([], 10)
    assert batches.came.acquire(timeout=5)
    forwarder.put([alloc("late")])
    assert batches.came.acquire(timeout=5)
    assert [len(batch) for batch in batches.batches] == [10, 1]


def test_steady_traffic_does_not_put_off_the_flush(start, batches):
    forwarder = start(batches, 0.05)
    for number in itertools.count():
        forwarder.put([alloc(number)])
        if batches.came.acquire(timeout=0.001):
            break
        assert number < 5_000


def test_to_stop_flushes_without_waiting(start, batches):
    forwarder = start(batches, 3600)
    forwarder.put([alloc(1)])
    forwarder.put([alloc(2)])
    forwarder.stop()
    assert batches.calls == [alloc(1), alloc(2)]


def test_to_stop_with_nothing_left(start, batches):
    start(batches, 3600).stop()
    assert batches.batches == []


def test_what_is_being_delivered_is_pending(start):
    entered, go_on = threading.Event(), threading.Event()

    def deliver(_):
        entered.set()
        go_on.wait(5)

    forwarder = start(deliver, 0)
    forwarder.put([alloc(1)])
    assert entered.wait(5)
    forwarder.put([alloc(2)])
    assert forwarder.pending == 2
    assert not forwarder.is_full
    go_on.set()
    forwarder.stop()
    assert forwarder.pending == 0


def test_a_fake_with_an_interval(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", flush_interval_s=3600) as fake, Client("./cp.sock") as client:
        client.alloc("a")
        client.claim("a", "m")
        fake.daemons[0]._listener.stop()
        fake.daemons[0]._listener = None
        assert fake.pending == 2
    assert fake.pending == 0
    with fake.accounts.reading() as ledger:
        assert ledger.project("p").slots["a"].state == "claimed"
