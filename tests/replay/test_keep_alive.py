"""Operations over HTTP: connections used again, and everything that a server can answer."""

import gc
import socket
import ssl
import threading
from contextlib import closing, suppress

import pytest
import trustme

from cpdaemon.endpoint import UrlEndpoint
from cpdaemon.errors import NotSent
from cpsim.evidence.journal import OperationOutcome
from cpsim.replay.wires import keep_alive
from cpsim.replay.wires.connect import open_wire

ACCEPTED, REFUSED, UNKNOWN = OperationOutcome
OK = b'{"result":"ok"}'
HTML = b"<html>sorry</html>"
REQUESTS = [
    b"POST /api/batch/alloc HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%d" % (len(str(n)), n) for n in range(60)
]
BODIES = [b"%d" % n for n in range(60)]


def reply(body=OK, status="200 OK", extra="", version="1.1"):
    return f"HTTP/{version} {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def refusal(message):
    return b'{"result":"error","message":"%s"}' % message


def bodies(peer):
    return [body for _, body in peer.received]


def test_connections_are_used_again(http_peer, replay):
    peer = http_peer(lambda number: (reply(), "keep"))
    replayed = replay(peer.url, REQUESTS, in_flight=4)
    assert replayed.outcomes == [ACCEPTED] * 60
    assert sorted(bodies(peer)) == sorted(BODIES)
    assert 2 <= peer.connections <= 5  # one was to see whether anybody is there


@pytest.mark.parametrize("raw", [reply(extra="Connection: close\r\n"), reply(version="1.0")])
def test_connections_that_the_server_ends_are_replaced(http_peer, replay, raw):
    peer = http_peer(lambda number: (raw, "close" if number % 2 else "hang"))
    replayed = replay(peer.url, REQUESTS, in_flight=4)
    assert replayed.outcomes == [ACCEPTED] * 60
    assert peer.connections == 61


def test_connections_that_end_while_idle_are_replaced(http_peer):
    peer = http_peer(lambda number: (reply(), "close"))
    with closing(open_wire(peer.url, timeout_s=60.0, in_flight=1)) as wire:
        for request in REQUESTS[:10]:
            assert peer.ended.acquire(timeout=60)  # the connection before; at first, one to see if anybody is there
            sent = wire.send(request)
            answer = None  # its pieces
            while answer is None:
                answer = wire.receive(sent) if sent in wire.poll(60.0) else None
            assert answer == (ACCEPTED, "")
    assert peer.connections == 11


def test_connections_that_end_unannounced_lose_nothing_that_was_accepted(http_peer, replay):
    peer = http_peer(lambda number: (reply(), "close"))
    replayed = replay(peer.url, REQUESTS, in_flight=4)
    assert set(replayed.outcomes) <= {ACCEPTED, UNKNOWN}
    accepted = [BODIES[op] for op, outcome in enumerate(replayed.outcomes) if outcome == ACCEPTED]
    assert sorted(accepted) == sorted(bodies(peer))


def test_a_server_that_goes_away_refuses_definitely(http_peer, replay):
    peer = http_peer(lambda number: (number == 9 and peer.refuse()) or (reply(extra="Connection: close\r\n"), "close"))
    replayed = replay(peer.url, REQUESTS[:20], in_flight=1)
    assert replayed.outcomes == [ACCEPTED] * 10 + [REFUSED] * 10
    assert set(replayed.errors[10:]) == {"cannot connect: Connection refused"}


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "then", "expected"),
    [
        (reply(), "keep", (ACCEPTED, "")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + reply(), "keep", (ACCEPTED, "")),
        (
            CHUNKED + b"5;x=y\r\n" + OK[:5] + b"\r\nA\r\n" + OK[5:] + b"\r\n0\r\nTrailer: x\r\n\r\n",
            "keep",
            (ACCEPTED, ""),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + OK, "close", (ACCEPTED, "")),
        (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + OK, "close", (ACCEPTED, "")),
        (reply(refusal(b"Who?"), "401 No"), "keep", (REFUSED, "HTTP 401: Who?")),
        (reply(refusal(b"slot 'x-1' exists"), "500 Oops"), "keep", (REFUSED, "HTTP 500: slot ... exists")),
        (reply(refusal(b"x" * 5000), "500 Oops"), "keep", (REFUSED, "HTTP 500: " + "x" * 300)),
        (reply(refusal(b"odd")), "keep", (REFUSED, "HTTP 200: odd")),
        (reply(HTML, "404 Not Found"), "keep", (REFUSED, "HTTP 404 with a body that is not the API's")),
        (reply(b"", "302 Found", "Location: /\r\n"), "keep", (REFUSED, "HTTP 302 with a body that is not the API's")),
        (reply(HTML, "500 Oops"), "keep", (UNKNOWN, "HTTP 500 with a body that is not the API's")),
        (reply(HTML, "502 Bad Gateway"), "keep", (UNKNOWN, "HTTP 502 with a body that is not the API's")),
        (reply(OK, "502 Bad Gateway"), "keep", (UNKNOWN, "HTTP 502 with a body that is not the API's")),
        (reply(refusal(b"?"), "503 Busy"), "keep", (UNKNOWN, "HTTP 503 with a body that is not the API's")),
        (reply(HTML), "keep", (UNKNOWN, "HTTP 200 with a body that is not the API's")),
        (reply(b"[]"), "keep", (UNKNOWN, "HTTP 200 with a body that is not the API's")),
        (b"HTTP/1.1 204 None\r\n\r\n", "keep", (UNKNOWN, "HTTP 204 with a body that is not the API's")),
        (reply()[:-1], "close", (UNKNOWN, "reply lost: cut short")),
        (reply()[:20], "close", (UNKNOWN, "reply lost: closed")),
        (CHUNKED + b"5\r\nabcde\r\n", "close", (UNKNOWN, "reply lost: cut short")),
        (b"", "close", (UNKNOWN, "reply lost: closed")),
        (b"", "hang", (UNKNOWN, "no answer in time")),
        (reply()[:-1], "hang", (UNKNOWN, "no answer in time")),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "close", (UNKNOWN, "garbage reply")),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "close", (UNKNOWN, "garbage reply")),
        (
            b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            "close",
            (UNKNOWN, "garbage reply"),
        ),
        (reply(b" " * (keep_alive.MAX_BODY_BYTES + 1)), "close", (UNKNOWN, "garbage reply")),
    ],
)
def test_what_a_server_answers(http_peer, replay, raw, then, expected):
    peer = http_peer(lambda number: (raw, then))
    timeout_s = 0.4 if expected[1] == "no answer in time" else 60
    replayed = replay(peer.url, REQUESTS[:3], in_flight=3, timeout_s=timeout_s)
    assert [*zip(replayed.outcomes, replayed.errors, strict=True)] == [expected] * 3
    assert sorted(bodies(peer)) == BODIES[:3]


def test_a_reply_may_come_byte_by_byte(peer, replay):
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" + reply()

    def handle(connection, served):
        while connection.recv(65536):
            for place in range(len(raw)):
                connection.sendall(raw[place : place + 1])
                served.stopping.wait(0.0005)

    replayed = replay(peer(handle).url, REQUESTS[:4], in_flight=2)
    assert replayed.outcomes == [ACCEPTED] * 4


def test_a_connection_broken_by_the_server_is_unknown(http_peer, replay, monkeypatch):
    peer = http_peer(lambda number: (b"", "close"))

    class Broken:
        def __init__(self, sock):
            self._sock = sock

        def recv(self, size):
            self._sock.recv(size)
            raise ConnectionResetError(104, "Connection reset by peer")

        def __getattr__(self, name):
            return getattr(self._sock, name)

    begin = keep_alive._HttpConnection.begin
    monkeypatch.setattr(
        keep_alive._HttpConnection, "begin", lambda self: (begin(self), setattr(self, "sock", Broken(self.sock)))
    )
    replayed = replay(peer.url, REQUESTS[:2])
    assert (replayed.outcomes, set(replayed.errors)) == ([UNKNOWN] * 2, {"reply lost: Connection reset by peer"})


def test_a_server_may_refuse_some_and_keep_the_connection(http_peer, replay):
    peer = http_peer(lambda number: (reply(refusal(b"no"), "500 Oops") if number % 2 else reply(), "keep"))
    replayed = replay(peer.url, REQUESTS, in_flight=1)
    assert replayed.outcomes == [ACCEPTED, REFUSED] * 30
    assert peer.connections == 2


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A server's TLS context, with an authority that clients trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_https_waits_for_no_single_connection(http_peer, replay, tls):
    """The first request is answered after the third: session tickets make its connection readable before."""
    third = threading.Event()

    def respond(number):
        if number == 0:
            assert third.wait(60)
        elif number == 2:
            third.set()
        return reply(), "keep"

    peer = http_peer(respond, tls)
    replayed = replay(peer.url, REQUESTS, in_flight=2)
    assert replayed.outcomes == [ACCEPTED] * 60
    assert peer.connections == 3


def test_a_handshake_of_several_steps_changes_only_once_what_is_watched(tls, monkeypatch):
    """With kqueue, a second time would be an error."""
    written, answer = [], None

    class Counting(keep_alive.Many):
        def written(self, fd):
            written.append(fd)
            super().written(fd)

    def serve():
        with tls.wrap_socket(connection, server_side=True) as served:
            assert served.recv(65536) == REQUESTS[0]
            served.sendall(reply())
            served.recv(1)

    monkeypatch.setattr(keep_alive, "Many", Counting)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = keep_alive.KeepAlive(UrlEndpoint("https", *listener.getsockname(), "/api"), 60)
        fd = wire.send(REQUESTS[0])
        connection, _ = listener.accept()
        while not written:  # the first step, which waits for the server
            assert [wire.receive(ready) for ready in wire.poll(1.0)] in ([], [None])
        server = threading.Thread(target=serve)
        server.start()
        while answer is None:
            for ready in wire.poll(1.0):
                answer = wire.receive(ready)
        wire.close()
        server.join()
    assert answer == (ACCEPTED, "")
    assert written == [fd]


def test_https_verifies_the_certificate(http_peer, replay, tls, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    peer = http_peer(lambda number: (reply(), "keep"), tls)
    replayed = replay(peer.url, REQUESTS[:2])
    assert replayed.outcomes == [REFUSED] * 2
    assert "certificate" in replayed.errors[0].lower()
    assert peer.received == []


def test_a_host_of_several_addresses_is_found_when_it_is_up_again(http_peer, replay, monkeypatch):
    """As `localhost` is ::1 and 127.0.0.1, and a server that is down at first then listens at the second."""
    peer = http_peer(lambda number: (reply(), "keep"))
    port = peer.address[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    class IsDown(socket.socket):
        def connect(self, address):
            raise ConnectionRefusedError

    with monkeypatch.context() as down:
        down.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        down.setattr(socket, "socket", IsDown)
        wire = keep_alive.KeepAlive(peer.url, 60)
    answers = []
    for request in REQUESTS[:3]:
        with suppress(NotSent):
            fd, answer = wire.send(request), None
            while answer is None:
                for ready in wire.poll(1.0):
                    answer = wire.receive(ready)
            assert fd == ready
            answers.append(answer)
    wire.close()
    assert answers[-2:] == [(ACCEPTED, "")] * 2


def test_closing_a_wire_leaves_no_connection(http_peer):
    peer = http_peer(lambda number: (reply(), "keep"))
    wire = open_wire(peer.url, 5.0)
    fd = wire.send(REQUESTS[0])
    while wire.receive(fd) is None:
        wire.poll(1.0)
    wire.send(REQUESTS[1])
    wire.send(REQUESTS[2])
    wire.close()
    del wire
    gc.collect()  # a socket left open would warn
