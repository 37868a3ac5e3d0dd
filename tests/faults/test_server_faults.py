"""What a client of the server sees of each fault, and what the accounts see."""

import http.client
import itertools
import socket
import threading

import pytest

from cpdaemon import Alloc, Client
from cpdaemon.errors import BadReply, ConnectFailed, NotSent, Refused, ReplyLost, ReplyTimeout
from cpsim.fake import ANY_PORT, Fake


def address(fake):
    host, port = fake.addresses["http"].removeprefix("http://").removesuffix("/api").split(":")
    return host, int(port)


def get(fake, path):
    connection = http.client.HTTPConnection(*address(fake), timeout=280)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_down(fake, web, slots):
    web.alloc("before")
    for number in range(2):
        with fake.faults.down():
            with pytest.raises(ConnectFailed) as caught:
                web.alloc("refused")
            assert caught.value.definite
        web.alloc(f"after-{number}")
    assert slots() == ["before", "after-0", "after-1"]
    assert [firing[1:] for firing in fake.faults.firings] == [("server", "down", "", "", "")] * 2


def test_down_for_a_while(fake, web, wait_for):
    slots = map(str, itertools.count())

    def is_refused():
        try:
            web.alloc(next(slots))
        except (NotSent, ReplyLost):
            return True
        return False

    fake.faults.replace(["down:from=0.05"])
    wait_for(is_refused)
    assert [firing.action for firing in fake.faults.firings] == ["down"]
    fake.faults.replace(["down:until=0.05"])
    wait_for(lambda: not is_refused())


def test_to_stop_while_down_gives_back_the_address(here):
    fake = Fake({"p": "s"}, unix=here / "other.sock", http=ANY_PORT, faults=["down", "refuse"])
    with fake, pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(fake))
    socket.create_server(address(fake)).close()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("status", [200, 204, 302, 401, 503])
def test_status(fake, web, slots, status):
    with fake.faults.status(status, count=1):
        expected = Refused if status in {200, 302, 401} else BadReply
        with pytest.raises(expected, match="200" if status == 200 else str(status)):
            web.alloc("x")
        web.alloc("y")
    assert slots() == ["y"]


def test_a_status_by_kind_and_slot(fake, web, slots):
    with fake.faults.status(503, kind="claim", slot="b*"):
        for slot in ("a1", "b1"):
            web.alloc(slot)
        web.claim("a1", "m")
        with pytest.raises(BadReply, match="503"):
            web.claim("b1", "m")
        assert get(fake, "/api/heartbeat") == (200, b"OK")
    assert [firing[1:] for firing in fake.faults.firings] == [("server", "status", "claim", "b1", "p")]


def test_a_bulk_request_is_selected_by_what_it_carries(fake, slots):
    batch = [Alloc("a"), Alloc("b")]
    with Client(fake.addresses["http"], ("p", "s")) as client:
        for selection in ({"slot": "b"}, {"kind": "bulk"}, {"kind": "alloc", "nth": 1}):
            with fake.faults.status(503, **selection):
                assert [outcome.result for outcome in client.send_many(batch)] == ["unknown"] * 2
        assert slots() == []
        with fake.faults.status(503, slot="c"), fake.faults.status(503, kind="claim"):
            assert [outcome.result for outcome in client.send_many(batch)] == ["accepted"] * 2
    assert [(firing.kind, firing.slot) for firing in fake.faults.firings] == [
        ("alloc", "b"),
        ("bulk", ""),
        ("alloc", "a"),
    ]


@pytest.mark.parametrize("path", ["heartbeat", "batch/slots"])
def test_requests_without_commands_are_selected_too(fake, path):
    with fake.faults.status(503, kind=path.rpartition("/")[2]):
        assert get(fake, f"/api/{path}")[0] == 503


def test_the_control_api_meets_no_fault(fake):
    with fake.faults.status(503), fake.faults.hang():
        assert get(fake, "/__cpsim/totals")[0] == 200


def test_hang(fake, web, slots):
    with fake.faults.hang(kind="alloc", stage="server", count=1):
        with Client(fake.addresses["http"], ("p", "s"), timeout_s=1) as impatient, pytest.raises(ReplyTimeout):
            impatient.alloc("x")
        web.alloc("y")
    assert slots() == ["y"]


def test_a_hanging_request_does_not_hold_up_the_end(here, wait_for):
    with Fake({"p": "s"}, http=ANY_PORT, faults=["hang:kind=heartbeat", "late=3600:kind=slots"]) as fake:
        waiting = [socket.create_connection(address(fake)) for _ in range(2)]
        for sock, path in zip(waiting, (b"heartbeat", b"batch/slots"), strict=True):
            sock.sendall(b"GET /api/" + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(fake.faults.firings) == 2)
    assert waiting[0].recv(100) == b""
    assert waiting[1].recv(100).startswith(b"HTTP/1.1 400")
    for sock in waiting:
        sock.close()


def test_late(fake, web, slots):
    with fake.faults.late(0.01):
        web.alloc("x")
    impatient = Client(fake.addresses["http"], ("p", "s"), timeout_s=1)
    with fake.faults.late(3600), impatient, pytest.raises(ReplyTimeout):
        impatient.alloc("y")
    assert slots() == ["x"]


@pytest.mark.parametrize("action", ["close", "reset"])
def test_no_answer_and_not_taken(fake, web, slots, action):
    with getattr(fake.faults, action)(count=1):
        with pytest.raises(ReplyLost) as caught:
            web.alloc("x")
        web.alloc("y")
    assert isinstance(caught.value.__cause__, ConnectionResetError) is (action == "reset")
    assert slots() == ["y"]


@pytest.mark.parametrize("action", ["lose_reply", "cut"])
def test_taken_and_the_reply_lost(fake, web, slots, action):
    with getattr(fake.faults, action)(nth=2):
        web.alloc("x")
        with pytest.raises(ReplyLost):
            web.alloc("y")
        web.alloc("z")
    assert slots() == ["x", "y", "z"]


def test_a_body_is_cut_in_its_middle(fake):
    with fake.faults.cut(), socket.create_connection(address(fake)) as sock:
        sock.sendall(b"GET /api/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while piece := sock.recv(1000):
            received += piece
    assert b"content-length: 2\r\n" in received
    assert received.endswith(b"\r\n\r\nO")


def test_not_json(fake, web, slots):
    with fake.faults.not_json(count=1), pytest.raises(BadReply, match="It works!"):
        web.alloc("x")
    assert slots() == []


@pytest.mark.parametrize("fault", ["server.hang", "server.late=3600"])
def test_what_a_fault_holds_is_let_go_with_it(fake, slots, wait_for, fault):
    failures = []

    def call():
        with Client(fake.addresses["http"], ("p", "s"), timeout_s=60) as client, pytest.raises(ReplyLost) as caught:
            client.alloc("held")
        failures.append(caught.value)

    thread = threading.Thread(target=call)
    with fake.faults.during(fault):
        thread.start()
        wait_for(lambda: fake.faults.firings)
    thread.join()
    assert len(failures) == 1
    assert slots() == []


def test_two_faults_meet_one_request(fake, web, slots):
    with fake.faults.lose_reply(nth=2), fake.faults.status(503, nth=2):
        web.alloc("x")
        with pytest.raises(ReplyLost):
            web.alloc("y")
        web.alloc("z")
    assert slots() == ["x", "z"]
    assert [firing.action for firing in fake.faults.firings] == ["lose-reply", "status"]


def test_crash_after_commit(here):
    seen = []

    def crash():
        with fake.accounts.reading() as ledger:
            seen.append(list(ledger.project("p").slots))

    with (
        Fake({"p": "s"}, http=ANY_PORT, faults=["server.crash-after-commit"], crash=crash) as fake,
        Client(fake.addresses["http"], ("p", "s")) as client,
        pytest.raises(ReplyLost),
    ):
        client.alloc("x")
    assert seen == [["x"]]


def test_pipelined_requests_meet_faults(fake, capfd):
    with fake.faults.lose_reply(nth=2), socket.create_connection(address(fake)) as sock:
        sock.sendall(b"GET /api/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        received = b""
        while piece := sock.recv(1000):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 1
    assert capfd.readouterr().err == ""
