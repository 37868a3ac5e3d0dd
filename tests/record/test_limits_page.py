"""Each limit of docs/reference/limits.md for a recorder: its number, and what is recorded there."""

import os
import signal
import socket
import threading

import limits_page
import pyarrow.parquet as pq
import pytest

from cpdaemon.endpoint import TcpEndpoint
from cpsim.net.listen import Listen
from cpsim.record import exchanges, proxy, recording
from cpsim.record.exchanges import FrameExchange, Http, Session
from cpsim.record.recording import RecordedReply, Recording

GUARD_S = 60
MEETINGS = limits_page.Meetings("cpsim record")
meets = MEETINGS.meets
NUMBERS = {
    "Frame that is kept": exchanges.MAX_KEPT_FRAME_BYTES,
    "Reply of a daemon that is kept": exchanges.MAX_REPLY_BYTES,
    "URL of a request": exchanges.MAX_URL_BYTES,
    "Bodies that are not whole, of all connections": exchanges.MAX_HELD_BYTES,
    "Rows that wait to be written": recording.ROWS_AT_ONCE,
    "Time between two looks for a target that refuses": proxy.PROBE_INTERVAL_S,
    "Time of such a look": proxy.PROBE_TIMEOUT_S,
    "Time for connections when the recorder stops": proxy.GRACE_S,
}


def test_the_page_has_the_numbers_of_the_program():
    assert MEETINGS.page == NUMBERS
    assert MEETINGS.met == MEETINGS.page.keys()


@pytest.fixture
def session(tmp_path):
    session = Session(Recording(tmp_path / "r.parquet"))
    yield session
    session.recording.abandon()


def rows(session, tmp_path):
    session.recording.close()
    return pq.read_table(tmp_path / "r.parquet").to_pylist()


@meets("Frame that is kept", "Reply of a daemon that is kept")
def test_a_long_frame_and_a_long_reply(session, tmp_path):
    exchange = FrameExchange(session)
    for _ in range(2):
        exchange.on_client_data(b"x" * exchanges.MAX_KEPT_FRAME_BYTES)
        exchange.on_target_data(b"OK".ljust(exchanges.MAX_REPLY_BYTES))
    exchange.end()
    (row,) = rows(session, tmp_path)
    assert len(row["frame"]) == exchanges.MAX_KEPT_FRAME_BYTES
    assert row["outcome"] == "accepted"  # as what was kept of the reply says


def request(session, url=b"/api/batch/alloc", body=b'{"slot": "s"}'):
    exchange = Http(session)
    exchange.on_client_data(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (url, len(body), body))
    exchange.on_target_data(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"result":"ok"}')
    exchange.end()
    return session.recording.commands.total()


@meets("URL of a request")
def test_a_long_url(session):
    url = b"/api/batch/alloc?x="
    assert request(session, url.ljust(exchanges.MAX_URL_BYTES, b"y")) == 1
    assert request(session, url.ljust(exchanges.MAX_URL_BYTES + 1, b"y")) == 1
    assert session.recording.left_out.total() == 1


@meets("Bodies that are not whole, of all connections")
def test_bodies_in_sum(session):
    body = b'{"slot": "s"}'
    session.held_bytes = exchanges.MAX_HELD_BYTES - len(body)
    assert request(session, body=body) == 1
    session.held_bytes = exchanges.MAX_HELD_BYTES - len(body) + 1
    assert request(session, body=body) == 1
    assert session.recording.left_out.total() == 1


@meets("Rows that wait to be written")
def test_rows_that_wait(tmp_path):
    path, written = tmp_path / "r.csv", Recording(tmp_path / "r.csv")
    partial = path.with_name("r.csv.partial")
    frame, reply = b"alloc,slot=s,credits=1", RecordedReply(0, 1, "accepted")
    for _ in range(recording.ROWS_AT_ONCE - 1):
        written.frame(frame, reply)
    assert partial.stat().st_size < 1_000
    written.frame(frame, reply)
    assert partial.stat().st_size > 20 * recording.ROWS_AT_ONCE
    written.abandon()


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@meets("Time between two looks for a target that refuses", "Time for connections when the recorder stops")
def test_a_target_that_comes_and_a_client_that_stays(session, capsys):
    seen = []

    def visit(address):
        try:
            with socket.create_server(target, reuse_port=False) as listening:
                while True:  # until the recorder has looked
                    try:
                        client = socket.create_connection(address, GUARD_S)
                        break
                    except ConnectionRefusedError:
                        pass
                with client:
                    client.sendall(b"alloc,slot=s\n")
                    while not seen:
                        with listening.accept()[0] as served:
                            if data := served.recv(100):  # or it was a look
                                seen.append(data)
                                stop()
                                seen.append(client.recv(100))
        except ConnectionResetError:
            seen.append(b"reset")

    with socket.create_server(("127.0.0.1", 0)) as free:
        target = free.getsockname()
    visitors = []

    def begin(ready):
        host, _, port = ready.partition(" ")[2].rpartition(":")
        visitors.append(threading.Thread(target=visit, args=((host, int(port)),)))
        visitors[0].start()

    proxy.forward(Listen("127.0.0.1:0"), TcpEndpoint(*target), begin, recording=session.recording)
    visitors[0].join()
    assert "refuses connections" in capsys.readouterr().err
    assert seen == [b"alloc,slot=s\n", b"reset"]


@meets("Time of such a look")
def test_a_target_that_takes_nobody_counts_as_listening(session, capsys):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        with socket.create_connection(listening.getsockname()):  # its queue is full
            target = TcpEndpoint(*listening.getsockname())
            proxy.forward(Listen("127.0.0.1:0"), target, lambda _: stop(), recording=session.recording)
    assert capsys.readouterr().err == ""
