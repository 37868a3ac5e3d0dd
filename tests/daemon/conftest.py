"""A fake's daemon on real sockets, and clients that speak to it by hand."""

import select
import socket
import struct
import threading
import time

import pytest

from cpsim.daemon.listener import Listener
from cpsim.fake import ANY_PORT, Fake


class Daemon:
    """A running fake, reached over one of its two sockets."""

    def __init__(self, fake, wire):
        self.fake = fake
        self.wire = wire
        host, _, port = fake.addresses["tcp"].rpartition(":")
        self.address = fake.addresses["unix"] if wire == "unix" else (host, int(port))

    def connect(self):
        sock = socket.socket(socket.AF_UNIX if self.wire == "unix" else socket.AF_INET)
        sock.settimeout(5)
        try:
            sock.connect(self.address)
            if self.wire == "tcp":
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()
            raise
        return sock

    def say(self, frame, *, half_close=False):
        """Send a frame, and return all that comes until the daemon closes."""
        with self.connect() as sock:
            sock.sendall(frame)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def slots(self):
        """What is in the accounts once all that was acknowledged has come there."""
        self.fake.wait_until_idle()
        with self.fake.accounts.reading() as ledger:
            return dict(ledger.project("p").slots)


def read_all(sock):
    received = b""
    while piece := sock.recv(100):
        received += piece
    return received


def reset(sock):
    """Close so that the other side sees a reset, where there is such a thing."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def replied(sock, within_s):
    """Whether something came to be read in time."""
    return bool(select.select([sock], [], [], within_s)[0])


@pytest.fixture
def by_hand():
    """What a test does to a bare socket."""

    class ByHand:
        pass

    ByHand.read_all, ByHand.reset, ByHand.replied = map(staticmethod, (read_all, reset, replied))
    return ByHand


@pytest.fixture
def wait_for():
    """Return wait_for(condition), which returns once it holds."""

    def wait(condition, within_s=60):
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


@pytest.fixture
def fake(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", tcp=ANY_PORT) as fake:
        yield fake
        fake.wait_until_idle()
        with fake.accounts.reading() as ledger:
            assert list(ledger.violations()) == []


@pytest.fixture(params=["unix", "tcp"])
def daemon(fake, request):
    return Daemon(fake, request.param)


class Recorder:
    """Stands where a listener delivers: keeps what comes, and can be held."""

    def __init__(self):
        self.calls = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.full = False

    def __call__(self, calls):
        self.entered.set()
        assert self.go_on.wait(5)
        self.calls += calls

    @property
    def slots(self):
        return [arguments["slot"] for _, arguments in self.calls]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def bare_listener(recorder):
    """A listener on TCP without a fake around it, and its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    listener = Listener([listening], recorder, lambda: recorder.full)
    listener.start()
    yield listener, listening.getsockname()
    recorder.go_on.set()
    if listener._thread.is_alive():
        listener.stop()
