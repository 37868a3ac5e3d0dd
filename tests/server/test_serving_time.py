"""What a server does in the course of time, by a clock that the tests advance."""

import logging
import socket

import pytest

from cpsim.faults.plan import FaultPlan
from cpsim.net.http.shared import QUIET_S, Limits, Seldom
from cpsim.testing import ManualClock

LIMITS = Limits()
GUARD_S = 60


@pytest.mark.parametrize("path", [b"heartbeat", b"heart%62eat"])
def test_what_is_idle_for_long_is_closed_and_nothing_else(by_hand, path):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address) as sock:
        for _ in range(3):
            sock.sendall(b"GET /api/%s HTTP/1.1\r\n\r\n" % path)
            received = sock.recv(1000)
            while received and not received.endswith(b"\r\n\r\nOK"):  # the head may come alone
                received += sock.recv(1000)
            assert received
            advance(LIMITS.idle_s - 1)
        advance(1)
        assert sock.recv(1000) == b""


def test_who_says_nothing_at_all_is_closed(by_hand):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address) as sock:
        sock.sendall(b"GET /api/heartbeat HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert sock.recv(1000)
    with socket.create_connection(address, GUARD_S) as silent:
        advance(0)
        advance(LIMITS.idle_s)
        assert silent.recv(1000) == b""


HALF_SENT = {
    "head": (b"GET /api/heartbeat HTTP/1.1\r\nX: ", b"x", LIMITS.head_s),
    "body": (b"POST /api/heartbeat HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"x", LIMITS.request_s),
    "chunks": (b"POST /api/heartbeat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", LIMITS.request_s),
    "trailers": (
        b"POST /api/heartbeat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"x: y\r\n",
        LIMITS.request_s,
    ),
}


@pytest.mark.parametrize("part", HALF_SENT)
@pytest.mark.parametrize("behind", [b"", b"GET /api/heartbeat HTTP/1.1\r\n\r\n"], ids=["first", "second"])
def test_what_is_half_sent_is_given_up_however_much_still_trickles(by_hand, part, behind):
    begin, trickle, limit_s = HALF_SENT[part]
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address, GUARD_S) as sock:
        sock.sendall(behind + begin)
        if behind:
            assert sock.recv(1000).endswith(b"OK")
        advance(0)
        for _ in range(10):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1000)
            sock.settimeout(GUARD_S)
            sock.sendall(trickle)
            advance(limit_s / 10)
        received = b""
        while piece := sock.recv(1000):
            received += piece
        assert received.startswith(b"HTTP/1.1 408 ")


def test_who_is_refused_and_stays_is_closed(by_hand):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address, GUARD_S) as sock:
        sock.sendall(b"rubbish\r\n\r\n")
        while sock.recv(1000):
            pass
        for _ in range(10):
            sock.sendall(b"more")  # is ignored, so that the answer can be read
            advance(LIMITS.linger_s / 10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.sendall(b"more" * 1_000_000)


def test_a_client_is_not_given_up_while_the_server_has_to_do(by_hand):
    clock = ManualClock()
    faults = FaultPlan(["server.late=1000:kind=heartbeat,nth=1"], clock=clock)
    address, advance = by_hand(clock, faults)
    half = b"GET /api/heartbeat HTTP/1.1\r\n"
    with socket.create_connection(address, GUARD_S) as sock:
        sock.sendall(half + b"\r\n" + half)
        advance(0)
        for _ in range(10):
            advance(100)
        assert sock.recv(1000).endswith(b"OK")
        advance(LIMITS.head_s - 1)
        sock.sendall(b"\r\n")
        assert sock.recv(1000).endswith(b"OK")


def test_a_server_is_down_while_its_fault_lasts(by_hand):
    clock = ManualClock()
    plan = FaultPlan(["down:from=10,until=20"], clock=clock)
    address, advance = by_hand(clock, plan)
    for duration_s, is_down in ((9, False), (1, True), (9, True), (1, False)):
        advance(duration_s)
        if is_down:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        else:
            socket.create_connection(address).close()
            advance(0)  # or asyncio may forget to close what it accepts while the server ends


def test_a_warning_is_logged_once_a_minute():
    clock = ManualClock()
    seldom = Seldom(clock)

    def is_logged(level, text):
        return seldom.filter(logging.makeLogRecord({"levelno": level, "msg": text}))

    assert is_logged(logging.WARNING, "rubbish")
    clock.advance(QUIET_S - 1)
    assert not is_logged(logging.WARNING, "rubbish")
    assert is_logged(logging.WARNING, "other rubbish")
    assert is_logged(logging.ERROR, "rubbish")
    clock.advance(QUIET_S)
    assert is_logged(logging.WARNING, "rubbish")
