"""Commands of several clients that come at the same time: applied together, and answered each for itself."""

import contextlib
import json
import socket
import struct
from collections import Counter

import pytest

from cpsim.net.http.shared import FEW
from cpsim.protocol.depth import MAX_DEPTH
from cpsim.server.command_counts import CommandCounts
from cpsim.server.service import AccountServer

OK = (200, b'{"result": "ok"}')
DEEPER_THAN_THE_STACK = 100_000
RESET = struct.pack("ii", 1, 0)
HEARTBEAT = b"GET /api/heartbeat HTTP/1.1\r\n\r\n"


def single(site, path, arguments, **signing):
    body = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
    return site.signed(path, body, **signing)


@pytest.fixture
def connect(site):
    """Opens connections that the server has."""
    with contextlib.ExitStack() as stack:

        def connect(count):
            socks = [stack.enter_context(socket.create_connection(site.address, timeout=280)) for _ in range(count)]
            for sock in socks:
                sock.sendall(HEARTBEAT)
                assert sock.recv(1000).endswith(b"OK")
            return socks

        yield connect


@pytest.fixture
def together(site, connect):
    """Gets requests answered, each on a connection of its own, which all come while the server is held up."""

    def together(*requests, leave=()):
        first, *socks = connect(1 + len(requests))
        with site.fake.accounts.reading():
            first.sendall(single(site, "alloc", {"slot": "first"}))
            for sock, request in zip(socks, requests, strict=True):
                sock.sendall(request)
            for index in leave:
                socks[index].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                socks[index].close()
        assert answer(first) == OK
        return [answer(sock) for index, sock in enumerate(socks) if index not in leave]

    return together


def answer(sock):
    head, _, body = sock.recv(1000).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def sizes_of_batches(site):
    """The number of commands of each batch that is applied from now on."""
    sizes = []

    class Batches(CommandCounts):
        def add(self, project_id, calls, refusals):
            sizes.append(len(calls))
            super().add(project_id, calls, refusals)

    site.fake.accounts.counts = Batches()
    return sizes


def test_each_is_answered_for_itself(site, together):
    got = together(
        single(site, "alloc", {"slot": "a", "credits": 2}),
        single(site, "alloc", {"slot": "a"}, project="q", secret="other"),
        single(site, "alloc", {"slot": "b"}, secret="wrong"),
        single(site, "claim", {"slot": "never", "machine": "m"}),
        single(site, "alloc.text", b"slot=c,credits=3"),
        single(site, "discard", {"slot": "a"}, project="q", secret="wrong"),
        single(site, "alloc", {"slot": 'd"\\'}),
    )
    assert got == [
        OK,
        OK,
        (401, b'{"result": "error", "message": "unknown project, or the digest does not match"}'),
        (500, b'{"result": "error", "message": "slot \'never\' was never allocated"}'),
        (200, b"result: ok\n"),
        (401, b'{"result": "error", "message": "unknown project, or the digest does not match"}'),
        OK,
    ]
    assert sorted(site.slots()) == ["a", "c", 'd"\\', "first"]
    journal = site.fake.accounts.journal
    assert sorted((entry[1:] for entry in journal.read("Physics")), key=str) == [
        ("alloc", {"slot": "a", "credits": 2}, None),
        ("alloc", {"slot": "c", "credits": "3"}, None),
        ("alloc", {"slot": 'd"\\'}, None),
        ("alloc", {"slot": "first"}, None),
        ("claim", {"slot": "never", "machine": "m"}, "slot 'never' was never allocated"),
    ]
    assert [entry[1:] for entry in journal.read("q")] == [("alloc", {"slot": "a"}, None)]


def test_many_are_applied_once_each(site, together):
    sizes = sizes_of_batches(site)
    got = together(*[single(site, "alloc", {"slot": f"s-{number % 40}"}) for number in range(80)])
    assert Counter(status for status, _ in got) == {200: 40, 500: 40}
    assert len(site.slots()) == 41
    assert sum(sizes) == 81
    assert len(sizes) <= 41


def test_with_few_connections_each_is_applied_when_it_comes(site, connect):
    sizes = sizes_of_batches(site)
    socks = connect(FEW - 1)
    with site.fake.accounts.reading():
        for number, sock in enumerate(socks):
            sock.sendall(single(site, "alloc", {"slot": str(number)}))
    assert [answer(sock) for sock in socks] == [OK] * len(socks)
    assert sizes == [1] * len(socks)


def test_one_that_is_nested_too_deeply_is_refused_alone(site, together):
    deep = b'{"slot": "deep", "x": %s%s}' % (b"[" * DEEPER_THAN_THE_STACK, b"]" * DEEPER_THAN_THE_STACK)
    nearly = b'{"slot": "nearly", "x": %s%s}' % (b"[" * (MAX_DEPTH + 1), b"]" * (MAX_DEPTH + 1))
    got = together(single(site, "alloc", {"slot": "a"}), *[single(site, "alloc", body) for body in (nearly, deep)])
    assert [status for status, _ in got] == [200, 400, 400]
    assert sorted(site.slots()) == ["a", "first"]


def test_who_leaves_before_the_answer_is_no_trouble_to_others(site, together):
    got = together(*[single(site, "alloc", {"slot": slot}) for slot in "abc"], leave=[1])
    assert got == [OK, OK]
    assert {"a", "c"} <= set(site.slots())


def test_rubbish_behind_a_command(site, connect):
    connect(FEW)
    received = site.raw(single(site, "alloc", {"slot": "a"}) + b"\x00\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in received


def test_a_client_that_says_it_sends_no_more(site, connect):
    *_, sock = connect(FEW + 1)
    sock.sendall(single(site, "alloc", {"slot": "a"}))
    sock.shutdown(socket.SHUT_WR)
    assert answer(sock) == OK
    assert sock.recv(1) == b""


def test_a_server_that_fails_says_so_to_all_and_goes_on(site, connect, together, monkeypatch, caplog):
    def fail(*_):
        raise ArithmeticError("a fault of ours")

    monkeypatch.setattr(AccountServer, "apply", fail)
    *_, a, b = connect(FEW + 2)
    for sock in (a, b):
        sock.sendall(single(site, "alloc", {"slot": "a"}))
    for sock in (a, b):
        assert answer(sock)[0] == 500
        assert sock.recv(1) == b""
    assert "a fault of ours" in caplog.text
    monkeypatch.undo()
    assert together(single(site, "alloc", {"slot": "a"})) == [OK]
