"""The daemon's sockets in front of a spool."""

import socket
import sqlite3
import threading

import pytest

from cpsim.daemon import listener as listening
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.spool import Spool
from cpsim.errors import CpsimError


class HeldSpool(Spool):
    """A spool that tells what is durable only when it is let go, and can be made to fail."""

    def __init__(self, path, **options):
        super().__init__(path, **options)
        self.go_on = threading.Event()
        self.go_on.set()
        self.reached = threading.Event()
        self.problem = None

    def put(self, frames, amended, then):
        def told(problem):
            self.reached.set()
            assert self.go_on.wait(5)
            then(self.problem or problem)

        return super().put([] if self.problem else frames, amended, told)

    def delivered(self):
        """What may be delivered, all of it."""
        with self.released:
            assert self.released.wait_for(lambda: self.ready == self.pending, 5)
        batch = self.take()
        return [] if batch is None else [frame for _, frame in batch.commands]


@pytest.fixture
def spool(tmp_path):
    spool = HeldSpool(tmp_path / "spool")
    yield spool
    spool.close()


@pytest.fixture
def connect(spool):
    """Return connect() -> a client's socket."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    listener = DurableListener([sock], spool)
    listener.start()
    yield lambda: socket.create_connection(address, 5)
    spool.go_on.set()
    if listener._thread.is_alive():
        listener.stop()


def read_all(sock):
    received = b""
    while piece := sock.recv(100):
        received += piece
    return received


def say(connect, frame):
    with connect() as sock:
        sock.sendall(frame)
        return read_all(sock)


def test_ok_waits_until_it_is_on_disk(connect, spool, by_hand):
    spool.go_on.clear()
    with connect() as sock:
        sock.sendall(b"alloc,slot=a")
        assert spool.reached.wait(5)
        assert not by_hand.replied(sock, 0.05)
        assert spool._log.query("SELECT record FROM log") == [("alloc,slot=a",)]
        spool.go_on.set()
        assert read_all(sock) == b"OK"
    assert spool.delivered() == ["alloc,slot=a"]


def test_malformed_frames_are_refused_at_once(connect, spool):
    spool.go_on.clear()
    assert say(connect, b"pay,slot=a\n") == b"ER"
    assert spool.pending == 0


@pytest.mark.parametrize("ending", [b"", b"\n", b" \r\n"])
def test_a_frame_that_grows_before_it_is_answered(connect, spool, ending):
    spool.go_on.clear()
    with connect() as sock:
        sock.sendall(b"alloc,slot=a")
        assert spool.reached.wait(5)
        sock.sendall(b"bc,credits=5" + ending)
        spool.go_on.set()
        assert read_all(sock) == b"OK"
        assert spool._log.query("SELECT record FROM log") == [("alloc,slot=abc,credits=5",)]
    assert spool.delivered() == ["alloc,slot=abc,credits=5"]


@pytest.mark.parametrize(("more", "frames"), [(b"b,credits=5\n", ["alloc,slot=ab,credits=5"]), (b",", [])])
def test_a_frame_that_grows_after_it_is_answered(connect, spool, monkeypatch, more, frames):
    monkeypatch.setattr(listening, "QUIET_S", 5.0)
    with connect() as sock:
        sock.sendall(b"alloc,slot=a")
        assert read_all(sock) == b"OK"
        assert spool.ready == 0
        sock.sendall(more)
    assert spool.delivered() == frames


def test_what_cannot_be_written_is_refused(connect, spool):
    spool.problem = CpsimError("no room")
    assert say(connect, b"alloc,slot=a\n") == b"ER"
    spool.problem = None
    assert say(connect, b"alloc,slot=b\n") == b"OK"
    assert spool.delivered() == ["alloc,slot=b"]


def test_a_full_spool_takes_no_more(connect, spool):
    spool._max_commands = 1
    assert [say(connect, b"alloc,slot=%d" % number) for number in range(3)] == [b"OK", b"ER", b"ER"]
    assert spool.delivered() == ["alloc,slot=0"]


def test_many_clients_share_a_commit(connect, spool):
    spool.go_on.clear()
    clients = [connect() for _ in range(50)]
    for number, sock in enumerate(clients):
        sock.sendall(b"alloc,slot=%d" % number)
    assert spool.reached.wait(5)
    spool.go_on.set()
    for sock in clients:
        with sock:
            assert read_all(sock) == b"OK"
    assert sorted(spool.delivered()) == sorted(f"alloc,slot={number}" for number in range(50))


def test_to_stop_answers_what_has_arrived(tmp_path, spool):
    sock = socket.create_server(("127.0.0.1", 0))
    listener = DurableListener([sock], spool)
    listener.start()
    spool.go_on.clear()
    with socket.create_connection(sock.getsockname(), 5) as client:
        client.sendall(b"alloc,slot=a")
        assert spool.reached.wait(5)
        stopping = threading.Thread(target=listener.stop)
        stopping.start()
        spool.go_on.set()
        assert read_all(client) == b"OK"
        stopping.join(5)
    assert spool.delivered() == ["alloc,slot=a"]


def test_a_spool_that_another_process_writes_to_for_long(connect, spool, monkeypatch):
    other = sqlite3.connect(spool._log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with connect() as sock:
        sock.sendall(b"alloc,slot=a\n")
        other.execute("ROLLBACK")
        assert read_all(sock) == b"OK"
    other.close()


def test_that_the_spool_cannot_be_written_is_told_once_and_so_is_its_end(connect, spool, monkeypatch, caplog):
    caplog.set_level("INFO")
    put, full = spool.put, CpsimError("spool: database or disk is full")
    monkeypatch.setattr(spool, "put", lambda *frames: put(*frames[:2], lambda _: frames[2](full)))
    assert answers(connect, "a", "b") == [b"ER", b"ER"]
    monkeypatch.setattr(spool, "put", put)
    assert answers(connect, "c", "d") == [b"OK", b"OK"]
    assert [record.message for record in caplog.records] == [
        "spool: database or disk is full: commands are answered ER until the spool can be written",
        "the spool can be written again",
    ]


def answers(connect, *slots):
    said = []
    for slot in slots:
        with connect() as sock:
            sock.sendall(f"alloc,slot={slot}\n".encode())
            said.append(read_all(sock))
    return said
