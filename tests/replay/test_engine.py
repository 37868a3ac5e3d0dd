"""Operations over one connection each: their order, and everything that can become of one."""

import errno
import os
import select
import socket
import struct
import sys
import threading
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from ports import free_port

from cpdaemon.endpoint import TcpEndpoint, UrlEndpoint, parse_endpoint
from cpsim.errors import CpsimError
from cpsim.evidence.journal import OperationOutcome
from cpsim.metrics.progress import Progress
from cpsim.replay import engine as engine_module
from cpsim.replay.failures import OURS, kind_of
from cpsim.replay.wires import one_shot
from cpsim.replay.wires.connect import open_wire

ACCEPTED, REFUSED, UNKNOWN = OperationOutcome
PAYLOADS = [f"alloc,slot=x-{n}".encode() for n in range(100)]


def acknowledge(connection, peer):
    frame = connection.recv(1500)
    if frame:
        with peer.lock:
            peer.received.append(frame)
        connection.sendall(b"OK")


def answering(*pieces):
    """A handler that sends these, after a frame: None is a wait for ever."""

    def handle(connection, peer):
        if not connection.recv(1500):
            return
        for piece in pieces:
            if piece is None:
                peer.stopping.wait(10)
            else:
                connection.sendall(piece)
                peer.stopping.wait(0.02)  # so that the next comes by itself

    return handle


def reset(connection, peer):
    if connection.recv(1500):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# Order


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("in_flight", [1, 3, 32])
def test_slots_keep_their_order_and_one_operation_at_a_time(peer, replay, kind, in_flight):
    slots = [n * n % 7 for n in range(300)]
    payloads = [f"{slot}:{n}".encode() for n, slot in enumerate(slots)]
    busy, overlaps, most = set(), [], [0]

    def handle(connection, served):
        frame = connection.recv(1500)
        if not frame:
            return
        slot = frame.partition(b":")[0]
        with served.lock:
            overlaps.extend({slot} & busy)
            busy.add(slot)
            most[0] = max(most[0], len(busy))
            served.received.append(frame)
        served.stopping.wait(0.001)
        with served.lock:
            busy.remove(slot)
        connection.sendall(b"OK")

    served = peer(handle, kind)
    replayed = replay(served.endpoint, payloads, slots=slots, in_flight=in_flight)
    assert replayed.outcomes == [ACCEPTED] * 300
    assert sorted(served.received) == sorted(payloads)
    assert overlaps == []
    assert most[0] == 1 if in_flight == 1 else 1 < most[0] <= min(in_flight, 4)
    for slot in set(slots):
        of_slot = [int(frame.partition(b":")[2]) for frame in served.received if frame.startswith(b"%d:" % slot)]
        assert of_slot == sorted(of_slot)


def test_one_operation_in_flight_keeps_the_order_of_all(peer, replay):
    served = peer(acknowledge)
    replay(served.endpoint, PAYLOADS, in_flight=1)
    assert served.received == PAYLOADS


def test_many_are_in_flight_but_no_more_than_said(peer, replay):
    gathered = threading.Barrier(20)

    def handle(connection, served):
        if connection.recv(1500):
            gathered.wait(60)  # nobody is answered before twenty are here
            connection.sendall(b"OK")

    served = peer(handle)
    replayed = replay(served.endpoint, PAYLOADS, in_flight=20)
    assert replayed.outcomes == [ACCEPTED] * 100
    assert served.connections == 101  # one was to see whether anybody is there


def test_an_empty_workload(peer, replay):
    replayed = replay(peer(acknowledge).endpoint, [])
    assert replayed.outcomes == []
    assert replayed.progress == [Progress(replayed.elapsed_s, 0, 0, 0)]


# Outcomes


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        (answering(b"OK"), (ACCEPTED, "")),
        (answering(b"O", b"K"), (ACCEPTED, "")),
        (answering(b"ER"), (REFUSED, "ER")),
        (answering(b"E", b"R"), (REFUSED, "ER")),
        (answering(b"O", b"OK"), (UNKNOWN, "garbage reply")),
        (answering(b"O", b"R"), (UNKNOWN, "garbage reply")),
        (answering(b"OKAY"), (UNKNOWN, "garbage reply")),
        (answering(b"\xff\x00" * 40_000), (UNKNOWN, "garbage reply")),
        (answering(b"O"), (UNKNOWN, "garbage reply")),
        (answering(), (UNKNOWN, "reply lost: closed without an answer")),
        (answering(None), (UNKNOWN, "no answer in time")),
        (answering(b"O", None), (UNKNOWN, "no answer in time")),
    ],
)
def test_what_a_daemon_answers(peer, replay, kind, handle, expected):
    timeout_s = 0.4 if expected[1] == "no answer in time" else 60.0
    replayed = replay(peer(handle, kind).endpoint, PAYLOADS[:3], timeout_s=timeout_s)
    assert [*zip(replayed.outcomes, replayed.errors, strict=True)] == [expected] * 3


def test_a_broken_connection_leaves_it_unknown(peer, replay):
    replayed = replay(peer(reset).endpoint, PAYLOADS[:3])
    assert replayed.outcomes == [UNKNOWN] * 3
    assert set(replayed.errors) == {"reply lost: Connection reset by peer"}


def test_a_half_reply_is_not_carried_over_to_the_next_connection(peer, replay):
    """Descriptors are used again: what one connection left must not be taken for another's."""

    def handle(connection, served):
        frame = connection.recv(1500)
        if frame:
            odd = int(frame.rpartition(b"-")[2]) % 2
            for piece in (b"O", b"OK") if odd else (b"OK",):
                connection.sendall(piece)
                served.stopping.wait(0.01)

    replayed = replay(peer(handle).endpoint, PAYLOADS[:20], in_flight=1)
    assert replayed.outcomes == [ACCEPTED, UNKNOWN] * 10


def test_a_slot_goes_on_after_an_unknown_outcome(replay_by_hand):
    replayed = replay_by_hand(
        PAYLOADS[:3], lambda payload: 60.0 if payload == PAYLOADS[0] else 0.001, slots=[0, 0, 1], timeout_s=0.3
    )
    assert replayed.outcomes == [UNKNOWN, ACCEPTED, ACCEPTED]
    sent_s = replayed.records["sent_ns"] / 1e9
    assert sent_s.tolist() == pytest.approx([0, 0.3, 0], abs=engine_module.TICK_NS / 1e9)
    assert sent_s[1] >= 0.3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_daemon_that_goes_away_refuses_definitely(peer, replay, kind):
    def handle(connection, served):
        if connection.recv(1500):
            served.received.append(1)
            if len(served.received) == 10:
                served.refuse()
            connection.sendall(b"OK")

    replayed = replay(peer(handle, kind).endpoint, PAYLOADS[:30], in_flight=1)
    assert replayed.outcomes == [ACCEPTED] * 10 + [REFUSED] * 20
    assert set(replayed.errors[10:]) == {f"cannot connect: {os.strerror(errno.ECONNREFUSED)}"}


def test_a_socket_file_that_goes_away_refuses_definitely(peer, replay):
    def handle(connection, served):
        if connection.recv(1500):
            Path("./cp.sock").unlink()
            served.refuse()
            connection.sendall(b"OK")

    served = peer(handle, "unix")
    replayed = replay(served.endpoint, PAYLOADS[:3], in_flight=1)
    assert replayed.outcomes == [ACCEPTED, REFUSED, REFUSED]
    assert replayed.errors[1] == f"cannot connect: {os.strerror(errno.ENOENT)}"


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "./nobody.sock", "http://127.0.0.1:{port}"])
def test_an_endpoint_that_nobody_serves_is_a_problem(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with pytest.raises(CpsimError, match=r"cannot reach .*; is it running there"):
        open_wire(parse_endpoint(address.format(port=port)), 1.0)


def test_a_name_that_no_host_can_have_is_a_problem():
    with pytest.raises(CpsimError, match=r"cannot reach .*; is it running there"):
        open_wire(TcpEndpoint("a" * 64, 1), 1.0)


# What the system does rarely, made to happen


def unruly(monkeypatch, **behaviour):
    """Make the sockets of a wire behave: name of a method -> function(socket, original method, *arguments)."""

    class Unruly(one_shot.RawSocket):
        pass

    for name, function in behaviour.items():
        original = getattr(one_shot.RawSocket, name)
        monkeypatch.setattr(Unruly, name, lambda sock, *args, f=function, o=original: f(sock, o, *args), raising=False)
    monkeypatch.setattr(one_shot, "RawSocket", Unruly)


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET])
def test_a_connection_that_breaks_before_the_first_byte_is_definite(peer, replay, monkeypatch, kind, number):
    unruly(monkeypatch, send=failing(number))
    replayed = replay(peer(acknowledge, kind).endpoint, PAYLOADS[:3])
    assert replayed.outcomes == [REFUSED] * 3
    assert set(replayed.errors) == {f"cannot connect: {os.strerror(number)}"}


def test_a_refusal_that_comes_late_is_definite(peer, replay, monkeypatch):
    unruly(
        monkeypatch,
        connect_ex=lambda sock, original, address: original(sock, address) or errno.EINPROGRESS,
        send=failing(errno.ECONNREFUSED),
    )
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS[:3])
    assert replayed.outcomes == [REFUSED] * 3
    assert set(replayed.errors) == {f"cannot connect: {os.strerror(errno.ECONNREFUSED)}"}


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOTCONN])
@pytest.mark.parametrize("refused", [False, True])
def test_a_connection_that_takes_its_time(peer, replay, monkeypatch, number, refused):
    tried = set()

    def send(sock, original, payload):
        if payload not in tried:
            tried.add(payload)
            failing(number)()
        return original(sock, payload)

    def getsockopt(sock, original, *args):
        return errno.EHOSTUNREACH if refused else original(sock, *args)

    unruly(
        monkeypatch, connect_ex=lambda sock, o, at: o(sock, at) and errno.EINPROGRESS, send=send, getsockopt=getsockopt
    )
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS[:5])
    assert replayed.outcomes == [REFUSED if refused else ACCEPTED] * 5
    assert set(replayed.errors) == {f"cannot connect: {os.strerror(errno.EHOSTUNREACH)}" if refused else ""}


def test_a_connection_that_is_made_and_breaks_is_definite(peer, replay, monkeypatch):
    numbers = iter([errno.EAGAIN, errno.EPIPE])
    unruly(monkeypatch, send=lambda *_: failing(next(numbers))())
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS[:1])
    assert (replayed.outcomes, replayed.errors) == ([REFUSED], [f"cannot connect: {os.strerror(errno.EPIPE)}"])


def test_running_out_of_descriptors_is_waited_for(peer, replay, monkeypatch):
    original, calls = one_shot.RawSocket, count()

    def create(*args):
        if next(calls) % 3:
            failing(errno.EMFILE)()
        return original(*args)

    monkeypatch.setattr(one_shot, "RawSocket", create)
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS[:20])
    assert replayed.outcomes == [ACCEPTED] * 20


def test_being_out_of_descriptors_all_the_time_is_definite(peer, replay, monkeypatch):
    monkeypatch.setattr(one_shot, "RawSocket", failing(errno.EMFILE))
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS[:3], timeout_s=0.2)
    assert replayed.outcomes == [REFUSED] * 3
    assert set(replayed.errors) == {f"cannot connect: {os.strerror(errno.EMFILE)}"}


# A full backlog


@pytest.fixture
def crowded(tmp_path, monkeypatch):
    """A listener on ./cp.sock with room for one connection at a time."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("./cp.sock")
        listener.listen(0)
        listener.settimeout(280)
        yield listener


def test_a_full_backlog_is_tried_again(crowded, replay):
    received = []

    def serve():
        while len(received) < 50:
            connection, _ = crowded.accept()
            with connection:
                frame = connection.recv(1500)
                if frame:
                    received.append(frame)
                    connection.sendall(b"OK")

    thread = threading.Thread(target=serve)
    thread.start()
    replayed = replay(parse_endpoint("./cp.sock"), PAYLOADS[:50], in_flight=50)
    thread.join()
    assert replayed.outcomes == [ACCEPTED] * 50
    assert sorted(received) == sorted(PAYLOADS[:50])


def test_what_is_tried_again_was_sent_at_the_first_attempt(replay_by_hand):
    replayed = replay_by_hand(PAYLOADS[:50], lambda _: 0.001, in_flight=50, full_until_s=0.3)
    assert replayed.outcomes == [ACCEPTED] * 50
    assert replayed.records["sent_ns"].tolist() == [0] * 50
    assert replayed.records["answered_ns"].tolist() == pytest.approx([301_000_000] * 50, abs=1_000_000)
    assert [*replayed.effort.retried] == ["backlog full"]


def test_a_backlog_that_stays_full_is_tried_again_until_the_time_is_over(replay_by_hand):
    replayed = replay_by_hand(PAYLOADS[:10], lambda _: 0.001, in_flight=10, timeout_s=0.3, full_until_s=60.0)
    assert replayed.outcomes == [REFUSED] * 10
    assert replayed.errors == ["backlog full"] * 10
    assert replayed.elapsed_s == pytest.approx(0.301, abs=0.001)


def test_an_operation_without_an_answer_is_given_up_when_its_time_is_over(replay_by_hand):
    replayed = replay_by_hand(PAYLOADS[:2], lambda payload: 60.0 if payload == PAYLOADS[0] else 0.001, timeout_s=2.0)
    assert dict(zip(replayed.records["op"].tolist(), replayed.errors, strict=True)) == {0: "no answer in time", 1: ""}
    assert replayed.elapsed_s == pytest.approx(2, abs=engine_module.TICK_NS / 1e9)


def test_a_backlog_that_stays_full_is_definite(crowded, replay):
    replayed = replay(parse_endpoint("./cp.sock"), PAYLOADS[:10], in_flight=10, timeout_s=0.3)
    assert set(replayed.outcomes) <= {REFUSED, UNKNOWN}  # one may have fitted in, and is never answered
    assert replayed.outcomes.count(UNKNOWN) <= 1
    assert "backlog full" in replayed.errors
    assert replayed.elapsed_s >= 0.3


@pytest.fixture
def full():
    """A TCP listener whose queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as fillers:
        for _ in range(2):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        select.select([listener], [], [])
        yield listener, fillers


@pytest.mark.parametrize("kind", [TcpEndpoint, partial(UrlEndpoint, "http", path="")])
def test_a_connection_that_never_opens_is_refused_and_stops_nobody(full, replay, kind):
    listener, _ = full
    replayed = replay(kind(*listener.getsockname()), PAYLOADS[:3], in_flight=3, timeout_s=2, was_reached=True)
    assert replayed.outcomes == [REFUSED] * 3
    assert set(replayed.errors) == {"cannot connect: no answer in time"}
    assert any(progress.elapsed_s and not any(progress[1:]) for progress in replayed.progress)
    if sys.platform == "linux":
        assert replayed.effort.limit(3) == "backlog"


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells")
@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_requests_for_connections_that_a_full_queue_drops_are_counted(full, replay, kind):
    """The system asks again a second later: by then, there is room."""
    ok = b"OK" if kind == "tcp" else b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"result":"ok"}'

    listener, fillers = full

    def serve():
        while True:
            connection, _ = listener.accept()
            with connection:
                if connection.recv(1500):
                    connection.sendall(ok)
                    return

    server = threading.Thread(target=serve)

    def make_room(*_):
        if not server.ident:  # the request for a connection is lost by now
            fillers.close()
            server.start()

    address = listener.getsockname()
    endpoint = TcpEndpoint(*address) if kind == "tcp" else UrlEndpoint("http", *address, "")
    replayed = replay(endpoint, PAYLOADS[:1], timeout_s=60, was_reached=True, on_progress=make_room)
    server.join()
    assert replayed.outcomes == [ACCEPTED]
    assert replayed.effort.retried == {"request for a connection dropped": 1}
    assert replayed.effort.limit(1) == "backlog"


# Stopping, progress


def test_stopping_sends_nothing_more_and_leaves_what_flies_unknown(peer, replay):
    def handle(connection, served):
        frame = connection.recv(1500)
        if not frame:
            return
        with served.lock:
            served.received.append(frame)
            number = len(served.received)
        if number > 20:
            served.stopping.wait(10)
        else:
            connection.sendall(b"OK")

    served = peer(handle)
    replayed = replay(
        served.endpoint,
        PAYLOADS,
        slots=[n // 2 for n in range(100)],
        on_progress=lambda engine, _: engine.stop() if len(served.received) == 28 else None,
    )
    assert replayed.outcomes.count(ACCEPTED) == 20
    assert replayed.outcomes.count(UNKNOWN) == 8
    assert [e for e in replayed.errors if e] == ["interrupted"] * 8
    sent = [PAYLOADS[op] for op in replayed.records["op"]]
    assert sorted(sent) == sorted(served.received)
    assert replayed.progress[-1] == Progress(replayed.elapsed_s, 20, 0, 8)


def test_progress_adds_up(peer, replay, monkeypatch):
    monkeypatch.setattr(engine_module, "TICK_NS", 1_000_000)
    replies = [b"OK", b"ER", b"??"]

    def handle(connection, served):
        frame = connection.recv(1500)
        if frame:
            connection.sendall(replies[int(frame.rpartition(b"-")[2]) % 3])

    replayed = replay(peer(handle).endpoint, PAYLOADS[:99])
    assert replayed.outcomes == [ACCEPTED, REFUSED, UNKNOWN] * 33
    assert replayed.progress[-1] == Progress(replayed.elapsed_s, 33, 33, 33)
    assert len(replayed.progress) > 1
    for before, after in zip(replayed.progress, replayed.progress[1:], strict=False):
        assert all(a <= b for a, b in zip(before, after, strict=True))


def test_times_are_in_order_and_within_the_replay(peer, replay):
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS)
    records = replayed.records
    assert records["op"].tolist() == list(range(100))
    assert (records["sent_ns"] >= 0).all()
    assert (records["answered_ns"] > records["sent_ns"]).all()
    assert (records["answered_ns"] <= replayed.elapsed_s * 1e9).all()


def test_running_out_of_ports_is_waited_for_and_told(peer, replay, monkeypatch):
    numbers = count()

    def connect(sock, original, address):
        return errno.EADDRNOTAVAIL if next(numbers) % 4 == 1 else original(sock, address)

    unruly(monkeypatch, connect_ex=connect)
    replayed = replay(peer(acknowledge).endpoint, PAYLOADS[:20])
    assert replayed.outcomes == [ACCEPTED] * 20
    (why,) = replayed.effort.retried
    assert kind_of(why) in OURS


TIME_WAIT = "06"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, loopback is one address")


@on_linux
def test_where_one_address_has_no_port_left_another_is_connected_from(peer, replay, monkeypatch):
    def connect(sock, original, address):
        if sock.getsockname()[0] in {"0.0.0.0", "127.0.0.2"}:
            return errno.EADDRNOTAVAIL
        return original(sock, address)

    sources = set()

    def handle(connection, served):
        source = connection.getpeername()[0]
        if connection.recv(1500):  # nothing comes from where the target is looked for
            sources.add(source)
            connection.sendall(b"OK")

    unruly(monkeypatch, connect_ex=connect)
    target = peer(handle)
    replayed = replay(target.endpoint, PAYLOADS[:20], in_flight=1)
    assert replayed.outcomes == [ACCEPTED] * 20
    assert sources == {"127.0.0.3"}
    assert list(replayed.effort.retried.values()) == [2]
    assert replayed.effort.limit(20) == "ports"
    assert replayed.effort.limit(20_000) == "target"  # so few are made up for at once


@on_linux
def test_a_connection_leaves_no_port_that_waits(peer, replay):
    target = peer(acknowledge)
    port = f":{target.address[1]:04X}"

    def waiting():
        rows = [tuple(line.split()[1:4]) for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {row for row in rows if (row[0].endswith(port) or row[1].endswith(port)) and row[2] == TIME_WAIT}

    before = waiting()  # another peer may have had the port
    replay(target.endpoint, PAYLOADS[:20])
    assert len(waiting() - before) <= 1  # of the connection by which the target was looked for
