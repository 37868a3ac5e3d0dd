"""Raw connections to a daemon."""

import socket
import threading

import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.conformance.findings import CannotRun
from cpsim.conformance.frames import DaemonConnection, connect


@pytest.fixture
def full(tmp_path):
    """A UNIX socket whose queue of connections is full, and what fills it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "d.sock"))
        listening.listen(0)
        waiting = []
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(str(tmp_path / "d.sock"))
            except BlockingIOError:
                break
        for sock in waiting:
            sock.close()  # they keep their places
        yield listening


def test_a_full_queue_is_tried_again(full):
    replies = []

    def ask():
        with DaemonConnection(connect(UnixEndpoint(full.getsockname()), 60)) as connection:
            connection.send(b"alloc,slot=x\n")
            replies.append(connection.reply())

    thread = threading.Thread(target=ask)
    thread.start()
    full.settimeout(280)
    for _ in range(10):
        accepted, _ = full.accept()
        with accepted:
            if accepted.recv(100):
                accepted.sendall(b"OK")
                break
    thread.join(60)
    assert replies == ["OK"]


def test_a_queue_that_stays_full_is_no_connection(full):
    with pytest.raises(CannotRun, match="Resource temporarily unavailable"):
        connect(UnixEndpoint(full.getsockname()), 0.01)
