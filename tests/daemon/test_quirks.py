"""Each quirk of the daemon alone: what it changes, and that nothing of it is there without it."""

import random
import socket
import threading
from contextlib import ExitStack, closing, suppress
from itertools import count

import pytest

from cpdaemon import Client
from cpdaemon.endpoint import parse_endpoint
from cpdaemon.errors import ConnectFailed, ReplyLost
from cpsim.daemon.client import BulkClient
from cpsim.daemon.courier import BUSY_COMMAND_S, Courier
from cpsim.daemon.listener import QUIET_S, Listener
from cpsim.daemon.memory import MemorySpool
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.fake import ANY_PORT, Fake
from cpsim.quirks import chosen, composed
from cpsim.quirks.flush_starves import STARVED_COMMANDS
from cpsim.quirks.policies.delivery import DeliveryPolicy
from cpsim.quirks.policies.reading import ReadingPolicy
from cpsim.testing import ManualClock

PROJECTS = {"p": "s"}
LONG_S = 60


@pytest.fixture(params=[True, False], ids=["with", "without"])
def on(request):
    return request.param


@pytest.fixture
def quirky(here, on):
    """Return quirky(name) -> a running fake, with the quirk or without."""
    started = []

    def quirky(name):
        quirks = chosen("documented", [name] if on else [])
        started.append(Fake(PROJECTS, unix=here / "cp.sock", quirks=quirks))
        started[-1].start()
        return started[-1]

    yield quirky
    for fake in started:
        fake.stop()


def say(by_hand, frame, path="cp.sock"):
    """Send a frame, and return all that comes until the daemon closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LONG_S)
        sock.connect(path)
        sock.sendall(frame)
        return by_hand.read_all(sock)


def slots(fake):
    fake.wait_until_idle()
    with fake.accounts.reading() as ledger:
        return ledger.project("p").slots


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_cut_values(quirky, on, by_hand, end):
    fake = quirky("cut-values")
    assert say(by_hand, b"alloc,slot=a=b,credits=5=6" + end) == (b"OK" if on else b"ER")
    assert say(by_hand, b"meta,slot=a,site" + end) == (b"" if on else b"ER")
    assert say(by_hand, b"nonsense,slot=a" + end) == b"ER"
    assert say(by_hand, b"alloc,slot=c" + end) == b"OK"
    assert {slot_id: slot.credits for slot_id, slot in slots(fake).items()} == {"c": None} | ({"a": 5} if on else {})


def test_single_read_of_a_frame_in_two_segments(quirky, on):
    fake = quirky("single-read")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LONG_S)
        sock.connect("cp.sock")
        sock.sendall(b"alloc,slot=a")
        assert sock.recv(2) == b"OK"
        with suppress(BrokenPipeError):  # where the daemon has closed
            sock.sendall(b"b,credits=5\n")
    assert list(slots(fake)) == (["a"] if on else ["ab"])


def test_single_read_of_a_frame_that_is_no_command_yet(stepped_with, on, recorder):
    reading = composed(ReadingPolicy(), ["single-read"] if on else [])
    stepped = stepped_with(lambda sockets, clock: Listener(sockets, recorder, lambda: False, clock, reading=reading))
    sock = stepped.connect(b"alloc,sl")
    assert (stepped.answer(sock) == b"ER") is on
    if not on:
        stepped.pass_(0.99 * QUIET_S)
        stepped.send(sock, b"ot=a\n")
        assert stepped.answer(sock) == b"OK"


def test_single_read_of_a_long_frame(quirky, on):
    fake = quirky("single-read")
    frame = b"alloc,slot=" + b"x" * 1600
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LONG_S)
        sock.connect("cp.sock")
        sock.sendall(frame)
        assert sock.recv(2) == (b"OK" if on else b"ER")
    assert list(slots(fake)) == (["x" * (1500 - len("alloc,slot="))] if on else [])


def test_reorder_classes(here, on, by_hand):
    quirks = chosen("documented", ["reorder-classes"] if on else [])
    with Fake(PROJECTS, unix=here / "cp.sock", flush_interval_s=3600, quirks=quirks) as fake:
        for frame in (b"alloc,slot=a", b"claim,slot=a,machine=m", b"counters,slot=a,n=1"):
            assert say(by_hand, frame + b"\n") == b"OK"
    with fake.accounts.reading() as ledger:
        assert ledger.project("p").granted.counters == ({"n": 1} if on else {})


class Recorder:
    """A server that notes how many commands come at once, or cannot be reached."""

    def __init__(self, *, reachable=True):
        self.batches = []
        self.reachable = reachable
        self.attempts = 0

    def knows_batches(self):
        self.attempts += 1
        if not self.reachable:
            raise ConnectFailed("down")
        return True

    def post(self, _, calls):
        self.batches.append(len(calls))
        return [None] * len(calls)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def quirky_courier(clock):
    """Return quirky_courier(server, interval, quirks) -> (spool, courier), which a test steps."""

    def make(server, interval_s, names):
        spool = MemorySpool()
        options = {"delivery": composed(DeliveryPolicy(), names), "clock": clock, "chance": random.Random(1)}
        return spool, Courier(spool, server, interval_s, "dead-letter", **options)

    return make


def test_flush_starves(on, quirky_courier, clock):
    server = Recorder()
    spool, courier = quirky_courier(server, 0.5, ["flush-starves"] if on else [])
    for put in range(100):
        spool.put([("alloc", {"slot": str(put)})])
        courier.step()
        clock.advance(0.25)
    assert (len(server.batches) == 0) is on
    if on:
        spool.put([("alloc", {"slot": "x"})] * STARVED_COMMANDS)
    clock.advance(0.5)
    while spool.pending:
        assert courier.step() in {0.0, None}
    assert sum(server.batches) == 100 + (STARVED_COMMANDS if on else 0)


def test_a_starved_flush_comes_once_it_is_quiet(quirky_courier, clock):
    server = Recorder()
    spool, courier = quirky_courier(server, 0.5, ["flush-starves"])
    spool.put([("alloc", {"slot": "x"})])
    assert courier.step() == 0.5
    clock.advance(0.5)
    assert courier.step() is None
    assert server.batches == [1]


def test_busy_when_down(on, quirky_courier, clock):
    """With it, the daemon tries again without a pause, and its loop is held up."""
    server = Recorder(reachable=False)
    spool, courier = quirky_courier(server, 0, ["busy-when-down"] if on else [])
    spool.put([("alloc", {"slot": "x"})] * (STARVED_COMMANDS + 1))
    pauses_s = [courier.step() for _ in range(20)]
    assert (pauses_s == [0.0] * 20, server.attempts) == ((True, 20) if on else (False, 1))

    acknowledged = count(100, 100)

    def held_up_s():
        began_s = clock.monotonic()
        courier.delay_turn(next(acknowledged))
        return clock.monotonic() - began_s

    assert held_up_s() == (100 * BUSY_COMMAND_S if on else 0)
    courier.drop()
    assert (spool.pending, held_up_s()) == (0, 0)
    spool.put([("alloc", {"slot": "x"})] * (STARVED_COMMANDS + 1))
    courier.step()
    assert held_up_s() == (100 * BUSY_COMMAND_S if on else 0)
    server.reachable = True
    while spool.pending:
        clock.advance(courier.step() or 0.0)
    assert held_up_s() == 0


@pytest.fixture(params=["spool", "memory"])
def forwarding(request, here, on):
    """Return forwarding(server, name) -> a daemon in front of a fake's server, with the quirk or not, and its spool."""
    running = ExitStack()

    def forwarding(server, name):
        http = running.enter_context(
            closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", "s"), timeout_s=LONG_S))
        )
        spool = Spool(here / "spool") if request.param == "spool" else MemorySpool()
        quirks = frozenset([name] if on else [])
        daemon = Daemon(http, "p", unix=here / "site.sock", spool=spool, max_backoff_s=0.01, quirks=quirks)
        return running.enter_context(daemon), spool

    with running:
        yield forwarding


@pytest.fixture
def server():
    with Fake(PROJECTS, http=ANY_PORT) as server:
        yield server


@pytest.fixture
def claim_one(wait_for):
    """Return claim_one(daemon), which sends one slot's commands, each delivered alone."""

    def claim(daemon):
        with Client("./site.sock") as client:
            for send in (
                lambda: client.alloc("a", credits=5),
                lambda: client.counters("a", n=1),
                lambda: client.claim("a", "m"),
            ):
                send()
                wait_for(lambda: daemon.pending == 0)

    return claim


def granted(server):
    with server.accounts.reading() as ledger:
        account = ledger.project("p").granted
        return account.credits, account.counters.get("n", 0)


@pytest.mark.parametrize("fault", ["server.status=503:kind=counters,count=1", "server.not-json:kind=counters,count=1"])
def test_drop_on_error(forwarding, server, on, fault, claim_one):
    server.faults.add(fault)
    claim_one(forwarding(server, "drop-on-error")[0])
    assert len(server.faults.firings) == 1
    assert granted(server) == (5, 0 if on else 1)


def test_resend_duplicates(forwarding, server, on, claim_one):
    server.faults.add("server.lose-reply:kind=counters,count=1")
    claim_one(forwarding(server, "resend-duplicates")[0])
    assert granted(server) == (5, 2 if on else 1)


def test_errors_ignored(forwarding, server, on, here, wait_for):
    daemon, _ = forwarding(server, "errors-ignored")
    with Client("./site.sock") as client:
        client.claim("nowhere", "m")
    wait_for(lambda: daemon.pending == 0)
    with server.accounts.reading():
        assert server.accounts.refused == 1
    if (here / "spool").exists():
        assert [row.command for row in read_failed(here / "spool")] == ([] if on else ["claim,slot=nowhere,machine=m"])
        assert read_status(here / "spool").delivered == int(on)


def test_reorder_classes_over_http(forwarding, server, on, here, wait_for):
    server.faults.add("down")
    daemon, spool = forwarding(server, "reorder-classes")
    with Client("./site.sock") as client:
        client.alloc("a", credits=5)
        client.claim("a", "m")
        client.counters("a", n=1)
    wait_for(lambda: spool.ready == 3)  # one batch
    server.faults.clear()
    wait_for(lambda: daemon.pending == 0)
    assert granted(server) == (5, int(on))


def test_cut_values_with_a_spool(forwarding, server, on, by_hand, wait_for):
    daemon, _ = forwarding(server, "cut-values")
    assert say(by_hand, b"alloc,slot=a=b,credits=5=6\n", "site.sock") == (b"OK" if on else b"ER")
    wait_for(lambda: daemon.pending == 0)
    with server.accounts.reading() as ledger:
        assert {name: slot.credits for name, slot in ledger.project("p").slots.items()} == ({"a": 5} if on else {})


def test_ack_before_delivery(here, by_hand):
    """Without it there is a spool, on disk before OK; with it there is none."""
    for names in ([], ["ack-before-delivery"]):
        store = here / f"accounts-{len(names)}"
        with Fake(PROJECTS, unix=here / "cp.sock", store=store, quirks=chosen("documented", names)) as fake:
            assert say(by_hand, b"alloc,slot=a\n") == b"OK"
            assert list(slots(fake)) == ["a"]
        assert bool(list(here.glob(f"{store.name}.*spool"))) is not bool(names)


def test_a_store_with_a_quirk_of_the_socket(here, by_hand):
    store = here / "accounts"
    for names in (["cut-values"], []):
        with Fake(PROJECTS, unix=here / "cp.sock", store=store, quirks=chosen("documented", names)) as fake:
            assert say(by_hand, b"alloc,slot=a=b\n") == (b"OK" if names else b"ER")
            assert list(slots(fake)) == ["a"]


def test_the_deployed_profile_serves(here, by_hand):
    with Fake(PROJECTS, unix=here / "cp.sock", flush_interval_s=0.01, quirks=chosen("deployed", [])) as fake:
        assert say(by_hand, b"alloc,slot=a=b\n") == b"OK"
        assert say(by_hand, b"alloc,slot\n") == b""
        assert list(slots(fake)) == ["a"]


@pytest.mark.parametrize(
    ("quirk", "frame", "taken"),
    [
        ("last-name-wins", b"counters,slot=a,n=1,n=2", {"n": 2}),
        ("control-characters", b"counters,slot=a,x\ty=3", {"x\ty": 3}),
        ("control-characters", b"counters,slot=a,=3", {"": 3}),
    ],
)
@pytest.mark.parametrize("stored", [True, False], ids=["spool", "memory"])
def test_frames_that_pass(here, on, by_hand, quirk, frame, taken, stored):
    quirks = chosen("documented", [quirk] if on else [])
    options = {"store": here / "store"} if stored else {}
    with Fake(PROJECTS, unix=here / "cp.sock", quirks=quirks, **options) as fake:
        assert say(by_hand, b"alloc,slot=a\n") == b"OK"
        assert say(by_hand, frame + b"\n") == (b"OK" if on else b"ER")
        assert slots(fake)["a"].counters == (taken if on else None)


def test_an_empty_id_passes(quirky, on, by_hand):
    fake = quirky("control-characters")
    assert say(by_hand, b"claim,slot=,machine=m\n") == (b"OK" if on else b"ER")
    fake.wait_until_idle()
    assert fake.accounts.refused == int(on)


def test_a_client_that_closes_without_a_frame(stepped_with, on, recorder):
    reading = composed(ReadingPolicy(), ["control-characters"] if on else [])
    stepped = stepped_with(lambda sockets, clock: Listener(sockets, recorder, lambda: False, clock, reading=reading))
    sock = stepped.connect()
    sock.shutdown(socket.SHUT_WR)
    stepped.step()
    assert stepped.answer(sock) == (b"ER" if on else b"")


def connected(path, clients):
    """The number of some clients whom a queue that nobody accepts from takes."""
    taken = 0
    with ExitStack() as stack:
        for sock in [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(clients)]:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(path)
                taken += 1
    return taken


def test_the_queue_is_as_long_as_the_backlog(here, on, recorder):
    """The listener takes no step: accepting is paused."""
    reading = composed(ReadingPolicy(), ["short-queue"] if on else [])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("queue.sock")
        listening.listen(4096)
        listener = Listener([listening], recorder, reading=reading)
        assert connected("queue.sock", 16) == (reading.backlog + 1 if on else 16)
        listener.set_reading(ReadingPolicy(backlog=9))
        assert connected("queue.sock", 16) <= 10
        listener.open()
        listener.stop()


def test_one_client_a_turn_is_taken_from_a_short_queue(stepped_with, on, recorder):
    reading = composed(ReadingPolicy(), ["short-queue"] if on else [])
    stepped = stepped_with(lambda sockets, clock: Listener(sockets, recorder, lambda: False, clock, reading=reading))
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with ExitStack() as stack:
        for sock in clients:
            stack.enter_context(sock).connect(stepped.address)
            sock.sendall(b"alloc,slot=a\n")
        stepped.listener.step()
        assert stepped.listener.pending + len(recorder.calls) == (1 if on else 3)


class Answering:
    """An HTTP server that sends the same bytes to each request, and notes each."""

    def __init__(self, reply):
        self.reply, self.requests = reply, []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            sock, _ = self.listening.accept()
            with sock:
                head = sock.recv(65536)
                if head == b"end":
                    return
                self.requests.append(head.partition(b" HTTP/")[0].decode())
                sock.sendall(self.reply)

    def close(self):
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(b"end")
        self.thread.join()
        self.listening.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "settled", "more"),
    [
        (b'HTTP/1.1 201 Created\r\nContent-Length: 16\r\n\r\n{"result": "ok"}', True, []),
        (b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n", True, ["GET /there"]),
        (HEAD + b"Content-Len", True, []),
        (HEAD + b"Content-Length: 90\r\n\r\n{}", True, []),
        (b"", False, []),
        (b"what?\r\n\r\n", False, []),
    ],
)
def test_what_a_reply_makes_of_a_batch_in_production(clock, reply, settled, more):
    delivery = composed(DeliveryPolicy(), ["drop-on-error", "resend-duplicates"])
    with (
        closing(Answering(reply)) as server,
        closing(
            BulkClient(
                parse_endpoint(f"http://127.0.0.1:{server.port}/api"), ("p", "s"), LONG_S, follows=delivery.follows
            )
        ) as client,
    ):
        spool = MemorySpool()
        courier = Courier(spool, client, 0, clock=clock, delivery=delivery)
        spool.put([("alloc", {"slot": "a"})])
        wait_s = courier.step()
        assert server.requests == ["POST /api/batch/bulk", *more]
    assert (spool.pending, wait_s) == ((0, None) if settled else (1, 10.0))


class Losing(Recorder):
    """A server whose first reply is lost."""

    def post(self, name, calls):
        super().post(name, calls)
        if len(self.batches) == 1:
            raise ReplyLost("gone")
        return [None] * len(calls)


@pytest.mark.parametrize("comes", [True, False], ids=["with a command", "alone"])
def test_a_lost_reply_is_followed_by_the_same_commands(quirky_courier, clock, comes):
    """After ten seconds, or together with the next command, when its interval is over."""
    server = Losing()
    spool, courier = quirky_courier(server, 1.0, ["resend-duplicates"])
    spool.put([("alloc", {"slot": "a"})])
    clock.advance(courier.step())
    assert courier.step() == 10.0
    clock.advance(3)
    if comes:
        spool.put([("alloc", {"slot": "b"})])
        assert courier.step() == 1.0
        clock.advance(1)
    else:
        assert courier.step() == 7.0
        clock.advance(7)
    assert courier.step() is None
    assert server.batches == [1, 2 if comes else 1]
    assert server.attempts == 0
