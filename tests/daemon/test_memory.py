"""From a daemon that keeps commands in memory to the server: in batches and in order."""

import itertools
import threading

import pytest

from cpdaemon import Client
from cpdaemon.errors import ConnectFailed
from cpsim.daemon.courier import Courier
from cpsim.daemon.memory import MemorySpool
from cpsim.fake import Fake
from cpsim.testing import ManualClock

LONG_S = 60


def alloc(slot):
    return "alloc", {"slot": str(slot)}


class Server:
    """What comes to a server, batch by batch."""

    def __init__(self):
        self.batches = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.fails = 0

    def knows_batches(self):
        return True

    def post(self, batch_id, calls):
        if self.fails:
            self.fails -= 1
            raise ConnectFailed("down")
        self.entered.set()
        assert self.go_on.wait(LONG_S)
        self.batches.append(list(calls))
        return [None] * len(calls)

    @property
    def calls(self):
        return list(itertools.chain(*self.batches))


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def start(server):
    """Return start(flush_interval_s) -> (spool, courier), with a thread that is stopped in the end."""
    started = []

    def start(flush_interval_s):
        spool = MemorySpool()
        started.append(Courier(spool, server, flush_interval_s))
        started[-1].start()
        return spool, started[-1]

    yield start
    for courier in started:
        assert courier.stop(LONG_S)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def stepped(server, clock):
    """Return stepped(flush_interval_s) -> (spool, courier), which a test steps."""

    def make(flush_interval_s):
        spool = MemorySpool()
        return spool, Courier(spool, server, flush_interval_s, clock=clock)

    return make


def test_without_an_interval_commands_go_at_once_and_in_order(start, server):
    spool, courier = start(0)
    for number in range(200):
        spool.put([alloc(number), alloc(-number)])
    assert courier.stop(LONG_S)
    assert server.calls == [alloc(sign * number) for number in range(200) for sign in (1, -1)]
    assert spool.pending == 0


def test_an_interval_makes_batches(stepped, server, clock):
    spool, courier = stepped(0.5)
    for number in range(10):
        spool.put([alloc(number)])
        assert courier.step() == 0.5
    assert (server.batches, spool.pending) == ([], 10)
    clock.advance(0.5)
    assert courier.step() is None
    spool.put([alloc("late")])
    clock.advance(courier.step())
    courier.step()
    assert [len(batch) for batch in server.batches] == [10, 1]


def test_steady_traffic_does_not_put_off_the_flush(stepped, server, clock):
    spool, courier = stepped(0.5)
    for number in range(10):
        spool.put([alloc(number)])
        courier.step()
        clock.advance(0.0625)
    assert [len(batch) for batch in server.batches] == [9]


def test_a_batch_keeps_the_order_of_a_slot(start, server):
    spool, courier = start(3600)
    spool.put([("counters", {"slot": "a", "n": "1"}), alloc("a"), alloc("b")])
    assert courier.stop(LONG_S)
    assert [[kind for kind, _ in batch] for batch in server.batches] == [["counters"], ["alloc", "alloc"]]


def test_what_fails_is_tried_again(stepped, server, clock):
    server.fails = 3
    spool, courier = stepped(0)
    spool.put([alloc(1)])
    for _ in range(3):
        clock.advance(courier.step())
    assert (courier.step(), server.batches) == (None, [[alloc(1)]])


def test_to_stop_flushes_without_waiting(start, server):
    spool, courier = start(3600)
    spool.put([alloc(1)])
    spool.put([alloc(2)])
    assert courier.stop(LONG_S)
    assert server.calls == [alloc(1), alloc(2)]


def test_to_stop_with_nothing_left(start, server):
    assert start(3600)[1].stop(LONG_S)
    assert server.batches == []


def test_what_is_being_delivered_is_pending(start, server):
    server.go_on.clear()
    spool, courier = start(0)
    spool.put([alloc(1)])
    assert server.entered.wait(LONG_S)
    spool.put([alloc(2)])
    assert spool.pending == 2
    assert not spool.is_full
    server.go_on.set()
    assert courier.stop(LONG_S)
    assert spool.pending == 0


def test_a_fake_with_an_interval(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", flush_interval_s=3600) as fake:
        with Client("./cp.sock") as client:
            client.alloc("a")
            client.claim("a", "m")
        with pytest.raises(TimeoutError):
            fake.wait_until_idle(0)
        assert fake.pending == 2
    assert fake.pending == 0
    with fake.accounts.reading() as ledger:
        assert ledger.project("p").slots["a"].state == "claimed"
