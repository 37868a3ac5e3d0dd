"""Servers that misbehave on purpose, replays at them, and a workload with everything awkward in it."""

import socket
import threading
from contextlib import ExitStack
from itertools import count
from typing import NamedTuple

import numpy as np
import pytest

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint
from cpsim.evidence.journal import Journal
from cpsim.replay.engine import Effort, Engine
from cpsim.replay.wires.connect import open_wire
from cpsim.replay.wires.wire import ACCEPTED, BacklogFull
from cpsim.scenario.blocks import Blocks
from cpsim.scenario.workload import ABSENT, Column, Workload
from cpsim.testing import ManualClock


class Replayed(NamedTuple):
    """What came of a replay: outcomes and error texts in the order of the operations, and the rest."""

    outcomes: list
    errors: list
    records: np.ndarray
    elapsed_s: float
    progress: list
    effort: Effort


class Peer:
    """Gives each connection to `handle(connection, peer)`, in a thread of its own."""

    def __init__(self, listener, handle, tls):
        self.listener = listener
        self.handle = handle
        self.tls = tls
        self.address = listener.getsockname()
        self.received = []
        self.connections = 0
        self.ended = threading.Semaphore(0)
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.threads = []
        self.start(self.accept)

    def start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # a handler has closed the listener
            if self.stopping.is_set():
                connection.close()
                return
            self.connections += 1
            self.start(self.serve, connection)

    def serve(self, connection):
        with ExitStack() as ending, connection:
            ending.callback(self.ended.release)
            try:
                connection.settimeout(280)
                if self.tls:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                with connection:
                    self.handle(connection, self)
            except OSError:
                pass  # the replay went first: that is for its test to judge

    def refuse(self):
        """Listen no more."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def stop(self):
        self.stopping.set()
        if self.listener.fileno() >= 0:
            with socket.socket(self.listener.family) as waker:
                waker.connect(self.address)
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        self.listener.close()

    @property
    def endpoint(self):
        if self.listener.family == socket.AF_UNIX:
            return UnixEndpoint(self.address)
        return TcpEndpoint("127.0.0.1", self.address[1])

    @property
    def url(self):
        return UrlEndpoint("https" if self.tls else "http", "127.0.0.1", self.address[1], "/api")


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """Return start(handle, kind, tls) -> Peer on a UNIX socket or, if kind is "tcp", on a port of 127.0.0.1."""
    monkeypatch.chdir(tmp_path)  # a path short enough wherever the test runs
    started = []

    def start(handle, kind="tcp", tls=None):
        if kind == "tcp":
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        else:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind("./cp.sock")
            listener.listen(1024)
        started.append(Peer(listener, handle, tls))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def http_peer(peer):
    """Return start(respond, tls) -> Peer whose n-th request is answered by respond(n): the bytes, and what then.

    What then is "keep", "close" or "hang".
    """

    def start(respond, tls=None):
        numbers = count()

        def handle(connection, served):
            while request := read_request(connection):
                with served.lock:
                    served.received.append(request)
                    number = next(numbers)
                raw, then = respond(number)
                connection.sendall(raw)
                if then == "hang":
                    served.stopping.wait(10)
                if then != "keep":
                    return

        return peer(handle, tls=tls)

    return start


def read_request(connection):
    """The head and the body of a request, or None at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < size:
        body += connection.recv(65536)
    return head, body


@pytest.fixture
def replay():
    """Return replay(endpoint, payloads, ...) -> Replayed, with the outcomes and error texts in order."""
    opened = []

    def run(
        endpoint,
        payloads,
        *,
        slots=None,
        due_ns=None,
        in_flight=8,
        timeout_s=60.0,
        think_s=0.0,
        on_progress=None,
        was_reached=False,
    ):
        slots = range(len(payloads)) if slots is None else slots
        due_ns = [0] * len(payloads) if due_ns is None else due_ns
        operations = zip(range(len(payloads)), slots, due_ns, payloads, strict=True)
        journal, wire, progress = Journal(), open_wire(endpoint, timeout_s, in_flight, was_reached=was_reached), []
        opened.extend((journal, wire))
        engine = Engine(
            wire, journal, in_flight=in_flight, timeout_s=timeout_s, think_s=think_s, on_progress=progress.append
        )
        if on_progress is not None:
            engine._on_progress = lambda figures: (progress.append(figures), on_progress(engine, figures))
        elapsed_s = engine.run(operations)
        records = journal.records()
        texts = [journal.errors[code] for code in records["error"].tolist()]
        return Replayed(records["outcome"].tolist(), texts, records, elapsed_s, progress, engine.effort(elapsed_s))

    yield run
    for each in opened:
        each.close()


class TimedWire:
    """A wire to a target that takes a time of its own for each operation, by a clock that this wire moves.

    `tries_full_until_s` is when the target's backlog has room; a send costs the sender `cost_s`.
    """

    def __init__(self, clock, service_s, cost_s=0.0, full_until_s=0.0):
        self.clock, self.service_s, self.cost_s, self.full_until_s = clock, service_s, cost_s, full_until_s
        self.answers_ns = {}
        self.dropped = 0
        self.numbers = count(3)

    def send(self, payload):
        self.clock.advance(self.cost_s)
        if self.clock.monotonic() < self.full_until_s:
            raise BacklogFull("backlog full")
        fd = next(self.numbers)
        self.answers_ns[fd] = self.clock.monotonic_ns() + round(self.service_s(payload) * 1e9)
        return fd

    def poll(self, patience_s):
        """Let the time pass until the next answer; to look without patience takes a hundredth of a millisecond."""
        now_ns = self.clock.monotonic_ns()
        until_ns = now_ns + (round(patience_s * 1e9) or 10_000)
        self.clock.advance((max(now_ns, min(until_ns, *self.answers_ns.values(), until_ns)) - now_ns) / 1e9)
        return [fd for fd, at_ns in self.answers_ns.items() if at_ns <= self.clock.monotonic_ns()]

    def receive(self, fd):
        del self.answers_ns[fd]
        return ACCEPTED

    def abandon(self, fd):
        del self.answers_ns[fd]
        return False


@pytest.fixture
def replay_by_hand():
    """Return replay(payloads, service_s(payload), ...) -> Replayed, all of it by a clock that nobody else moves."""
    with ExitStack() as stack:

        def run(payloads, service_s, *, slots=None, due_ns=None, cost_s=0.0, full_until_s=0.0, **options):
            slots = range(len(payloads)) if slots is None else slots
            due_ns = [0] * len(payloads) if due_ns is None else due_ns
            clock, journal, progress = ManualClock(), Journal(), []
            stack.callback(journal.close)
            wire = TimedWire(clock, service_s, cost_s, full_until_s)
            options = {"in_flight": 8, "timeout_s": 5.0, "on_progress": progress.append} | options
            engine = Engine(wire, journal, clock=clock, **options)
            elapsed_s = engine.run(zip(range(len(payloads)), slots, due_ns, payloads, strict=True))
            records = journal.records()
            texts = [journal.errors[code] for code in records["error"].tolist()]
            effort = engine.effort(elapsed_s)
            return Replayed(records["outcome"].tolist(), texts, records, elapsed_s, progress, effort)

        yield run


@pytest.fixture
def awkward():
    """A valid workload of sixteen slots: every pattern of arguments, and names that need care."""
    slots = np.arange(16, dtype=np.int32)
    given = [slots & bit != 0 for bit in (1, 2, 4, 8)]
    terms = zip(("credits", "min", "max", "expire"), given, (7, 2, 50, 1440), strict=True)
    alloc = {name: np.where(there, value, ABSENT) for name, there, value in terms}
    patterns = np.arange(1, 8)
    counts = {"50%": (1, -3), 'q"uote': (2, 0), "é/%d": (4, 10**12)}
    counters = {name: np.where(patterns & bit != 0, value, ABSENT) for name, (bit, value) in counts.items()}
    meta = {
        "%s": Column(slots % 3, ("100%", 'say "hi"', "back\\slash")),
        "na ïve": Column(slots % 2, ("日本", "%(x)s")),
    }
    claimed, discarded = slots[:12], slots[12:]
    reason = Column(slots[:4] % 2, ("no%", 'lo"st'))
    asked = np.where(claimed % 2, ABSENT, 5 * claimed.astype(np.int64))
    blocks = Blocks()
    due_us = slots.astype(np.int64) * 1000
    blocks.add("alloc", due_us, slots, alloc)
    blocks.add("meta", due_us + 500, slots, meta)
    blocks.add("counters", due_us[:7] + 20_000, slots[:7], counters)
    blocks.add("discard", due_us[12:] + 40_000, discarded, {"reason": reason})
    blocks.add("claim", due_us[:12] + 40_000, claimed, {"machine": Column(claimed % 3), "credits": asked})
    due_us, kind, slot, row = blocks.timeline()
    return Workload(
        name="awkward",
        seed=1,
        duration_us=60_000_000,
        due_us=due_us,
        kind=kind,
        slot=slot,
        row=row,
        slot_numbers=np.arange(16) * 1_000_003,
        arguments=blocks.arguments(),
        machines=("m%d-1", 'm"2', "машина"),
        users=("u",),
        owner=np.array([0, -1, 0], dtype=np.int32),
    )
