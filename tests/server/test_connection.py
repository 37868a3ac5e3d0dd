"""What HTTP asks of a connection, whether a request is answered at once or later."""

import contextlib
import json
import select
import socket

import pytest

from cpsim.fake import ANY_PORT, Fake
from cpsim.metrics.waits import Waits
from cpsim.net.http.shared import FEW
from cpsim.server.service import AccountServer

MOST_UNREAD_BYTES = 40_000_000
"""More than the system's own buffers, both ways."""
CLOSE = b"GET /api/heartbeat HTTP/1.1\r\nConnection: close\r\n\r\n"


@pytest.fixture(params=["at once", "in turns", "in tasks"])
def site(request, visit):
    waits = Waits() if request.param == "in tasks" else None
    with Fake({"Physics": "s3cret"}, http=ANY_PORT, waits=waits) as fake, contextlib.ExitStack() as stack:
        site = visit(fake)
        if request.param == "in tasks":
            fake.faults.add("server.status=503:slot=no-such-slot")
        for _ in range(FEW if request.param == "in turns" else 0):
            stack.enter_context(socket.create_connection(site.address, timeout=280))
        yield site


def alloc(site, slot, *headers, path="alloc"):
    return site.signed(path, json.dumps({"slot": slot} if path == "alloc" else {"alloc": slot}).encode(), *headers)


def test_many_requests_in_one_segment_are_answered_in_order(site):
    sent = [alloc(site, slot) for slot in ("a", "b", "a")] * 500
    received = site.raw(b"".join(sent) + CLOSE)
    assert received.count(b"HTTP/1.1 ") == 1501
    assert received.count(b"HTTP/1.1 200") == 3
    assert received.index(b"200 OK") < received.index(b"'a' was already") < received.index(b"\r\n\r\nOK")
    assert list(site.slots()) == ["a", "b"]


def test_who_reads_no_answers_is_not_read_from(site):
    requests = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 1_000) * 1_000  # the answers repeat what was asked
    with socket.create_connection(site.address, timeout=280) as sock:
        sent = 0
        while writable(sock, 1) and sent < MOST_UNREAD_BYTES:
            sent += sock.send(requests[sent % len(requests) :])
        assert sent < MOST_UNREAD_BYTES
        while not writable(sock, 0):
            assert sock.recv(65_536)


def writable(sock, timeout_s):
    return select.select([], [sock], [], timeout_s)[1]


def test_a_body_in_pieces(site):
    request = alloc(site, "s")
    with socket.create_connection(site.address, timeout=280) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), 7):
            sock.sendall(request[start : start + 7])
        assert b" 200 OK\r\n" in sock.recv(1000)
    assert list(site.slots()) == ["s"]


def test_a_body_in_chunks(site):
    body = b'{"slot": "s"}'
    head = f"POST /api/batch/alloc HTTP/1.1\r\nAuthorization: {site.sign(body)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    assert site.raw(head.encode() + chunks + b"0\r\n\r\n" + CLOSE).count(b" 200 OK\r\n") == 2
    assert list(site.slots()) == ["s"]


def test_a_body_longer_than_a_buffer(site):
    slots = [{"slot": f"slot-{number}"} for number in range(20_000)]
    received = site.raw(alloc(site, slots, path="bulk") + alloc(site, "last") + CLOSE)
    assert received.count(b" 200 OK\r\n") == 3
    assert len(site.slots()) == 20_001


def test_a_client_that_waits_to_be_told_to_go_on(site):
    head, _, body = alloc(site, "s", "Expect: 100-continue").partition(b"\r\n\r\n")
    with socket.create_connection(site.address, timeout=280) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert b" 200 OK\r\n" in sock.recv(1000)


@pytest.mark.parametrize(
    "asked",
    [
        CLOSE,
        b"GET /api/heartbeat HTTP/1.0\r\n\r\n",
        b"GET /api/heartbeat HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET /api/heartbeat HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\n",
    ],
)
def test_a_client_that_wants_no_more_is_told_so(site, asked):
    received = site.raw(asked)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in received
    assert received.endswith(b"\r\n\r\nOK")


def test_head_has_no_body(site):
    received = site.raw(b"HEAD /api/heartbeat HTTP/1.1\r\n\r\n" + CLOSE)
    first, _, rest = received.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 405")
    assert rest.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("target", [b"/api/heart%62eat", b"http://here/api/heartbeat", b"/api/heartbeat?a#b"])
def test_targets_in_other_words(site, target):
    assert site.raw(b"GET %s HTTP/1.1\r\n\r\n" % target + CLOSE).count(b" 200 OK\r\n") == 2


def test_a_request_behind_one_that_is_late(site):
    with site.fake.faults.during("server.late=0.05:slot=slow"):
        received = site.raw(b"".join(alloc(site, slot) for slot in ("slow", *map(str, range(500)))) + CLOSE)
    assert received.count(b" 200 OK\r\n") == 502
    assert list(site.slots()) == ["slow", *map(str, range(500))]


def test_a_server_that_fails_says_so_and_goes_on(site, monkeypatch, caplog):
    def fail(*_):
        raise ArithmeticError("a fault of ours")

    monkeypatch.setattr(AccountServer, "authenticate", fail)
    received = site.raw(alloc(site, "s") + CLOSE)
    assert received.startswith(b"HTTP/1.1 500 ")
    assert received.count(b"HTTP/1.1") == 1
    assert "a fault of ours" in caplog.text
    monkeypatch.undo()
    assert site.raw(CLOSE).startswith(b"HTTP/1.1 200 ")


def test_a_head_without_end_is_broken_off(site):
    received = b""
    with socket.create_connection(site.address, timeout=280) as sock, contextlib.suppress(OSError):
        sock.sendall(b"GET /api/heartbeat HTTP/1.1\r\nX: ")
        for _ in range(100):
            sock.sendall(b"x" * 2**16)
        received = sock.recv(1000)
    assert not received or received.startswith(b"HTTP/1.1 400 ")
    assert site.raw(CLOSE).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("after", [b"", b"Transfer-Encoding: chunked\r\n\r\n0\r\n"], ids=["headers", "trailers"])
def test_headers_and_trailers_without_end_are_broken_off(site, after):
    received = b""
    with socket.create_connection(site.address, timeout=280) as sock, contextlib.suppress(OSError):
        sock.sendall(b"GET /api/heartbeat HTTP/1.1\r\n" + after)
        for _ in range(100):
            sock.sendall(b"x: y\r\n" * 10_000)
        received = sock.recv(1000)
    assert not received or received.startswith(b"HTTP/1.1 400 ")
    assert site.raw(CLOSE).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("length", [1_000, 2_000, 60_000])
def test_long_targets_are_read_whole(site, length):
    query = f"slot={'s' * length}"
    status, _ = site.get("alloc", query)
    assert status == 200
    assert list(site.slots()) == ["s" * length]


def test_rubbish_does_not_fill_the_log(site, caplog):
    for _ in range(20):
        site.raw(b"alloc,slot=x\r\n\r\n")
    assert caplog.text.count("Invalid HTTP request received") <= 1
