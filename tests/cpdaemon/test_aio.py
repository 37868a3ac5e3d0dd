"""The client for event loops: it does what the other does, at a CreditPiggy and at peers that do one thing wrong."""

import asyncio
import gc
import inspect
import ssl
import subprocess
import sys
import threading

import pytest
import trustme

import cpdaemon
from cpdaemon import (
    Alloc,
    AsyncClient,
    BadReply,
    Claim,
    Client,
    ConnectFailed,
    ConnectTimeout,
    CreditPiggyError,
    EndpointError,
    NoSuchSocket,
    NotSent,
    Refused,
    ReplyLost,
    ReplyTimeout,
)
from cpsim.testing import CreditPiggy

CREDENTIALS = ("p", "hush")
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"result":"ok"}'
KINDS = ["unix", "tcp", "url"]


@pytest.fixture
def creditpiggy():
    with CreditPiggy(allow_refusals=True) as creditpiggy:
        yield creditpiggy


def place(creditpiggy, kind):
    """The arguments of a client."""
    return getattr(creditpiggy, kind), creditpiggy.credentials if kind == "url" else None


def sent(*arguments, commands=None, **options):
    """What comes of sending commands one after the other, by one client, or one: an error or None for each."""

    async def send():
        errors = []
        async with AsyncClient(*arguments, **options) as client:
            for command in [Alloc("job-1")] if commands is None else commands:
                try:
                    await client.send(command)
                except CreditPiggyError as error:
                    errors.append(error)
                else:
                    errors.append(None)
        return errors

    return asyncio.run(send())


@pytest.mark.parametrize("kind", KINDS)
def test_every_call(creditpiggy, kind):
    async def manage():
        async with AsyncClient(*place(creditpiggy, kind)) as client:
            await client.alloc("job-1", 1, 5, expire=9)
            await client.alloc("job-2", credits=3)
            await client.counters("job-1", self=1, **{"job/events": 7})
            await client.meta("job-1", site="CERN")
            await client.claim("job-1", "worker-7", 4)
            await client.discard("job-2", "lost")
            many = [Alloc("job-3"), Claim("job-3", "worker-8"), *(Alloc(f"more-{number}") for number in range(50))]
            return await client.send_many(many), many

    outcomes, many = asyncio.run(manage())
    assert [outcome.command for outcome in outcomes] == many
    assert {outcome.result for outcome in outcomes} == {"accepted"}
    creditpiggy.assert_claimed(
        "job-1", machine="worker-7", credits=4, counters={"self": 1, "job/events": 7}, meta={"site": "CERN"}
    )
    creditpiggy.assert_discarded("job-2", reason="lost")
    creditpiggy.assert_claimed("job-3", machine="worker-8")
    assert len(creditpiggy.slots) == 53


def test_the_calls_are_those_of_the_other():
    for name in ("alloc", "discard", "claim", "counters", "meta", "send", "send_many", "close", "__init__"):
        own, other = (inspect.signature(getattr(client, name)) for client in (AsyncClient, Client))
        assert own == other, name
        assert name == "__init__" or inspect.iscoroutinefunction(getattr(AsyncClient, name))


FAULTS = {
    "daemon": ["error", "lose-reply", "close", "reset", "hang", "refuse", "pieces=0", "late=0"],
    "server": ["lose-reply", "close", "reset", "hang", "down", "cut", "not-json", "status=503", "status=404", "late=0"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_met_as_by_the_other(creditpiggy, kind):
    stage = "server" if kind == "url" else "daemon"
    for number, fault in enumerate(FAULTS[stage]):
        timeout_s = 0.1 if fault == "hang" else 100
        with creditpiggy.faults.during(f"{stage}.{fault}"):
            (error,) = sent(*place(creditpiggy, kind), timeout_s, commands=[Alloc(f"async-{number}")])
            with Client(*place(creditpiggy, kind), timeout_s) as client:
                try:
                    client.send(Alloc(f"sync-{number}"))
                except CreditPiggyError as raised:
                    expected = raised
                else:
                    expected = None
        assert type(error) is type(expected), fault
        if error is not None:
            assert (error.definite, error.answered) == (expected.definite, expected.answered), fault
            assert getattr(error, "status", None) == getattr(expected, "status", None), fault
    creditpiggy.faults.clear()
    assert sent(*place(creditpiggy, kind)) == [None]


def test_a_refusal_names_the_reason(creditpiggy):
    claim = Claim("no", "worker-7")
    (refused,) = sent(*place(creditpiggy, "url"), commands=[claim])
    assert "slot 'no' was never allocated" in str(refused)
    assert isinstance(refused, Refused)

    async def many():
        async with AsyncClient(*place(creditpiggy, "url")) as client:
            return await client.send_many([Alloc("job-1"), claim])

    assert [outcome.result for outcome in asyncio.run(many())] == ["accepted", "refused"]


def test_a_lost_reply_stops_the_rest(creditpiggy):
    async def many():
        async with AsyncClient(creditpiggy.unix) as client:
            return await client.send_many([Alloc("a"), Alloc("b"), Alloc("c")])

    with creditpiggy.faults.lose_reply(nth=2):
        outcomes = asyncio.run(many())
    assert [outcome.result for outcome in outcomes] == ["accepted", "unknown", "refused"]
    assert [type(outcome.error) for outcome in outcomes[1:]] == [ReplyLost, NotSent]


def test_tasks_share_a_client(creditpiggy):
    async def tasks(kind):
        async with AsyncClient(*place(creditpiggy, kind)) as client:
            await asyncio.gather(*(client.alloc(f"{kind}-{number}") for number in range(20)))

    for kind in KINDS:
        asyncio.run(tasks(kind))
    assert len(creditpiggy.slots) == 60


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("https://cp.org/api",), "needs credentials"),
        (("./cp.sock", CREDENTIALS), "is a daemon"),
        (("./cp.sock", None, 0), "more than 0"),
        ((5,), "an endpoint is text, not int"),
    ],
)
def test_clients_that_cannot_work(args, said):
    with pytest.raises(EndpointError, match=said):
        AsyncClient(*args)


@pytest.mark.parametrize("address", ["./cp.sock", "http://127.0.0.1:1"])
def test_a_closed_client_sends_nothing(address):
    async def use():
        client = AsyncClient(address, CREDENTIALS if "://" in address else None)
        await client.close()
        await client.close()
        with pytest.raises(NotSent, match="closed"):
            await client.send(Alloc("x"))
        return await client.send_many([Alloc("x"), Alloc("y")])

    assert [outcome.result for outcome in asyncio.run(use())] == ["refused", "refused"]


def test_connections_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (no_socket,) = sent("./cp.sock")
    (nobody,) = sent("127.0.0.1:1")
    (no_server,) = sent("http://127.0.0.1:1", CREDENTIALS)
    assert [type(error) for error in (no_socket, nobody, no_server)] == [NoSuchSocket, ConnectFailed, ConnectFailed]
    assert no_socket.errno
    assert nobody.errno


def test_a_full_backlog_is_waited_for(full_backlog):
    listener, waiting = full_backlog
    (error,) = sent("./cp.sock", None, 0.05)
    assert type(error) is ConnectTimeout

    def serve():
        for _ in range(waiting):
            listener.accept()[0].close()
        with listener.accept()[0] as connection:
            connection.recv(1500)
            connection.sendall(b"OK")

    async def use():
        sending = asyncio.create_task(AsyncClient("./cp.sock", None, 100).send(Alloc("x")))
        await asyncio.sleep(0)  # it has found no room
        thread = threading.Thread(target=serve)
        thread.start()
        await sending
        thread.join()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("replies", "connections", "errors"),
    [
        ([(OK, "keep"), (OK, "keep"), (OK, "keep")], 1, [None] * 3),
        ([(OK, "close"), (OK, "close"), (OK, "close")], 3, [None] * 3),
        ([(OK + b"more", "keep"), (OK, "keep"), (OK, "keep")], 2, [None] * 3),
        ([(OK, "keep"), (b"", "close"), (OK, "keep")], 2, [None, (ReplyLost, False), None]),
        (
            [(b"HTTP/1.1 200 OK\r\n", "close"), (b"SSH-2.0\r\n", "keep"), (OK, "keep")],
            3,
            [(ReplyLost, True), (BadReply, False), None],
        ),
        ([(OK.replace(b"15", b"99"), "hang"), (OK, "keep"), (OK, "keep")], 2, [(ReplyTimeout, True), None, None]),
    ],
)
def test_connections_to_a_server(http_peer, replies, connections, errors):
    peer = http_peer(*replies)

    async def use():
        found = []
        timeout_s = 2 if (ReplyTimeout, True) in errors else 100
        async with AsyncClient(f"http://{peer.host_port}", CREDENTIALS, timeout_s) as client:
            for (_, then), number in zip(replies, range(3), strict=True):
                try:
                    await client.send(Alloc(f"job-{number}"))
                except CreditPiggyError as error:
                    found.append((type(error), error.answered))
                else:
                    found.append(None)
                if then == "close":
                    peer.threads[-1].join()  # the server has closed its end
        return found

    assert asyncio.run(use()) == errors
    assert (peer.connections, len(peer.received)) == (connections, 3)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # one loop has ended before the client
def test_each_loop_has_connections_of_its_own(http_peer):
    peer = http_peer(*[(OK, "keep")] * 2)
    client = AsyncClient(f"http://{peer.host_port}", CREDENTIALS)

    async def send_and_close():
        await client.send(Alloc("b"))
        await client.close()

    asyncio.run(client.send(Alloc("a")))
    asyncio.run(send_and_close())
    gc.collect()
    assert peer.connections == 2


def test_a_call_that_is_cancelled_ends_its_connection(unix_peer):
    came, left = threading.Event(), threading.Event()

    def handle(connection, peer):
        while connection.recv(1500):
            came.set()
        left.set()

    unix_peer(handle)

    async def use():
        async with AsyncClient("./cp.sock") as client:
            sending = asyncio.create_task(client.send(Alloc("x")))
            await asyncio.to_thread(came.wait, 100)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert await asyncio.to_thread(left.wait, 100)

    asyncio.run(use())


def test_certificates_are_verified(http_peer, tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    peer = http_peer((OK, "keep"), (OK, "keep"), tls=context)
    address = f"https://localhost:{peer.address[1]}"
    (error,) = sent(address, CREDENTIALS)
    assert isinstance(error, ConnectFailed)
    assert "certificate verify failed" in str(error)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert sent(address, CREDENTIALS, commands=[Alloc("x"), Alloc("y")]) == [None, None]
    assert len(peer.received) == 2


def test_who_does_not_use_it_does_not_import_asyncio():
    code = "import sys, cpdaemon; print('asyncio' in sys.modules, hasattr(cpdaemon, 'no'), 'asyncio' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False", "False"]
    assert cpdaemon.AsyncClient is AsyncClient
