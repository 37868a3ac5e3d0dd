"""Each limit of docs/reference/limits.md for a recorder and a proxy: its number, and what happens there."""

import asyncio
import os
import signal
import socket
import threading
from functools import partial
from types import SimpleNamespace

import limits_page
import pyarrow.parquet as pq
import pytest
from manual_loop import ManualLoop

from cpdaemon.endpoint import TcpEndpoint
from cpsim.errors import CpsimError
from cpsim.faults.actions.rate import MOST_WAITING
from cpsim.faults.plan import FaultPlan
from cpsim.net.listen import Listen
from cpsim.protocol.exchange import Exchange
from cpsim.quirks.policies.reading import READ_BYTES
from cpsim.record import exchanges, frames, proxy, recording
from cpsim.record.exchanges import FrameExchange, Http, Session
from cpsim.record.faulty import check_fault
from cpsim.record.frames import FrameRelay
from cpsim.record.recording import RecordedReply, Recording
from cpsim.record.relay import ClientSide
from cpsim.record.requests import LIMITS, MAX_REPLY_BYTES, RequestRelay
from cpsim.system.checks import LONGEST_S
from cpsim.testing import ManualClock

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
PROXY_MEETINGS = limits_page.Meetings("cpsim proxy")
proxy_meets = PROXY_MEETINGS.meets
PROXY_NUMBERS = {
    "Frame that is read": READ_BYTES,
    "Time until a frame without a newline is a command": frames.QUIET_S,
    "Time in which a client that was answered in the target's place may go on with its frame": frames.QUIET_S,
    "Head of a request, and its trailers": LIMITS.head_bytes,
    "Headers and trailers of a request": LIMITS.headers,
    "Body of a request": LIMITS.body_bytes,
    "Reply of a server to a request with faults": MAX_REPLY_BYTES,
    "Time of a fault": LONGEST_S,
    "Commands that wait for a fault `rate`": MOST_WAITING,
    "Time between two looks for a target that refuses": proxy.PROBE_INTERVAL_S,
    "Time of such a look": proxy.PROBE_TIMEOUT_S,
    "Time for connections when the proxy stops": proxy.GRACE_S,
}


@pytest.mark.parametrize(
    ("meetings", "numbers"), [(MEETINGS, NUMBERS), (PROXY_MEETINGS, PROXY_NUMBERS)], ids=["record", "proxy"]
)
def test_the_page_has_the_numbers_of_the_program(meetings, numbers):
    assert meetings.page == numbers
    assert meetings.met == meetings.page.keys()


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


class Wire(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self):
        self.written, self.closed = b"", False

    def write(self, data):
        self.written += data

    def write_eof(self):
        pass

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    pause_reading = resume_reading = write_eof


class Owner:
    """A proxy of one relay, whose target is connected."""

    exchange = staticmethod(lambda: proxy.UNRECORDED)


@pytest.fixture
def relayed():
    """relayed(kind, *faults): the wires of a client and a target, what comes on them, and time, by hand."""
    clock = ManualClock()
    loop = ManualLoop(clock)

    def make(kind, *faults, met=0):
        plan, client = FaultPlan(faults, clock=clock), ClientSide(lambda _: None)
        for _ in range(met):
            plan.intercept(Exchange("daemon", [("alloc", "s")]))
        client.connection_made(Wire())
        relay = RequestRelay(Owner, client, plan, "/api/") if kind == "server" else FrameRelay(Owner, client, plan)
        relay.target.connection_made(Wire())

        async def steps():
            for _ in range(3):
                await asyncio.sleep(0)

        def give(side, *pieces):
            async def feed():
                for data in pieces:
                    side.data_received(data)

            loop.run_until_complete(feed())

        def pass_time(duration_s):
            clock.advance(duration_s)
            loop.run_until_complete(steps())

        return SimpleNamespace(
            client=client.transport,
            target=relay.target.transport,
            send=partial(give, client),
            reply=partial(give, relay.target),
            pass_time=pass_time,
        )

    yield make
    loop.close()


@proxy_meets("Frame that is read")
def test_a_long_frame_is_passed_on(relayed):
    relay, frame = relayed("daemon", "error"), b"alloc,".ljust(READ_BYTES, b"x")
    relay.send(frame)
    assert relay.target.written == b""
    relay.send(b"x")
    assert (relay.target.written, relay.client.written) == (frame + b"x", b"")


@proxy_meets("Time until a frame without a newline is a command")
def test_half_a_frame_is_passed_on(relayed):
    relay = relayed("daemon", "error")
    relay.send(b"allo")
    relay.pass_time(frames.QUIET_S - 0.01)
    assert relay.target.written == b""
    relay.pass_time(0.02)
    assert (relay.target.written, relay.client.written) == (b"allo", b"")


@proxy_meets("Time in which a client that was answered in the target's place may go on with its frame")
def test_what_an_answered_client_goes_on_with_is_dropped(relayed):
    relay = relayed("daemon", "error")
    relay.send(b"alloc,slot=s", b",credits=1")
    relay.pass_time(frames.QUIET_S - 0.01)
    assert (relay.client.written, relay.client.closed) == (b"ER", False)
    relay.pass_time(0.02)
    assert (relay.target.written, relay.client.closed) == (b"", True)


@proxy_meets("Head of a request, and its trailers", "Headers and trailers of a request", "Body of a request")
@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("limit", ["head", "headers", "body"])
def test_a_large_request_is_passed_on(relayed, limit, excess):
    start, body = b"POST /api/alloc HTTP/1.1\r\n", b""
    if limit == "head":
        start += b"x:".ljust(LIMITS.head_bytes + excess - len(start) - 2, b"y") + b"\r\n"
    elif limit == "headers":
        start += b"x: y\r\n" * (LIMITS.headers + excess)
    else:
        start += b"Content-Length: %d\r\n" % (LIMITS.body_bytes + excess)
        body = bytes(LIMITS.body_bytes)
    relay, request = relayed("server", "status=503"), start + b"\r\n"
    relay.send(request[:100], request[100:])
    assert (relay.target.written == request, relay.target.written == b"") == (bool(excess), not excess)
    if not excess:
        relay.send(body)
        assert relay.client.written.startswith(b"HTTP/1.1 503 ")


@proxy_meets("Reply of a server to a request with faults")
def test_a_long_reply_is_passed_on(relayed):
    relay, request = relayed("server", "lose-reply:count=1"), b"GET /api/slots HTTP/1.1\r\n\r\n"
    start = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_REPLY_BYTES
    relay.send(request)
    relay.reply(start + bytes(MAX_REPLY_BYTES - len(start)))
    assert relay.client.written == b""
    relay.reply(b"x")
    assert len(relay.client.written) == MAX_REPLY_BYTES + 1
    relay.reply(bytes(len(start) - 1))
    assert len(relay.client.written) == MAX_REPLY_BYTES + len(start)
    relay.send(request)
    assert relay.target.written == request * 2


@proxy_meets("Time of a fault")
def test_a_long_fault():
    check_fault(f"late={LONGEST_S}", "daemon")
    with pytest.raises(CpsimError, match="from 0 to 86,400"):
        check_fault(f"late={LONGEST_S + 1}", "daemon")


@proxy_meets("Commands that wait for a fault `rate`")
@pytest.mark.parametrize("further", [0, 1])
def test_a_long_queue(relayed, further):
    relay = relayed("daemon", "rate=1000", met=MOST_WAITING + further)
    relay.send(b"alloc,slot=s")
    assert (relay.target.written, relay.client.closed) == (b"", bool(further))
    relay.pass_time(MOST_WAITING / 1000 + 1)
    assert relay.target.written == (b"" if further else b"alloc,slot=s")


with_faults = pytest.mark.parametrize("faults", [None, FaultPlan()], ids=["record", "proxy"])


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@meets("Time between two looks for a target that refuses", "Time for connections when the recorder stops")
@proxy_meets("Time between two looks for a target that refuses", "Time for connections when the proxy stops")
@with_faults
def test_a_target_that_comes_and_a_client_that_stays(faults, session, capsys):
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

    proxy.forward(Listen("127.0.0.1:0"), TcpEndpoint(*target), begin, recording=session.recording, faults=faults)
    visitors[0].join()
    assert "refuses connections" in capsys.readouterr().err
    assert seen == [b"alloc,slot=s\n", b"reset"]


@meets("Time of such a look")
@proxy_meets("Time of such a look")
@with_faults
def test_a_target_that_takes_nobody_counts_as_listening(faults, session, capsys):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        with socket.create_connection(listening.getsockname()):  # its queue is full
            target = TcpEndpoint(*listening.getsockname())
            listen, kept = Listen("127.0.0.1:0"), session.recording
            proxy.forward(listen, target, lambda _: stop(), recording=kept, faults=faults)
    assert capsys.readouterr().err == ""
