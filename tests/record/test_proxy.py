"""Faults in front of a daemon and a server that are not the proxy's, through the command and real sockets."""

import http.client
import json
import os
import re
import signal
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from cpdaemon import Client
from cpdaemon.errors import BadReply, ConnectFailed, Refused, ReplyLost
from cpsim.fake import ANY_PORT, Fake

from .conftest import PROJECT, SECRET, rows


@pytest.fixture
def site(here):
    """A site that knows of no faults."""
    with Fake({PROJECT: SECRET}, unix=Path("site.sock"), tcp=ANY_PORT, http=ANY_PORT) as site:
        yield site


@pytest.fixture
def proxied(cpsim, wait_for):
    """proxied(use, *arguments): what `use(addresses)` returns, called while the command runs, and what that printed."""

    def call(use, target, *options):
        listen = ":0" if urlsplit(str(target)).scheme or "/" not in str(target) else "./proxy.sock"
        used = Future()

        def work():
            try:
                wait_for(lambda: Path("ready").exists() or ended.is_set())
                addresses = dict(line.split(" ", 1) for line in Path("ready").read_text("utf-8").splitlines())
                used.set_result(use(SimpleNamespace(**addresses)))
            except BaseException as error:  # noqa: BLE001 - the test gets it
                used.set_exception(error)
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

        ended = threading.Event()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            result = cpsim("proxy", "--listen", listen, "--target", target, "--ready-file", "ready", *options)
        finally:
            ended.set()
            thread.join()
        assert result.returncode == 0, result.stderr
        return used.result(), result.stdout

    return call


def said(address, frame):
    """The answer to one frame, or the error."""
    is_unix = "/" in address
    with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET) as client:
        client.settimeout(100)
        try:
            client.connect(address if is_unix else (address.split(":")[0], int(address.split(":")[1])))
            client.sendall(frame)
            return b"".join(iter(lambda: client.recv(100), b""))
        except OSError as error:
            return type(error)


def slots(site):
    """The ids of the slots in the accounts."""
    site.wait_until_idle()
    with site.accounts.reading() as ledger:
        return sorted(ledger.project(PROJECT).slots)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_faults_at_a_daemon(kind, site, proxied):
    frames = {
        "plain": (b"OK", True),
        "late": (b"OK", True),
        "lose": (b"", True),
        "close": (b"", False),
        "reset": (b"" if kind == "unix" else ConnectionResetError, False),
        "error": (b"ER", False),
        "pieces": (b"OK", True),
    }
    faults = ["late=0.01", "lose-reply", "close", "reset", "error", "pieces=0.01"]
    options = [f"--fault={fault}:slot={fault.partition('=')[0].partition('-')[0]}" for fault in faults]

    def use(proxy):
        found = {slot: said(getattr(proxy, kind), f"alloc,slot={slot},credits=1\n".encode()) for slot in frames}
        return found, said(getattr(proxy, kind), b"nonsense\n"), said(getattr(proxy, kind), b"alloc,slot=x,credits=2")

    (found, malformed, unended), printed = proxied(use, site.addresses[kind], *options)
    assert found == {slot: answer for slot, (answer, _) in frames.items()}
    assert (malformed, unended) == (b"ER", b"OK")
    assert slots(site) == sorted([slot for slot, (_, is_applied) in frames.items() if is_applied] + ["x"])
    assert printed.count("selected 1, fired 1") == len(faults)


def test_a_late_command_reaches_the_daemon_after_its_client_has_left(site, proxied, wait_for):
    def use(proxy):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(proxy.unix)
            client.sendall(b"alloc,slot=job-1,credits=1\n")
        wait_for(lambda: slots(site) == ["job-1"])

    proxied(use, site.addresses["unix"], "--fault", "late=0.05")


def api(client, address, path, faults=None):
    """The status of a control request, and its answer."""
    body = None if faults is None else json.dumps(faults)
    client.request("GET" if body is None else "POST", f"/__cpsim/{path}", body, {"Host": address})
    response = client.getresponse()
    return response.status, json.loads(response.read())


def test_faults_are_switched_at_run_time(site, proxied):
    def use(proxy):
        address = urlsplit(proxy.control).netloc
        client = http.client.HTTPConnection(address, timeout=100)
        answers = [said(proxy.unix, b"alloc,slot=a,credits=1\n")]
        for action in ("refuse", "error:kind=alloc"):
            status, listed = api(client, address, "faults/add", [action])
            assert (status, [fault["fault"] for fault in listed]) == (200, [f"daemon.{action}"])
            answers.append(said(proxy.unix, b"alloc,slot=b,credits=1\n"))
            assert api(client, address, "faults/remove", [action]) == (200, [])
            answers.append(said(proxy.unix, b"alloc,slot=c,credits=1\n"))
        assert api(client, address, "faults", ["hang"])[0] == 200
        with socket.socket(socket.AF_UNIX) as held:
            held.settimeout(100)
            held.connect(proxy.unix)
            held.sendall(b"alloc,slot=d,credits=1\n")
            while not api(client, address, "faults")[1][0]["fired"]:
                pass
            assert api(client, address, "faults", []) == (200, [])
            assert held.recv(10) == b""
        fired = [(firing["action"], firing["slot"]) for firing in api(client, address, "firings")[1]["items"]]
        mistakes = [api(client, address, "faults/add", [fault])[1]["message"] for fault in ("cut", "crash-before-ok")]
        refused = [api(client, address, name)[0] for name in ("totals", "faults/add", "firings?limit=0")]
        described = api(client, address, "openapi.json")[1]["paths"]
        client.close()
        return answers, fired, mistakes, refused, described

    (answers, fired, mistakes, refused, described), _ = proxied(use, site.addresses["unix"], "--control", "127.0.0.1:0")
    assert answers.pop(1) in {ConnectionRefusedError, FileNotFoundError}
    assert answers == [b"OK", b"OK", b"ER", b"OK"]
    assert fired == [("refuse", ""), ("error", "b"), ("hang", "d")]
    assert "one of a server, and the target is a daemon" in mistakes[0]
    assert "cannot end the process of its target" in mistakes[1]
    assert refused == [404, 405, 400]
    assert {path.removeprefix("/__cpsim/") for path in described} == {
        "faults",
        "faults/add",
        "faults/remove",
        "firings",
    }
    assert slots(site) == ["a", "c"]


def test_faults_at_a_server(site, proxied):
    errors = {
        "plain": None,
        "late": None,
        "lose": ReplyLost,
        "close": ReplyLost,
        "reset": ReplyLost,
        "cut": ReplyLost,
        "status": Refused,
        "not": BadReply,
    }
    faults = ["late=0.01", "lose-reply", "close", "reset", "cut", "status=409", "not-json"]
    options = [f"--fault={fault}:slot={fault.partition('=')[0].partition('-')[0]}" for fault in faults]

    def use(proxy):
        found = {}
        with Client(proxy.http, (PROJECT, SECRET), timeout_s=100) as client:
            for slot in errors:
                found[slot] = None
                try:
                    client.alloc(slot, credits=1)
                except (ReplyLost, Refused, BadReply) as error:
                    found[slot] = type(error)
        return found

    found, printed = proxied(use, site.addresses["http"], *options, "--output", "traffic.csv")
    assert found == errors
    assert slots(site) == ["cut", "late", "lose", "plain"]
    assert printed.count("selected 1, fired 1") == len(faults)
    recorded = {row["slot"]: row["outcome"] for row in rows(Path("traffic.csv"))}
    assert recorded.keys() == errors.keys()
    assert [recorded[slot] for slot in ("plain", "lose", "cut", "status")] == [
        "accepted",
        "unknown",
        "unknown",
        "refused",
    ]


@pytest.mark.parametrize("kind", ["unix", "http"])
def test_commands_wait_for_their_turn(kind, site, proxied, wait_for):
    rates = ["rate=100:slot=fast-*", "rate=0.01:slot=slow-*"]
    options = [f"--fault={fault}" for fault in rates + ["pieces=0.01"] * (kind == "unix")]

    def use(proxy):
        address = urlsplit(proxy.control).netloc
        control = http.client.HTTPConnection(address, timeout=100)
        given = (proxy.unix,) if kind == "unix" else (proxy.http, (PROJECT, SECRET))

        def alloc(slot):
            with Client(*given, timeout_s=100) as client:
                client.alloc(slot, credits=1)

        def be_held():
            try:
                alloc("slow-2")
            except ReplyLost as error:
                lost.append(error)

        lost = []
        for slot in ("fast-1", "fast-2", "fast-3", "slow-1"):
            alloc(slot)
        held = threading.Thread(target=be_held)
        held.start()
        wait_for(lambda: api(control, address, "faults")[1][1]["fired"] == 2)
        assert api(control, address, "faults/remove", rates[1:])[0] == 200
        held.join()
        alloc("slow-3")
        control.close()
        return len(lost)

    closed, _ = proxied(use, site.addresses[kind], *options, "--control", "127.0.0.1:0")
    assert closed == 1
    assert slots(site) == ["fast-1", "fast-2", "fast-3", "slow-1", "slow-3"]


def test_requests_in_one_read_and_in_pieces_are_told_apart(site, proxied):
    first = b"POST /api/none HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab\r\n\r"
    second = b"POST /api/alloc HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n"
    third = b"GET /api/batch/claim HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    def use(proxy):
        host, port = urlsplit(proxy.http).netloc.split(":")
        statuses, everything = [], first + second + third
        for size in (len(everything), 7):
            with socket.create_connection((host, int(port)), timeout=100) as client:
                for at in range(0, len(everything), size):
                    client.sendall(everything[at : at + size])
                answer = b"".join(iter(lambda: client.recv(4096), b""))
            statuses.append(re.findall(rb"HTTP/1.1 (\d+)", answer))
        return statuses

    statuses, _ = proxied(use, site.addresses["http"], "--fault=status=418:kind=alloc")
    assert statuses == [[b"404", b"418", b"400"]] * 2


def test_a_server_is_down_for_clients_that_are_connected_too(site, proxied):
    def use(proxy):
        address = urlsplit(proxy.control).netloc
        control = http.client.HTTPConnection(address, timeout=100)
        with Client(proxy.http, (PROJECT, SECRET), timeout_s=100) as client:
            client.alloc("before")
            api(control, address, "faults/add", ["down"])
            with pytest.raises(ConnectFailed):
                client.alloc("refused")
            api(control, address, "faults/remove", ["down"])
            client.alloc("after")
        control.close()

    proxied(use, site.addresses["http"], "--control", "127.0.0.1:0")
    assert slots(site) == ["after", "before"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--fault", "cut"], 64, "one of a server, and the target is a daemon"),
        (["--fault", "late=1:kind=bulk"], 64, "kind is 'bulk'"),
        (["--fault", "late=1:project=p"], 64, "leave out project"),
        (["--fault", "crash-before-ok"], 64, "cannot end the process of its target"),
        (["--control", "0.0.0.0:0"], 64, "give --control-token-file"),
        (["--pseudonymise"], 64, "give --output too"),
        (["--control", "{taken}"], 2, "cannot listen at {taken}"),
        (["--listen", "{taken}"], 2, "cannot listen at {taken}"),
        (["--listen", "./site.sock"], 64, "give two addresses"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_mistakes_are_told_before_anything_is_served(arguments, status, message, cpsim, here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        given = [argument.replace("{taken}", address) for argument in arguments]
        result = cpsim("proxy", "--listen", "./own.sock", "--target", "./site.sock", *given)
    assert result.returncode == status
    assert message.replace("{taken}", address) in result.stderr


def test_a_target_that_cannot_be_reached_is_told(cpsim, proxied):
    found, _ = proxied(lambda proxy: said(proxy.unix, b"alloc,slot=a\n"), "./nobody.sock")
    assert found in {ConnectionRefusedError, FileNotFoundError}
