"""The server that a daemon under test forwards to, on real sockets."""

import socket
import threading
from contextlib import closing

import pytest

from cpdaemon import Client, TcpEndpoint
from cpdaemon.endpoint import UrlEndpoint
from cpdaemon.errors import BadReply, ConnectFailed, Refused, ReplyLost, ReplyTimeout
from cpsim.conformance.upstream import Upstream
from cpsim.daemon.client import BulkClient

CREDENTIALS = ("p", "s")
CALLS = [("claim", {"slot": "a", "machine": "m"}), ("alloc", {"slot": "a"})]


@pytest.fixture(params=[False, True], ids=["plain", "knows batches"])
def upstream(request):
    with Upstream(TcpEndpoint("127.0.0.1", 0), CREDENTIALS, knows_batches=request.param) as upstream:
        yield upstream


@pytest.fixture
def sender(upstream):
    endpoint = UrlEndpoint("http", "127.0.0.1", upstream.port, "/api")
    with closing(BulkClient(endpoint, CREDENTIALS, timeout_s=5)) as sender:
        yield sender


def test_what_comes_is_written_down_in_the_order_of_a_server(upstream, sender):
    assert sender.knows_batches() is upstream.knows_batches
    assert sender.post("b1", CALLS) == [None, None]
    (delivery,) = upstream.deliveries
    assert (delivery.path, delivery.batch_id, delivery.signature_error) == ("/api/batch/bulk", "b1", "")
    assert [kind for kind, _ in delivery.commands] == ["alloc", "claim"]
    assert (delivery.answer, delivery.applied) == ("ok", True)


def test_single_commands_and_signatures(upstream):
    with Client(f"http://127.0.0.1:{upstream.port}/api", CREDENTIALS) as client:
        client.alloc("Zürich", credits=5)
    with Client(f"http://127.0.0.1:{upstream.port}/api", ("p", "other")) as client, pytest.raises(Refused, match="401"):
        client.alloc("b")
    signed, unsigned = upstream.deliveries
    assert signed.commands == (("alloc", {"slot": "Zürich", "credits": 5}),)
    assert unsigned.signature_error == "its digest does not match"
    assert (signed.applied, unsigned.applied) == (True, False)


@pytest.mark.parametrize(
    ("answer", "error", "applied"),
    [
        ("500", BadReply, False),
        ("503", Refused, False),
        ("not-json", BadReply, False),
        ("cut", ReplyLost, True),
        ("lose", ReplyLost, True),
    ],
)
def test_it_answers_as_it_is_told(upstream, sender, answer, error, applied):
    upstream.answer(answer, count=1)
    with pytest.raises(error):
        sender.post("b1", CALLS)
    assert sender.post("b1", CALLS) == [None, None]
    again = not (applied and upstream.knows_batches)
    assert [(seen.answer, seen.applied) for seen in upstream.deliveries] == [(answer, applied), ("ok", again)]


def test_it_refuses_commands(upstream, sender):
    upstream.answer("errors", refused=frozenset({"a"}))
    outcomes = sender.post("b1", [("alloc", {"slot": "a"}), ("alloc", {"slot": "b"})])
    assert [str(error) for error in outcomes if error is not None]


def test_it_hangs_until_it_is_told_otherwise(upstream, sender):
    upstream.answer("hang", count=1)
    outcome = []

    def post():
        try:
            sender.post("b1", CALLS)
        except (ReplyLost, ReplyTimeout) as error:
            outcome.append(error)

    thread = threading.Thread(target=post)
    thread.start()
    assert upstream.wait_for(bool, 5)
    assert not outcome
    upstream.answer("ok")
    thread.join(60)
    assert len(outcome) == 1
    assert not upstream.deliveries[0].applied


def test_it_goes_away_and_comes_back_at_its_address(upstream, sender):
    assert sender.post("b1", CALLS) == [None, None]
    port = upstream.port
    upstream.refuse()
    with pytest.raises(ConnectFailed):
        sender.post("b2", CALLS)
    upstream.start()
    assert upstream.port == port
    assert sender.post("b3", CALLS) == [None, None]
    upstream.stop()
    with pytest.raises(ConnectFailed):
        sender.post("b4", CALLS)


@pytest.mark.parametrize(
    "request_",
    [
        b"Content-Length: many\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        *(
            b"Content-Length: %d\r\n\r\n" % len(body) + body
            for body in (
                b"[" * 50_000,
                b'{"alloc":5}',
                b'{"alloc":null}',
                b'{"alloc":"["}',
                b'{"alloc":[5]}',
                b"[]",
                b"\xff",
            )
        ),
    ],
    ids=lambda request: request[-20:],
)
def test_nonsense_is_answered(upstream, request_):
    with socket.create_connection(("127.0.0.1", upstream.port), 60) as sock:
        sock.sendall(b"POST /api/batch/bulk HTTP/1.1\r\nConnection: close\r\n" + request_)
        answer = b""
        while piece := sock.recv(65_536):
            answer += piece
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    assert upstream.deliveries == []
