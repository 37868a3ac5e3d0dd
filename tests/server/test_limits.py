"""What a server holds of requests that are not whole, and what it refuses before it is performed."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cpsim

GUARD_S = 60
CLOSE = b"GET /api/heartbeat HTTP/1.1\r\nConnection: close\r\n\r\n"


def alloc(site, slot, *headers):
    return site.signed("alloc", json.dumps({"slot": slot}).encode(), *headers)


@pytest.fixture
def upload():
    """Begins an upload; returns the connection."""
    with contextlib.ExitStack() as stack:

        def upload(site, announced, head="POST /api/batch/alloc HTTP/1.1"):
            sock = stack.enter_context(socket.create_connection(site.address, GUARD_S))
            sock.sendall(f"{head}\r\nContent-Length: {announced}\r\n\r\n".encode())
            return sock

        yield upload


def settle(site):
    """Return when the server has read what was sent to it before."""
    for _ in range(2):  # the first may be answered before the rest of its step
        assert site.request("GET", "/api/heartbeat")[0] == 200


def answer(sock):
    """What comes up to the end, or None if nothing has come."""
    sock.setblocking(False)
    try:
        received = sock.recv(65_536)
    except BlockingIOError:
        return None
    finally:
        sock.settimeout(GUARD_S)
    while piece := sock.recv(65_536):
        received += piece
    return received


PIECE = b"x" * 1_000


def test_bodies_are_bounded_in_sum(limited_site, upload):
    site = limited_site(held_bytes=20_000, body_bytes=10_000)
    uploads = {upload(site, 10_000): 0 for _ in range(30)}
    refused = []
    for _ in range(9):
        for sock in list(uploads):
            sock.sendall(PIECE)
            settle(site)
            if (received := answer(sock)) is None:
                uploads[sock] += len(PIECE)
                assert sum(uploads.values()) <= 20_000
            else:
                assert received.startswith(b"HTTP/1.1 503 ")
                assert b"connection: close" in received
                del uploads[sock]
                refused.append(sock)
    assert list(uploads.values()) == [9_000] * 2
    assert len(refused) == 28
    for sock in uploads:
        sock.sendall(PIECE)
        assert b"no Authorization header" in sock.recv(1_000)
    for _ in range(3):  # what was answered is held no more
        full = upload(site, 10_000)
        full.sendall(PIECE * 9)
        settle(site)
        assert answer(full) is None
        full.close()


def test_what_comes_whole_is_answered_even_when_nothing_more_can_be_held(limited_site, upload):
    site = limited_site(held_bytes=1_000)
    for _ in range(2):
        upload(site, 10_000).sendall(b"x" * 500)
        settle(site)
    assert site.raw(alloc(site, "s") + CLOSE).count(b" 200 OK\r\n") == 2


def test_who_leaves_lets_go_of_what_was_held(limited_site, upload):
    site = limited_site(held_bytes=1_000)
    for _ in range(5):
        sock = upload(site, 10_000)
        sock.sendall(b"x" * 900)
        settle(site)
        assert answer(sock) is None
        sock.close()
        settle(site)


def test_a_body_that_is_announced_too_long_is_not_waited_for(limited_site, upload):
    site = limited_site(body_bytes=1_000)
    received = answer_when_it_comes(upload(site, 1_001))
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"the body is over 1000 bytes" in received


def answer_when_it_comes(sock):
    received = b""
    while piece := sock.recv(65_536):
        received += piece
    return received


MANY = [f"X-{number}: y" for number in range(1_001)]


def test_a_request_with_too_many_headers_is_not_performed(site):
    received = site.raw(alloc(site, "s", *MANY))
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"over 1000 headers" in received
    assert site.slots() == {}
    assert site.raw(alloc(site, "t", *MANY[:900]) + CLOSE).count(b" 200 OK\r\n") == 2


def test_a_request_with_too_many_trailers_is_not_performed(site):
    body = b'{"slot": "s"}'
    head = f"POST /api/batch/alloc HTTP/1.1\r\nAuthorization: {site.sign(body)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    received = site.raw(head.encode() + chunk + "\r\n".join([*MANY, "", ""]).encode())
    assert received.startswith(b"HTTP/1.1 400 ")
    assert site.slots() == {}


@pytest.mark.parametrize("excess", [0, 550_000, 1_000_000])
def test_a_request_whose_head_is_too_long_is_not_performed(site, excess):
    received = site.raw(alloc(site, "s", f"X: {'x' * (500_000 + excess)}") + CLOSE)
    assert received.startswith(b"HTTP/1.1 400 " if excess else b"HTTP/1.1 200 ")
    assert list(site.slots()) == ([] if excess else ["s"])


def test_trailers_are_no_headers(site):
    body = b'{"slot": "s"}'
    head = b"POST /api/batch/alloc HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    received = site.raw(head + chunk + f"Authorization: {site.sign(body)}\r\n\r\n".encode() + CLOSE)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"no Authorization header" in received
    assert received.endswith(b"OK")
    assert site.slots() == {}


UPGRADE = ("Connection: Upgrade", "Upgrade: h2c")


def test_an_upgrade_is_not_made_and_the_request_answered(site):
    upgrade = "\r\n".join(["GET /api/heartbeat HTTP/1.1", *UPGRADE, "", ""]).encode()
    received = site.raw(upgrade + alloc(site, "s"))
    assert received.count(b"HTTP/1.1 ") == received.count(b" 200 OK\r\n") == 1
    assert b"connection: close\r\n" in received
    assert site.slots() == {}


def test_a_request_whose_body_an_upgrade_would_hide_is_refused(site):
    hidden = alloc(site, "hidden")
    request = site.signed("alloc", hidden, *UPGRADE)
    received = site.raw(request + CLOSE)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert site.slots() == {}


def test_nothing_is_performed_behind_the_last_request(site):
    first = alloc(site, "first", "Connection: close")
    assert site.raw(first + alloc(site, "second")).count(b"HTTP/1.1 ") == 1
    old = first.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n").replace(b"Connection: close", b"Connection: keep-alive")
    assert site.raw(old + alloc(site, "second")).count(b"HTTP/1.1 ") == 1
    assert list(site.slots()) == ["first"]


def test_a_second_client_is_told_to_go_on_in_its_turn(site):
    waiting = alloc(site, "b", "Expect: 100-continue").partition(b"\r\n\r\n")
    with site.fake.faults.late(0.05, slot="a"), socket.create_connection(site.address, GUARD_S) as sock:
        sock.sendall(alloc(site, "a") + b"".join(waiting[:2]))
        received = b""
        while not received.endswith(b"Continue\r\n\r\n"):
            received += sock.recv(1_000)
        assert received.startswith(b"HTTP/1.1 200 ")
        sock.sendall(waiting[2])
        assert sock.recv(1_000).startswith(b"HTTP/1.1 200 ")
    assert list(site.slots()) == ["a", "b"]


FEW_DESCRIPTORS = """
import resource, sys
from cpsim.fake import ANY_PORT, Fake

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with Fake({"p": "s"}, http=ANY_PORT) as fake:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    print(fake.addresses["http"], flush=True)
    sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
"""
HEARTBEAT = b"GET /api/heartbeat HTTP/1.1\r\n\r\n"


@pytest.fixture
def few_descriptors():
    """The address of a server that may have forty files open."""
    with subprocess.Popen(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        env={**os.environ, "PYTHONPATH": str(Path(cpsim.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        url = process.stdout.readline()
        yield "127.0.0.1", int(url.split(":")[2].partition("/")[0])
        process.stdin.close()
        assert process.wait(GUARD_S) == 0


@pytest.mark.parametrize("begins", [b"", HEARTBEAT, HEARTBEAT[:10]], ids=["silent", "idle", "half-sent"])
def test_without_a_descriptor_room_is_made_for_who_comes(few_descriptors, begins):
    with contextlib.ExitStack() as stack:

        def connect():
            return stack.enter_context(socket.create_connection(few_descriptors, GUARD_S))

        for _ in range(100):
            connect().sendall(begins)
        for _ in range(100):
            sock = connect()
            sock.sendall(HEARTBEAT)
            assert sock.recv(1_000).startswith(b"HTTP/1.1 200 ")  # and stays


def test_without_a_descriptor_the_oldest_idle_connection_makes_room(few_descriptors):
    with contextlib.ExitStack() as stack:
        served = []
        for _ in range(100):
            sock = stack.enter_context(socket.create_connection(few_descriptors, GUARD_S))
            sock.sendall(HEARTBEAT)
            assert sock.recv(1_000)
            served.append(sock)
        for sock in served:
            sock.setblocking(False)
        gone = []
        for sock in served:
            try:
                gone.append(sock.recv(1_000) == b"")
            except BlockingIOError:
                gone.append(False)
        assert gone == sorted(gone, reverse=True)  # the oldest
        assert 60 < sum(gone) < 100
