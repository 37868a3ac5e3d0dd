"""The documented functions, the client below them, and many commands at once."""

import inspect
import json
import pickle
import traceback

import pytest

import cpdaemon
from cpdaemon import (
    Alloc,
    BadReply,
    Claim,
    Client,
    ConnectFailed,
    Counters,
    EndpointError,
    InvalidCommand,
    NotSent,
    Refused,
    ReplyLost,
    errors,
)
from cpdaemon.wire import parse

CREDENTIALS = ("p", "hush")


@pytest.fixture
def daemon(unix_peer):
    """A daemon on ./cp.sock that queues what is well-formed."""

    def handle(connection, peer):
        frame = connection.recv(1500)
        peer.received.append(frame.decode())
        if b"vanish" in frame:
            return
        try:
            parse(frame)
        except ValueError:
            connection.sendall(b"ER")
        else:
            connection.sendall(b"ER" if b"unwelcome" in frame else b"OK")

    return unix_peer(handle)


@pytest.fixture
def default_client():
    yield
    cpdaemon.cpapi_setup(cpdaemon.DEFAULT_ENDPOINT)


def http_reply(status=200, **fields):
    body = json.dumps({"result": "ok", **fields}).encode()
    return f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body, "keep"


def results(outcomes):
    return [outcome.result for outcome in outcomes]


# The documented functions


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cpapi_setup", "server_endpoint, credentials=None, *, ca=None, client_cert=None, client_key=None"),
        ("cpapi_alloc", "slot_id, min=None, max=None, credits=None, *, expire=None"),
        ("cpapi_discard", "slot_id, reason=None"),
        ("cpapi_claim", "slot_id, machine_id, credits=None"),
        ("cpapi_counters", "slot_id, **kwargs"),
        ("cpapi_meta", "slot_id, **kwargs"),
    ],
)
def test_the_documented_signatures(name, parameters):
    signature = inspect.signature(getattr(cpdaemon, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == f"({parameters})"


@pytest.mark.usefixtures("default_client")
def test_the_documented_functions(daemon):
    cpdaemon.cpapi_setup("./cp.sock")
    cpdaemon.cpapi_alloc("a", 1, 5)
    cpdaemon.cpapi_alloc(slot_id="b", credits=7, expire=30)
    cpdaemon.cpapi_counters("a", **{"job/events": 5, "self": 1})
    cpdaemon.cpapi_meta("a", site="CERN", self="me")
    cpdaemon.cpapi_claim("a", "m", 3)
    cpdaemon.cpapi_discard("b", "lost")
    assert daemon.received == [
        "alloc,slot=a,min=1,max=5",
        "alloc,slot=b,credits=7,expire=30",
        "counters,slot=a,job/events=5,self=1",
        "meta,slot=a,site=CERN,self=me",
        "claim,slot=a,machine=m,credits=3",
        "discard,slot=b,reason=lost",
    ]
    with pytest.raises(InvalidCommand):
        cpdaemon.cpapi_counters("a", slot=5)
    with pytest.raises(InvalidCommand):
        cpdaemon.cpapi_counters("a")


def test_the_default_endpoint_applies_before_setup():
    assert cpdaemon._client._endpoint == cpdaemon.UnixEndpoint("/var/run/creditapi.socket")


@pytest.mark.usefixtures("default_client")
def test_setup_replaces_and_closes_the_client_before():
    cpdaemon.cpapi_setup("localhost:1")
    before = cpdaemon._client
    with pytest.raises(EndpointError):
        cpdaemon.cpapi_setup("localhost")
    assert cpdaemon._client is before
    cpdaemon.cpapi_setup("localhost:2")
    with pytest.raises(NotSent, match="closed"):
        before.send(Alloc("x"))


def test_public_names_exist_once():
    assert len(set(cpdaemon.__all__)) == len(cpdaemon.__all__)
    assert all(hasattr(cpdaemon, name) for name in cpdaemon.__all__)


# The client


def test_client_methods_send_what_the_functions_send(daemon):
    with Client("./cp.sock") as client:
        client.alloc("a", credits=5, expire=9)
        client.counters("a", self=1)
        client.meta("a", site="x")
        client.claim("a", "m")
        client.discard("a")
    assert [frame.split(",")[0] for frame in daemon.received] == [
        "alloc",
        "counters",
        "meta",
        "claim",
        "discard",
    ]
    assert daemon.received[0] == "alloc,slot=a,credits=5,expire=9"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("https://cp.org/api",), "needs credentials"),
        (("https://cp.org/api", ("a,b", "hush")), "without ','"),
        (("https://cp.org/api", CREDENTIALS, 10.0, "md5"), "unknown algorithm"),
        (("./cp.sock", CREDENTIALS), "is a daemon"),
        (("localhost:1", CREDENTIALS), "is a daemon"),
        (("./cp.sock", None, 0), "more than 0"),
        (("./cp.sock", None, float("nan")), "more than 0"),
        (("./cp.sock", None, float("inf")), "at most 86,400 seconds"),
        ((5,), "an endpoint is text, not int"),
    ],
)
def test_clients_that_cannot_work(args, said):
    with pytest.raises(EndpointError, match=said) as caught:
        Client(*args)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_secrets_are_not_shown():
    with Client("http://127.0.0.1:1", CREDENTIALS) as client:
        assert "hush" not in repr(client)
        with pytest.raises(ConnectFailed) as caught:
            client.send(Alloc("x"))
    assert "hush" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("address", ["./cp.sock", "http://127.0.0.1:1"])
def test_a_closed_client_sends_nothing(address):
    client = Client(address, CREDENTIALS if "://" in address else None)
    client.close()
    client.close()
    with pytest.raises(NotSent, match="closed"):
        client.send(Alloc("x"))
    assert results(client.send_many([Alloc("x"), Alloc("y")])) == ["refused", "refused"]


@pytest.mark.parametrize("algorithm", ["sha-1", "sha-512"])
def test_the_algorithm_can_be_chosen(http_peer, algorithm):
    peer = http_peer(http_reply())
    with Client(f"http://{peer.host_port}", CREDENTIALS, algorithm=algorithm) as client:
        client.send(Alloc("x"))
    assert peer.received[0][1]["Authorization"].startswith(f"{algorithm},p,")


def test_errors_survive_pickling():
    for error in (
        errors.ConnectFailed(111, "no"),
        errors.ReplyTimeout(110, "late"),
        errors.Refused("no", 500),
    ):
        twin = pickle.loads(pickle.dumps(error))
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
        assert getattr(twin, "errno", None) == getattr(error, "errno", None)


# Many commands


def test_many_to_a_daemon_go_one_by_one(daemon):
    commands = [Alloc("a"), Alloc("unwelcome"), Claim("a", "m")]
    with Client("./cp.sock") as client:
        outcomes = client.send_many(iter(commands))
    assert [outcome.command for outcome in outcomes] == commands
    assert results(outcomes) == ["accepted", "refused", "accepted"]
    assert isinstance(outcomes[1].error, Refused)


def test_a_lost_reply_stops_the_rest(daemon):
    with Client("./cp.sock") as client:
        outcomes = client.send_many([Alloc("a"), Alloc("vanish"), Alloc("b"), Alloc("c")])
    assert results(outcomes) == ["accepted", "unknown", "refused", "refused"]
    assert [type(outcome.error) for outcome in outcomes[1:]] == [ReplyLost, NotSent, NotSent]
    assert len(daemon.received) == 2


def test_nothing_to_send():
    assert Client("./cp.sock").send_many([]) == []


def test_many_to_a_server_go_in_bulk_in_order(http_peer):
    peer = http_peer(http_reply(), http_reply())
    commands = [Alloc("a"), Claim("a", "m"), Alloc("b"), Counters("a", {"n": 1}), Claim("b", "m")]
    with Client(f"http://{peer.host_port}/api", CREDENTIALS) as client:
        outcomes = client.send_many(commands)
    assert results(outcomes) == ["accepted"] * 5
    assert [line for line, _, _ in peer.received] == ["POST /api/batch/bulk HTTP/1.1"] * 2
    assert [list(json.loads(body)) for _, _, body in peer.received] == [
        ["alloc", "claim"],
        ["counters", "claim"],
    ]


def test_bulk_outcomes(http_peer):
    peer = http_peer(
        http_reply(errors=[{"message": "late", "code": 500, "class": "alloc", "index": 1}]),
        http_reply(errors=[{"message": "late", "code": 500}]),
        http_reply(errors=[{"message": "late", "code": 500}] * 2),
    )
    commands = [Alloc("a"), Alloc("b")]
    with Client(f"http://{peer.host_port}/api", CREDENTIALS) as client:
        exact, doubtful, total = (client.send_many(commands) for _ in range(3))
    assert results(exact) == ["accepted", "refused"]
    assert str(exact[1].error) == "late"
    assert results(doubtful) == ["unknown", "unknown"]
    assert isinstance(doubtful[0].error, BadReply)
    assert results(total) == ["refused", "refused"]


def test_a_bulk_request_refused_whole(http_peer):
    peer = http_peer(http_reply(401, result="error", message="Who?"))
    with Client(f"http://{peer.host_port}/api", CREDENTIALS) as client:
        outcomes = client.send_many([Alloc("a"), Alloc("b")])
    assert results(outcomes) == ["refused"] * 2
    assert outcomes[0].error.status == 401


def test_a_bulk_request_lost_mid_way(http_peer):
    peer = http_peer(http_reply(), (b"HTTP/1.1 200", "close"))
    commands = [Claim("a", "m"), Alloc("b"), Alloc("a"), Alloc("c"), Claim("c", "m"), Alloc("c"), Alloc("d")]
    with Client(f"http://{peer.host_port}/api", CREDENTIALS) as client:
        outcomes = client.send_many(commands)
    assert results(outcomes) == ["accepted"] * 2 + ["unknown"] * 3 + ["refused"] * 2
    assert isinstance(outcomes[-1].error, NotSent)
    assert "an earlier command failed" in str(outcomes[-1].error)
