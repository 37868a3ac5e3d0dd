"""Starting and stopping the HTTP server."""

import contextlib
import socket

import pytest

from cpsim.net.http import carrier
from cpsim.server.http import Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer


def test_a_socket_that_cannot_be_served_is_told():
    listening = socket.create_server(("127.0.0.1", 0))
    listening.close()
    server = HttpServer(Api(AccountServer({"p": "s"})), [listening])
    with pytest.raises((OSError, ValueError)):
        server.start()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /api/hea", b"POST /api/batch/alloc HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"]
)
def test_a_client_that_stays_does_not_hold_up_the_end(site, sent, caplog, monkeypatch):
    monkeypatch.setattr(carrier, "FINISH_S", 0.1)
    with socket.create_connection(site.address, timeout=280) as sock:
        sock.sendall(b"GET /api/heartbeat HTTP/1.1\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        sock.sendall(sent)
        site.request("GET", "/api/heartbeat")
        site.fake._server.stop()
        site.fake._server = None
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1000) == b""
    assert caplog.records == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(site.address)
