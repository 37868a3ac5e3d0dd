"""The server that a daemon under test forwards to, on real sockets."""

import socket
import threading
from contextlib import closing
from http.client import HTTPConnection

import pytest

from cpdaemon import Client, TcpEndpoint
from cpdaemon.endpoint import UrlEndpoint
from cpdaemon.errors import BadReply, ConnectFailed, Refused, ReplyLost, ReplyTimeout
from cpdaemon.signing import token
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
        ("400", Refused, False),
        ("401", Refused, False),
        ("404", Refused, False),
        ("not-json", BadReply, False),
        ("cut", ReplyLost, True),
        ("lose", ReplyLost, True),
    ],
)
def test_it_answers_as_it_is_told(upstream, sender, answer, error, applied):
    upstream.answer(answer, count=1)
    with pytest.raises(error):
        sender.post("b1", CALLS)
    again = not (applied and upstream.knows_batches)
    refusals = [error is not None for error in sender.post("b1", CALLS)]
    assert refusals == [applied and not upstream.knows_batches] * 2
    assert [(seen.answer, seen.applied) for seen in upstream.deliveries] == [(answer, applied), ("ok", again)]
    assert [seen.accepted for seen in upstream.deliveries] == [(applied,) * 2, (not applied,) * 2]


def test_it_refuses_commands(upstream, sender):
    upstream.answer("errors", refused=frozenset({"a"}))
    outcomes = sender.post("b1", [("alloc", {"slot": "a"}), ("alloc", {"slot": "b"})])
    assert [str(error) for error in outcomes if error is not None]


def test_what_answers_a_batch_is_no_refusal_of_a_command_that_comes_alone(upstream):
    with Client(f"http://127.0.0.1:{upstream.port}/api", CREDENTIALS) as client:
        for answer in ("400", "500"):
            upstream.answer(answer, count=1)
            with pytest.raises(BadReply, match="503"):
                client.alloc("a")
        client.alloc("a")


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (("alloc", {"slot": "a"}), "has been allocated"),
        (("alloc", {"slot": "b", "min": "9", "max": 2}), "min is above max"),
        (("alloc", {"slot": "b", "expire": "0"}), "expire is below 1"),
        (("alloc", {"slot": "b", "credits": "1e3"}), "credits is no whole number"),
        (("alloc", {"slot": ""}), "it has no slot"),
        (("counters", {"slot": "a"}), "nothing but a slot"),
        (("counters", {"slot": "a", "n": True}), "n is no whole number"),
        (("counters", {"slot": "gone", "n": 1}), "'gone' is discarded"),
        (("meta", {"slot": "nowhere", "n": "x"}), "'nowhere' is unknown"),
        (("claim", {"slot": "a"}), "it has no machine"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_it_refuses_what_a_server_refuses_and_lists_what_is_outstanding(upstream, sender, refused, why):
    assert sender.post("b1", [("alloc", {"slot": name}) for name in ("a", "gone")]) == [None] * 2
    assert sender.post("b2", [("discard", {"slot": "gone"}), ("counters", {"slot": "a", "n": "-1"})]) == [None] * 2
    outcomes = sender.post("b3", [refused])
    assert [why in str(error) for error in outcomes] == [True]
    assert upstream.outstanding() == ["a"]
    assert listed(upstream, "slots") == (200, b'{"result": "ok", "data": ["a"]}')
    assert listed(upstream, "slots.text") == (200, b"a")
    assert listed(upstream, "slots.xml")[0] == 500
    assert listed(upstream, "slots", secret="other")[0] == 401


def listed(upstream, name, secret=CREDENTIALS[1]):
    with closing(HTTPConnection("127.0.0.1", upstream.port, timeout=280)) as connection:
        connection.request("POST", f"/api/batch/{name}", headers={"Authorization": token(("p", secret), b"")})
        reply = connection.getresponse()
        return reply.status, reply.read()


def test_it_hangs_until_it_is_told_otherwise(upstream, sender):
    upstream.answer("hang", count=1)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(sender.post("b1", CALLS)))
    thread.start()
    assert upstream.wait_for(bool, 60)
    assert not outcome
    upstream.answer("ok")
    thread.join(60)
    assert outcome == [[None, None]]
    assert [(seen.answer, seen.applied) for seen in upstream.deliveries] == [("hang", False), ("ok", True)]


def test_who_leaves_while_it_hangs_has_sent_nothing(upstream):
    upstream.answer("hang", count=1)
    endpoint = UrlEndpoint("http", "127.0.0.1", upstream.port, "/api")
    with closing(BulkClient(endpoint, CREDENTIALS, timeout_s=1)) as hasty, pytest.raises(ReplyTimeout):
        hasty.post("b1", CALLS)
    upstream.answer("ok")
    with closing(BulkClient(endpoint, CREDENTIALS, timeout_s=60)) as patient:
        assert patient.post("b2", CALLS) == [None, None]
    assert [(seen.answer, seen.applied) for seen in upstream.deliveries] == [("hang", False), ("ok", True)]


def test_it_goes_away_and_comes_back_at_its_address(upstream, sender):
    assert sender.post("b1", CALLS) == [None, None]
    port = upstream.port
    upstream.refuse()
    with pytest.raises(ConnectFailed):
        sender.post("b2", CALLS)
    upstream.start()
    assert upstream.port == port
    assert sender.post("b3", [("alloc", {"slot": "b"})]) == [None]
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
