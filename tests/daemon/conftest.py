"""A fake's daemon on real sockets, and clients that speak to it by hand."""

import select
import socket
import struct
import threading

import pytest

from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.listener import QUIET_S, Listener
from cpsim.fake import ANY_PORT, Fake
from cpsim.testing import ManualClock

LONG_S = 60
"""How long a test may hang."""


class Daemon:
    """A running fake, reached over one of its two sockets."""

    def __init__(self, fake, wire):
        self.fake = fake
        self.wire = wire
        host, _, port = fake.addresses["tcp"].rpartition(":")
        self.address = fake.addresses["unix"] if wire == "unix" else (host, int(port))

    def connect(self):
        sock = socket.socket(socket.AF_UNIX if self.wire == "unix" else socket.AF_INET)
        sock.settimeout(LONG_S)
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
def clock():
    """The clock of the fake."""
    return SYSTEM_CLOCK


@pytest.fixture
def fake(here, clock):
    with Fake({"p": "s"}, unix=here / "cp.sock", tcp=ANY_PORT, clock=clock) as fake:
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
        assert self.go_on.wait(LONG_S)
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
    listener.open()
    listener.start()
    yield listener, listening.getsockname()
    recorder.go_on.set()
    if listener._thread.is_alive():
        listener.stop()


class Stepped:
    """A listener on a UNIX socket that a test steps, and a clock that the test advances."""

    def __init__(self, here, make):
        self.clock = ManualClock()
        self.address = str(here / "stepped.sock")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.address)
        listening.listen(1_000)
        self.listener = make([listening], self.clock)
        self.listener.open()
        self.stopped = False
        self.clients = []

    def connect(self, *pieces):
        """A client that sends each piece in a segment of its own, each of which is read alone."""
        sock = socket.socket(socket.AF_UNIX)
        self.clients.append(sock)
        sock.connect(self.address)
        for piece in pieces:
            self.send(sock, piece)
        return sock

    def send(self, sock, data):
        sock.sendall(data)
        self.step()

    def step(self):
        """Step until nothing more comes of what has arrived."""
        for _ in range(3):
            self.listener.step()

    def pass_(self, duration_s):
        self.clock.advance(duration_s)
        self.step()

    def end_quiet(self):
        """Let those who are quiet run out of time."""
        self.pass_(1.01 * QUIET_S)

    def answer(self, sock):
        """What has come for a client: None if nothing has, and no end either."""
        received = b""
        try:
            while piece := sock.recv(100, socket.MSG_DONTWAIT):
                received += piece
        except BlockingIOError:
            return received or None
        return received

    def stop(self):
        if not self.stopped:
            self.stopped = True
            self.listener.stop()

    def close(self):
        self.stop()
        for sock in self.clients:
            sock.close()


@pytest.fixture
def stepped(here, recorder):
    stepped = Stepped(here, lambda sockets, clock: Listener(sockets, recorder, lambda: recorder.full, clock))
    yield stepped
    stepped.close()


@pytest.fixture
def stepped_with(here):
    """Return stepped_with(make) -> a `Stepped` with the listener that make(sockets, clock) returns."""
    started = []

    def start(make):
        started.append(Stepped(here, make))
        return started[-1]

    yield start
    for stepped in started:
        stepped.close()
