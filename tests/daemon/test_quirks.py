"""Each quirk of the daemon alone: what it changes, and that nothing of it is there without it."""

import socket
import time
from contextlib import suppress

import pytest

from cpsim.daemon.forwarder import Forwarder
from cpsim.daemon.quirks import STARVED, StarvingForwarder
from cpsim.errors import Problem
from cpsim.fake import Fake
from cpsim.quirks import chosen

PROJECTS = {"p": "s"}


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


def say(by_hand, frame):
    """Send a frame, and return all that comes until the daemon closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect("cp.sock")
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
        sock.settimeout(5)
        sock.connect("cp.sock")
        sock.sendall(b"alloc,slot=a")
        assert sock.recv(2) == b"OK"
        with suppress(BrokenPipeError):  # where the daemon has closed
            sock.sendall(b"b,credits=5\n")
    assert list(slots(fake)) == (["a"] if on else ["ab"])


def test_single_read_of_a_frame_that_is_no_command_yet(quirky, on):
    fake = quirky("single-read")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect("cp.sock")
        sock.sendall(b"alloc,sl")
        started_s = time.monotonic()
        assert sock.recv(100) == b"ER"
        assert (time.monotonic() - started_s < 0.09) is on
    assert slots(fake) == {}


def test_single_read_of_a_long_frame(quirky, on):
    fake = quirky("single-read")
    frame = b"alloc,slot=" + b"x" * 1600
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
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


class Batches(list):
    def __call__(self, calls):
        self.append(len(calls))


def test_flush_starves(on):
    batches = Batches()
    forwarder = (StarvingForwarder if on else Forwarder)(batches, 0.05)
    forwarder.start()
    deadline = time.monotonic() + 0.4
    put = 0
    while time.monotonic() < deadline and put < STARVED:
        forwarder.put([("alloc", {"slot": str(put)})])
        put += 1
        time.sleep(0.001)
    assert (len(batches) == 0) is on
    if on:
        forwarder.put([("alloc", {"slot": "x"})] * STARVED)
    forwarder.stop()
    assert sum(batches) == put + (STARVED if on else 0)


def test_a_starved_flush_comes_once_it_is_quiet():
    batches = Batches()
    forwarder = StarvingForwarder(batches, 0.02)
    forwarder.start()
    forwarder.put([("alloc", {"slot": "x"})])
    deadline = time.monotonic() + 5
    while not batches and time.monotonic() < deadline:
        time.sleep(0.001)
    forwarder.stop()
    assert batches == [1]


def test_ack_before_delivery(here, by_hand):
    """Without it there is a spool, on disk before OK; with it there is none."""
    for names in ([], ["ack-before-delivery"]):
        store = here / f"accounts-{len(names)}"
        with Fake(PROJECTS, unix=here / "cp.sock", store=store, quirks=chosen("documented", names)) as fake:
            assert say(by_hand, b"alloc,slot=a\n") == b"OK"
            assert list(slots(fake)) == ["a"]
        assert bool(list(here.glob(f"{store.name}.*spool"))) is not bool(names)


def test_a_store_does_not_go_with_the_memory_of_a_quirk(here):
    with pytest.raises(Problem, match=r"quirk cut-values: .* add the quirk ack-before-delivery"):
        Fake(PROJECTS, unix=here / "cp.sock", store=here / "accounts", quirks=frozenset({"cut-values"}))
    assert list(here.iterdir()) == []


def test_the_deployed_profile_serves(here, by_hand):
    with Fake(PROJECTS, unix=here / "cp.sock", flush_interval_s=0.01, quirks=chosen("deployed", [])) as fake:
        assert say(by_hand, b"alloc,slot=a=b\n") == b"OK"
        assert say(by_hand, b"alloc,slot\n") == b""
        assert list(slots(fake)) == ["a"]
