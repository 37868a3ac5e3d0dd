"""From the daemon to the server: in batches, in order, and never twice."""

import itertools
import socket
import threading

import pytest

from cpdaemon import (
    BadReply,
    Client,
    ConnectFailed,
    EndpointError,
    ReplyLost,
    TcpEndpoint,
    parse_endpoint,
    transport,
)
from cpsim.daemon.addresses import listen_unix
from cpsim.daemon.forwarder import BulkPoster, Forwarder, HttpDelivery
from cpsim.daemon.listener import Listener
from cpsim.fake import ANY_PORT, Fake


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


# Delivery


class Server:
    """Answers each post with the next of a script: an error to raise, or messages."""

    def __init__(self, *script):
        self.script = list(script)
        self.posted = []

    def __call__(self, calls):
        self.posted.append(list(calls))
        answer = self.script.pop(0) if self.script else []
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_batch_that_had_no_effect_is_sent_again():
    server = Server(ConnectFailed("down"), ConnectFailed("down"), ["no"])
    delivery = HttpDelivery(server, threading.Event())
    delivery([alloc(1), alloc(2)])
    assert server.posted == [[alloc(1), alloc(2)]] * 3
    assert (delivery.delivered, delivery.refused, delivery.unknown, delivery.undelivered) == (2, 1, 0, 0)


@pytest.mark.parametrize("error", [ReplyLost("cut"), BadReply("what?")])
def test_a_batch_that_may_have_been_applied_is_not(error):
    server = Server(error)
    delivery = HttpDelivery(server, threading.Event())
    delivery([alloc(1)])
    assert len(server.posted) == 1
    assert (delivery.delivered, delivery.unknown) == (0, 1)


def test_retries_end_when_told_to():
    give_up = threading.Event()
    give_up.set()
    server = Server(*[ConnectFailed("down")] * 5)
    delivery = HttpDelivery(server, give_up)
    delivery([alloc(1), ("claim", {"slot": "1", "machine": "m"}), alloc(1)])
    assert len(server.posted) == 2
    assert (delivery.delivered, delivery.undelivered) == (0, 3)


def test_the_order_of_a_slot_survives_the_order_of_the_classes():
    server = Server()
    calls = [alloc(1), ("discard", {"slot": "1"}), ("meta", {"slot": "1", "a": "b"}), alloc(2)]
    HttpDelivery(server, threading.Event())(calls)
    assert server.posted == [calls[:2], calls[2:]]


def test_credentials_that_cannot_be_used_are_told_at_once():
    with pytest.raises(EndpointError):
        BulkPoster(parse_endpoint("http://127.0.0.1:1/api"), ("a,b", "s"), 1)


# End to end: listener, forwarder and delivery in front of a server


class Site:
    """A daemon on ./cp.sock that forwards over HTTP."""

    def __init__(self, address, secret="s", flush_interval_s=0.01):
        self.give_up = threading.Event()
        self.attempts = threading.Semaphore(0)
        self.poster = BulkPoster(parse_endpoint(f"http://{address}/api"), ("p", secret), 5)
        self.delivery = HttpDelivery(self.post, self.give_up)
        self.forwarder = Forwarder(self.delivery, flush_interval_s)
        self.listener = Listener([listen_unix(self.path)], self.forwarder.put, lambda: self.forwarder.is_full)

    def post(self, calls):
        self.attempts.release()
        return self.poster(calls)

    def __enter__(self):
        self.forwarder.start()
        self.listener.start()
        return self

    def __exit__(self, *_):
        self.listener.stop()
        self.give_up.set()
        self.forwarder.stop()
        self.poster.close()


@pytest.fixture
def site_path(here, monkeypatch):
    monkeypatch.setattr(Site, "path", here / "cp.sock", raising=False)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def work(client, slots):
    for slot in slots:
        client.alloc(slot, min=1, max=5)
        client.counters(slot, n=2)
        client.meta(slot, a="first")
        client.meta(slot, a="last")
        client.counters(slot, n=3)
        client.claim(slot, "m", 9)


def check(fake, slots):
    with fake.accounts.reading() as ledger:
        project = ledger.project("p")
        assert list(ledger.violations()) == []
        assert set(project.slots) == set(slots)
        assert {slot.state for slot in project.slots.values()} == {"claimed"}
        assert {slot.meta["a"] for slot in project.slots.values()} == {"last"}
        assert project.granted.credits == 5 * len(slots)
        assert project.granted.counters == {"n": 5 * len(slots)}
        assert fake.accounts.refused == 0


@pytest.mark.usefixtures("site_path")
def test_a_daemon_in_front_of_a_server():
    slots = [f"{worker}-{number}" for worker in range(4) for number in range(20)]
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        address = fake.addresses["http"].removeprefix("http://").removesuffix("/api")
        with Site(address) as site, Client("./cp.sock") as client:
            threads = [threading.Thread(target=work, args=(client, slots[start::4])) for start in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert (site.delivery.delivered, site.delivery.refused, site.delivery.unknown) == (480, 0, 0)
        check(fake, slots)


@pytest.mark.usefixtures("site_path")
def test_a_server_that_comes_later_gets_everything_once():
    port = free_port()
    with Site(f"127.0.0.1:{port}") as site, Client("./cp.sock") as client:
        work(client, ["a", "b"])
        for _ in range(2):
            assert site.attempts.acquire(timeout=5)
        assert site.forwarder.pending > 0
        with Fake({"p": "s"}, http=TcpEndpoint("127.0.0.1", port)) as fake:
            work(client, ["c"])
            site.listener.stop()
            site.forwarder.stop()
            assert (site.delivery.delivered, site.delivery.unknown, site.delivery.undelivered) == (18, 0, 0)
            check(fake, ["a", "b", "c"])
            site.listener, site.forwarder = Listener([], len), Forwarder(len, 0)
            site.listener.start()
            site.forwarder.start()


@pytest.mark.usefixtures("site_path")
def test_a_server_that_never_comes_does_not_hold_up_the_end():
    with Site(f"127.0.0.1:{free_port()}") as site, Client("./cp.sock") as client:
        client.alloc("a")
        assert site.attempts.acquire(timeout=5)
    assert site.delivery.undelivered == 1
    assert site.forwarder.pending == 0


@pytest.mark.usefixtures("site_path")
def test_a_lost_reply_is_not_sent_again(monkeypatch):
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        address = fake.addresses["http"].removeprefix("http://").removesuffix("/api")
        receive = transport._receive

        def lose(sock, endpoint, deadline):
            piece = receive(sock, endpoint, deadline)
            if "127.0.0.1" in str(endpoint):
                raise ReplyLost("on its way back")
            return piece

        monkeypatch.setattr(transport, "_receive", lose)
        with Site(address, flush_interval_s=3600) as site, Client("./cp.sock") as client:
            work(client, ["a"])
        assert (site.delivery.delivered, site.delivery.unknown) == (0, 6)
        check(fake, ["a"])


@pytest.mark.usefixtures("site_path")
def test_refusals_are_counted():
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        address = fake.addresses["http"].removeprefix("http://").removesuffix("/api")
        with Site(address) as site, Client("./cp.sock") as client:
            client.alloc("a")
            client.alloc("a")
            client.claim("never", "m")
        assert (site.delivery.delivered, site.delivery.refused) == (3, 2)
