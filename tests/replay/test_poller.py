"""Which descriptors are reported, and that no wait is longer than was asked for."""

import socket
from contextlib import ExitStack

import pytest

from cpsim.replay.wires import poller as poller_module
from cpsim.replay.wires.poller import COARSE_S, Few, Many, parts_of


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


@pytest.mark.parametrize("selectable", [True, False])
@pytest.mark.parametrize("patience_s", [0.000_000_1, 0.0005, 0.0015, 0.001_999, 0.002, 0.0029, 0.01, 0.029, 0.05, 1.0])
def test_a_wait_is_not_longer_than_was_asked_for(patience_s, selectable):
    """What waits in whole milliseconds rounds up."""
    fine_s, coarse_ms = parts_of(patience_s, selectable=selectable)
    assert isinstance(coarse_ms, int)
    assert patience_s - COARSE_S <= fine_s + coarse_ms / 1000 <= patience_s
    if patience_s < COARSE_S and selectable:
        assert fine_s == patience_s


@pytest.mark.parametrize("patience_s", [0.0005, 0.0015, 0.01])
@pytest.mark.parametrize("selectable", [1_024, 0])
def test_after_waits_of_any_length_what_can_be_read_is_reported(watched, patience_s, selectable, monkeypatch):
    monkeypatch.setattr(poller_module, "SELECTABLE", selectable)
    poller, fd, theirs = watched
    assert poller.poll(patience_s) == []
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
