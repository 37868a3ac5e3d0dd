"""Every way in which an exchange can fail, against real sockets."""

import contextlib
import errno
import os
import socket
import ssl
import struct
import threading
import time

import pytest
import trustme
from ports import free_port

from cpdaemon import (
    Alloc,
    BadReply,
    Client,
    ConnectFailed,
    ConnectTimeout,
    NoSuchSocket,
    NotSent,
    Refused,
    ReplyLost,
    ReplyTimeout,
    transport,
)

COMMAND = Alloc("x", 5)
OK = b'{"result":"ok"}'


def answer(reply):
    def handle(connection, peer):
        peer.received.append(connection.recv(1500))
        connection.sendall(reply)

    return handle


def hang(connection, peer):
    connection.recv(1500)
    peer.stopping.wait()


def reset(connection, peer):
    connection.recv(1500)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reply(body=OK, status="200 OK", extra="", version="1.1"):
    head = f"HTTP/{version} {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def send(address, timeout_s=100.0, command=COMMAND):
    credentials = ("p", "s") if "://" in address else None
    with Client(address, credentials, timeout_s) as client:
        client.send(command)


# Daemons


def test_a_daemon_gets_the_frame_as_it_is(unix_peer):
    peer = unix_peer(answer(b"OK"))
    send("./cp.sock")
    assert peer.received == [b"alloc,slot=x,credits=5"]


def test_a_daemon_on_tcp(tcp_peer):
    peer = tcp_peer(answer(b"OK"))
    send(peer.host_port)
    assert peer.received == [b"alloc,slot=x,credits=5"]


def test_a_reply_may_come_in_pieces(unix_peer):
    def handle(connection, peer):
        connection.recv(1500)
        connection.sendall(b"O")
        connection.sendall(b"K")

    unix_peer(handle)
    send("./cp.sock")


@pytest.mark.parametrize(
    ("handle", "error", "definite", "said"),
    [
        (answer(b"ER"), Refused, True, r"'x'.* as malformed \(ER\)"),
        (answer(b"OKAY"), BadReply, False, "b'OKAY', neither OK nor ER"),
        (answer(b"HTTP/1.1 400"), BadReply, False, "neither OK nor ER"),
        (answer(b""), ReplyLost, False, "after 0 bytes of its reply"),
        (answer(b"O"), ReplyLost, False, "after 1 bytes of its reply"),
        (reset, ReplyLost, False, "broke the connection"),
    ],
)
def test_replies_of_a_daemon(tcp_peer, handle, error, definite, said):
    peer = tcp_peer(handle)
    with pytest.raises(error, match=said) as caught:
        send(peer.host_port)
    assert type(caught.value) is error
    assert caught.value.definite == definite
    if handle is reset:
        assert caught.value.errno == errno.ECONNRESET


@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_the_deadline_bounds_the_whole_exchange(tcp_peer, byte_by_byte):
    def handle(connection, peer):
        connection.recv(65536)
        while byte_by_byte and not peer.stopping.wait(0.02):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.stopping.wait()

    peer = tcp_peer(handle)
    for address in (f"http://{peer.host_port}", *([] if byte_by_byte else [peer.host_port])):
        started_s = time.monotonic()
        with pytest.raises(ReplyTimeout) as caught:
            send(address, timeout_s=1.0)
        assert time.monotonic() - started_s > 0.9
        assert isinstance(caught.value, TimeoutError)
        assert not caught.value.definite
        assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_connection_refused(scheme):
    with pytest.raises(ConnectFailed) as caught:
        send(f"{scheme}127.0.0.1:{free_port()}")
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.definite


def test_no_such_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoSuchSocket, match="is the daemon running") as caught:
        send("./cp.sock")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.definite


def test_a_socket_that_nobody_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as unserved:
        unserved.bind("./cp.sock")
    with pytest.raises(ConnectFailed) as caught:
        send("./cp.sock")
    assert caught.value.errno == errno.ECONNREFUSED


def test_unknown_hosts(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConnectFailed, match="cannot connect to nowhere:1: Name or service not known"):
        send("nowhere:1")


def test_the_next_address_of_a_host_is_tried(tcp_peer, monkeypatch):
    peer = tcp_peer(answer(b"OK"))
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in (free_port(), peer.address[1])
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: addresses)
    send("two-addresses:1")


def test_a_full_backlog_is_waited_for(full_backlog, monkeypatch):
    listener, waiting = full_backlog

    def serve():
        for _ in range(waiting):
            listener.accept()[0].close()
        with listener.accept()[0] as connection:
            connection.recv(1500)
            connection.sendall(b"OK")

    thread = threading.Thread(target=serve)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if not thread.ident:
            thread.start()

    monkeypatch.setattr(transport, "sleep", pause)
    send("./cp.sock")
    thread.join()
    assert pauses


def test_a_backlog_that_stays_full_is_a_definite_timeout(full_backlog):
    with pytest.raises(ConnectTimeout) as caught:
        send("./cp.sock", timeout_s=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.definite


@pytest.mark.parametrize(
    ("sent", "failure", "error"),
    [
        (0, BrokenPipeError(errno.EPIPE, "Broken pipe"), NotSent),
        (0, TimeoutError("timed out"), ConnectTimeout),
        (5, ConnectionResetError(errno.ECONNRESET, "reset"), ReplyLost),
        (5, TimeoutError("timed out"), ReplyTimeout),
    ],
)
def test_a_failure_to_send_is_definite_only_before_the_first_byte(sent, failure, error):
    class Socket:
        def __init__(self):
            self.room = sent

        def gettimeout(self):
            return None

        def settimeout(self, seconds):
            assert seconds > 0

        def send(self, data):
            if not self.room:
                raise failure
            self.room = 0
            return sent

    with pytest.raises(error) as caught:
        transport._send(Socket(), b"0123456789", transport.UnixEndpoint("/x"), transport.Deadline(1))
    assert type(caught.value) is error
    assert caught.value.definite == (sent == 0)
    assert caught.value.errno == (failure.errno or errno.ETIMEDOUT)


@pytest.mark.parametrize("before", [None, 0.5, 99.0])
def test_an_operation_gets_the_time_that_is_left_whatever_the_one_before_had(before):
    with socket.socket() as sock:
        sock.settimeout(before)
        transport.Deadline(50).bound(sock)
        assert 0.5 < sock.gettimeout() <= 50


# Servers


@pytest.mark.parametrize(
    "raw",
    [
        reply(),
        reply(version="1.0"),
        reply(status="200"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + reply(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\n"
        + OK[:5]
        + b"\r\nA\r\n"
        + OK[5:]
        + b"\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\ncontent-length:15\r\n\r\n" + OK,
    ],
)
def test_replies_of_a_server(http_peer, raw):
    peer = http_peer((raw, "hang"))
    send(f"http://{peer.host_port}/api")
    [(line, headers, body)] = peer.received
    assert line == "POST /api/batch/alloc HTTP/1.1"
    assert headers["Host"] == peer.host_port
    assert headers["Authorization"].startswith("sha-256,p,")
    assert body == b'{"slot":"x","credits":5}'


def test_a_body_may_end_with_the_connection(http_peer):
    peer = http_peer((b"HTTP/1.1 200 OK\r\n\r\n" + OK, "close"))
    send(f"http://{peer.host_port}")


@pytest.mark.parametrize(
    ("raw", "error", "said"),
    [
        (b"", ReplyLost, "before the end of its reply"),
        (reply()[:-1], ReplyLost, "before the end"),
        (reply()[:20], ReplyLost, "before the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", ReplyLost, "before the end"),
        (b"SSH-2.0-OpenSSH\r\n", BadReply, "not HTTP/1: b'SSH-2.0-OpenSSH'"),
        (b"HTTP/2 200 OK\r\n\r\n", BadReply, "not HTTP/1"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", BadReply, "not HTTP/1"),
        (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", BadReply, "a malformed header line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", BadReply, "Content-Length that is no number"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", BadReply, "two different"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", BadReply, "more than 16,777,216 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", BadReply, "unknown Transfer-Encoding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", BadReply, "without a size"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            BadReply,
            "longer than its size",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
            BadReply,
            "more than 16,777,216",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000, BadReply, "line of more than 8,192 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101, BadReply, "more than 100 header lines"),
        (reply(b"hello"), BadReply, "does not name the command's outcome"),
        (reply(b"<h1>Oops</h1>", "500 Oops"), BadReply, "HTTP status 500 .* <h1>Oops</h1>"),
        (reply(b"", "502 Bad Gateway"), BadReply, "HTTP status 502"),
        (
            reply(b'{"result":"error","message":"Slot exists"}', "500 Oops"),
            Refused,
            "status 500: Slot exists",
        ),
        (reply(b'{"result":"error","message":"Who?"}', "401 No"), Refused, "status 401: Who?"),
        (reply(b"", "404 Not Found"), Refused, "status 404"),
    ],
)
def test_failures_of_a_server(http_peer, raw, error, said):
    peer = http_peer((raw, "close"))
    with pytest.raises(error, match=said) as caught:
        send(f"http://{peer.host_port}")
    assert type(caught.value) is error
    assert caught.value.definite == (error is Refused)


def test_an_endless_body_meets_a_limit(tcp_peer):
    def handle(connection, peer):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not peer.stopping.is_set():
            connection.sendall(b"x" * 1_000_000)

    peer = tcp_peer(handle)
    with pytest.raises(BadReply, match="more than 16,777,216 bytes"):
        send(f"http://{peer.host_port}")


@pytest.mark.parametrize(
    ("raw", "connections"),
    [
        (reply(), 1),
        (reply(extra="Connection: close\r\n"), 3),
        (reply(version="1.0"), 3),
        (reply(version="1.0", extra="Connection: keep-alive\r\n"), 1),
        (reply(b'{"result":"error"}', "500 Oops"), 1),
        (reply() + b"more", 3),
    ],
)
def test_connections_are_kept_where_they_can_be(http_peer, raw, connections):
    peer = http_peer(*[(raw, "keep")] * 3)
    with Client(f"http://{peer.host_port}", ("p", "s"), 100) as client:
        for _ in range(3):
            with contextlib.suppress(Refused):
                client.send(COMMAND)
    assert peer.connections == connections
    assert len(peer.received) == 3


def test_a_connection_closed_while_idle_is_replaced(http_peer):
    peer = http_peer((reply(), "close"), (reply(), "close"))
    with Client(f"http://{peer.host_port}", ("p", "s"), 100) as client:
        client.send(COMMAND)
        peer.threads[1].join()  # the server has closed its end
        client.send(COMMAND)
    assert peer.connections == 2


def test_a_request_is_never_resent(http_peer):
    peer = http_peer((reply(), "keep"), (b"", "close"))
    with Client(f"http://{peer.host_port}", ("p", "s"), 100) as client:
        client.send(COMMAND)
        with pytest.raises(ReplyLost):
            client.send(COMMAND)
    assert (peer.connections, len(peer.received)) == (1, 2)


def test_a_forked_process_opens_its_own_connection(http_peer, monkeypatch):
    peer = http_peer((reply(), "keep"), (reply(), "keep"))
    with Client(f"http://{peer.host_port}", ("p", "s"), 100) as client:
        client.send(COMMAND)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        client.send(COMMAND)
    assert peer.connections == 2


def test_threads_do_not_share_a_connection_at_once(tcp_peer):
    together = threading.Barrier(4, timeout=280)

    def handle(connection, peer):
        while connection.recv(65536):
            together.wait()
            connection.sendall(reply())

    peer = tcp_peer(handle)
    with Client(f"http://{peer.host_port}", ("p", "s"), 100) as client:
        for _ in range(2):
            threads = [threading.Thread(target=client.send, args=(COMMAND,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert peer.connections == 4


def test_certificates_are_verified(http_peer, tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    peer = http_peer((reply(), "keep"), (reply(), "keep"), tls=context)
    address = f"https://localhost:{peer.address[1]}"
    with pytest.raises(ConnectFailed, match="certificate verify failed") as caught:
        send(address)
    assert caught.value.definite
    assert peer.received == []

    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(ConnectFailed, match="certificate"):
        send(address.replace("localhost", "127.0.0.1"))
    with Client(address, ("p", "s"), 100) as client:
        client.send(COMMAND)
        client.send(COMMAND)
    assert (len(peer.received), peer.connections) == (2, 3)


def test_https_to_a_server_without_it(tcp_peer):
    peer = tcp_peer(answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(ConnectFailed) as caught:
        send(f"https://{peer.host_port}")
    assert caught.value.definite


def test_a_silent_tls_server(tcp_peer):
    peer = tcp_peer(hang)
    with pytest.raises(ConnectTimeout) as caught:
        send(f"https://{peer.host_port}", timeout_s=0.2)
    assert caught.value.definite
