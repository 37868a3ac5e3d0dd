"""From a daemon that keeps commands in memory to the server: in batches and in order."""

import itertools
import threading

import pytest

from cpdaemon import Client
from cpdaemon.errors import ConnectFailed
from cpsim.daemon.courier import Courier
from cpsim.daemon.memory import MemorySpool
from cpsim.fake import Fake


def alloc(slot):
    return "alloc", {"slot": str(slot)}


class Server:
    """What comes to a server, batch by batch."""

    def __init__(self):
        self.batches = []
        self.came = threading.Semaphore(0)
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
        assert self.go_on.wait(5)
        self.batches.append(list(calls))
        self.came.release()
        return [None] * len(calls)

    @property
    def calls(self):
        return list(itertools.chain(*self.batches))


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def start(server):
    """Return start(flush_interval_s) -> (spool, courier), stopped in the end."""
    started = []

    def start(flush_interval_s):
        spool = MemorySpool()
        started.append(Courier(spool, server, flush_interval_s, max_backoff_s=0.01))
        started[-1].start()
        return spool, started[-1]

    yield start
    for courier in started:
        assert courier.stop(5)


def test_without_an_interval_commands_go_at_once_and_in_order(start, server):
    spool, courier = start(0)
    for number in range(200):
        spool.put([alloc(number), alloc(-number)])
    assert courier.stop(5)
    assert server.calls == [alloc(sign * number) for number in range(200) for sign in (1, -1)]
    assert spool.pending == 0


def test_an_interval_makes_batches(start, server):
    spool, _ = start(0.1)
    for number in range(10):
        spool.put([alloc(number)])
    assert (server.batches, spool.pending) == ([], 10)
    assert server.came.acquire(timeout=5)
    spool.put([alloc("late")])
    assert server.came.acquire(timeout=5)
    assert [len(batch) for batch in server.batches] == [10, 1]


def test_steady_traffic_does_not_put_off_the_flush(start, server):
    spool, _ = start(0.05)
    for number in itertools.count():
        spool.put([alloc(number)])
        if server.came.acquire(timeout=0.001):
            break
        assert number < 5_000


def test_a_batch_keeps_the_order_of_a_slot(start, server):
    spool, courier = start(3600)
    spool.put([("counters", {"slot": "a", "n": "1"}), alloc("a"), alloc("b")])
    assert courier.stop(5)
    assert [[kind for kind, _ in batch] for batch in server.batches] == [["counters"], ["alloc", "alloc"]]


def test_what_fails_is_tried_again(start, server):
    server.fails = 3
    spool, _ = start(0)
    spool.put([alloc(1)])
    assert server.came.acquire(timeout=5)
    assert server.batches == [[alloc(1)]]


def test_to_stop_flushes_without_waiting(start, server):
    spool, courier = start(3600)
    spool.put([alloc(1)])
    spool.put([alloc(2)])
    assert courier.stop(5)
    assert server.calls == [alloc(1), alloc(2)]


def test_to_stop_with_nothing_left(start, server):
    assert start(3600)[1].stop(5)
    assert server.batches == []


def test_what_is_being_delivered_is_pending(start, server):
    server.go_on.clear()
    spool, courier = start(0)
    spool.put([alloc(1)])
    assert server.entered.wait(5)
    spool.put([alloc(2)])
    assert spool.pending == 2
    assert not spool.is_full
    server.go_on.set()
    assert courier.stop(5)
    assert spool.pending == 0


def test_a_fake_with_an_interval(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", flush_interval_s=3600) as fake:
        with Client("./cp.sock") as client:
            client.alloc("a")
            client.claim("a", "m")
        with pytest.raises(TimeoutError):
            fake.wait_until_idle(0.01)
        assert fake.pending == 2
    assert fake.pending == 0
    with fake.accounts.reading() as ledger:
        assert ledger.project("p").slots["a"].state == "claimed"
