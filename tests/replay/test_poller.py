"""Which descriptors are reported, and that no wait is longer than was asked for."""

import socket
import time
from contextlib import ExitStack

import pytest

from cpsim.replay.wires import poller as poller_module
from cpsim.replay.wires.poller import Few, Many


@pytest.fixture(params=["few", "many"])
def watched(request):
    """A poller that watches one end of a pair of sockets, and the other end."""
    with ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        descriptors = {ours.fileno(): ours}
        poller = Few(descriptors, {}) if request.param == "few" else Many()
        stack.callback(poller.close)
        poller.watch(ours.fileno())
        yield poller, ours.fileno(), theirs


PATIENCE_S = [0.0, 0.0005, 0.0019, 0.002, 0.01]


@pytest.mark.parametrize("patience_s", PATIENCE_S)
def test_what_can_be_read_is_reported(watched, patience_s):
    poller, fd, theirs = watched
    assert poller.poll(patience_s) == []
    theirs.sendall(b"OK")
    assert poller.poll(patience_s) == [fd]


@pytest.mark.parametrize("patience_s", [0.0005, 0.0015, 0.01])
@pytest.mark.parametrize("selectable", [1_024, 0])
def test_a_wait_is_not_longer_than_was_asked_for(watched, patience_s, selectable, monkeypatch):
    monkeypatch.setattr(poller_module, "SELECTABLE", selectable)
    poller, fd, theirs = watched
    waits_s = []
    for _ in range(20):
        begun_s = time.perf_counter()
        assert poller.poll(patience_s) == []
        waits_s.append(time.perf_counter() - begun_s)
    assert min(waits_s) < patience_s + 0.0004  # whatever else this machine does
    theirs.sendall(b"OK")
    assert poller.poll(patience_s) == [fd]


@pytest.mark.parametrize("patience_s", PATIENCE_S)
def test_what_can_be_written_is_reported_until_it_is_written(patience_s):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writing = {ours.fileno(): b"frame"}
        poller = Few({ours.fileno(): ours}, writing)
        poller.watch(ours.fileno(), writing=True)
        assert poller.poll(patience_s) == [ours.fileno()]
        del writing[ours.fileno()]
        poller.written(ours.fileno())
        assert poller.poll(patience_s) == []
