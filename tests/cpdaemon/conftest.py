"""Peers with a script: the smallest servers that can do one thing wrong."""

import socket
import threading

import pytest


class Peer:
    """Listens, and gives each connection in turn to `handle(connection, peer)`, in a thread of its own."""

    def __init__(self, listener, handle, tls=None):
        self.listener = listener
        self.handle = handle
        self.tls = tls
        self.address = listener.getsockname()
        self.received = []
        self.connections = 0
        self.stopping = threading.Event()
        self.threads = []
        self.start(self.accept)

    def start(self, target, *args):
        thread = threading.Thread(target=target, args=args)
        self.threads.append(thread)
        thread.start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            if self.stopping.is_set():
                connection.close()
                return
            self.connections += 1
            self.start(self.serve, connection)

    def serve(self, connection):
        with connection:
            try:
                connection.settimeout(280)
                if self.tls:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                with connection:
                    self.handle(connection, self)
            except OSError:
                pass  # the client went first: that is for the client's test to judge

    def stop(self):
        self.stopping.set()
        with socket.socket(self.listener.family) as waker:
            waker.connect(self.address)
        for thread in self.threads:
            thread.join(100)
            assert not thread.is_alive()
        self.listener.close()

    @property
    def host_port(self):
        return f"127.0.0.1:{self.address[1]}"


@pytest.fixture
def peers(monkeypatch):  # stopped before a patched directory goes away
    started = []
    yield started
    for peer in started:
        peer.stop()


@pytest.fixture
def unix_peer(peers, tmp_path, monkeypatch):
    """Return start(handle) -> Peer on ./cp.sock, a path short enough wherever the test runs."""
    monkeypatch.chdir(tmp_path)

    def start(handle):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("./cp.sock")
        listener.listen(16)
        peers.append(Peer(listener, handle))
        return peers[-1]

    return start


@pytest.fixture
def tcp_peer(peers):
    """Return start(handle, tls) -> Peer on an ephemeral port of 127.0.0.1."""

    def start(handle, tls=None):
        peers.append(Peer(socket.create_server(("127.0.0.1", 0)), handle, tls))
        return peers[-1]

    return start


@pytest.fixture
def http_peer(tcp_peer):
    """Return start(*replies) -> Peer that answers the first request with the first reply, and so on.

    A reply is (raw bytes, what to do then): "keep", "close" or "hang".
    """

    def start(*replies, tls=None):
        script = iter(replies)

        def handle(connection, peer):
            while request := read_request(connection):
                peer.received.append(request)
                raw, then = next(script)
                connection.sendall(raw)
                if then == "hang":
                    peer.stopping.wait()
                if then != "keep":
                    return

        return tcp_peer(handle, tls)

    return start


@pytest.fixture
def full_backlog(tmp_path, monkeypatch):
    """A listener on ./cp.sock, and how many connections fill its backlog."""
    monkeypatch.chdir(tmp_path)
    waiting = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("./cp.sock")
        listener.listen(0)
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect("./cp.sock")
        except BlockingIOError:
            waiting.pop().close()
        except ConnectionRefusedError:
            pytest.skip("this system refuses connections beyond the backlog")
        finally:
            yield listener, len(waiting)
            for sock in waiting:
                sock.close()


def read_request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    request_line, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers["Content-Length"]):
        body += connection.recv(65536)
    return request_line, headers, body
