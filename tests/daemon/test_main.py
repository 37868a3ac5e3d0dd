"""`cpsim daemon` as a process of its own."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest

from cpdaemon import Client
from cpdaemon.endpoint import parse_endpoint
from cpsim.daemon.courier import HttpServer
from cpsim.daemon.spool import read_status
from cpsim.fake import ANY_PORT, Fake

SECRET = "hush%hush"
CPSIM = (sys.executable, "-P", "-m", "cpsim")


@pytest.fixture
def server():
    with Fake({"p": SECRET}, http=ANY_PORT) as fake:
        yield fake


@pytest.fixture
def ini(here):
    """Return ini(url, **over) -> the path of a deployed daemon's configuration."""

    def write(url):
        path = here / "creditapi.ini"
        path.write_text(
            f"[api]\napi_url={url}\napi_key=p\napi_secret={SECRET}\nflush_interval=0\n"
            "[server]\nsocket=unix\nbind=cp.sock\npidfile=pid\nlogfile=log\nloglevel=DEBUG\n"
        )
        return path

    return write


@contextmanager
def running(here, *options):
    """A daemon, stopped in the end."""
    command = [*CPSIM, "daemon", "--spool", "spool", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline()
        try:
            yield process, address
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def told(*options):
    run = subprocess.run([*CPSIM, "daemon", *options], capture_output=True, text=True, check=False, timeout=30)
    return run.returncode, run.stdout, run.stderr


def test_the_deployed_configuration(here, server, ini):
    with running(here, "--config", str(ini(server.addresses["http"]))) as (process, address):
        assert address == "unix cp.sock\n"
        assert (here / "pid").read_text() == f"{process.pid}\n"
        with Client("./cp.sock") as client:
            client.alloc("a", credits=5)
            client.counters("a", events=3)
            client.claim("a", "m")
            client.claim("never", "m")
        json_status = json.loads(told("--spool", "spool", "--status", "--json")[1])
        assert json_status["running"] is True
    with server.accounts.reading() as ledger:
        slot = ledger.project("p").slots["a"]
        assert (slot.state, slot.granted, slot.counters) == ("claimed", 5, {"events": 3})
    assert not (here / "pid").exists()
    assert not (here / "cp.sock").exists()
    log = (here / "log").read_text()
    assert "listening at unix cp.sock" in log
    assert "never allocated" in log
    assert SECRET not in log

    status, out, _ = told("--spool", "spool", "--status")
    assert status == 0
    assert out.splitlines()[:4] == ["running     no", "queued      0", "oldest s    0.0", "delivered   3"]
    status, out, _ = told("--spool", "spool", "--failed")
    assert "  refused  claim,slot=never,machine=m  slot 'never' was never allocated" in out
    (failed,) = json.loads(told("--spool", "spool", "--failed", "--json")[1])
    assert (failed["why"], failed["command"]) == ("refused", "claim,slot=never,machine=m")


def test_options_without_a_configuration(here, server):
    (here / "secret").write_text(SECRET)
    options = (
        "--server",
        server.addresses["http"],
        "--project",
        "p",
        "--secret-file",
        "secret",
        "--tcp",
        "127.0.0.1:0",
    )
    with running(here, *options, "--flush-interval", "0", "--ready-file", "ready") as (_, address):
        assert (here / "ready").read_text() == address
        with Client(address.split()[1]) as client:
            client.alloc("a")
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a"]


def test_what_a_server_that_is_down_cannot_take_stays(here, server, ini):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
    path = ini(nowhere)
    for slot in ("a", "b"):
        with running(here, "--config", str(path)), Client("./cp.sock") as client:
            client.alloc(slot)
    status = read_status(here / "spool")
    assert (status.running, status.queued, status.delivered) == (False, 2, 0)
    assert status.oldest_s > 0
    with running(here, "--config", str(ini(server.addresses["http"]))):
        pass
    assert read_status(here / "spool").delivered == 2
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a", "b"]


def test_a_second_daemon_on_one_spool(here, server, ini):
    path = str(ini(server.addresses["http"]))
    with running(here, "--config", path):
        status, _, error = told("--config", path, "--spool", "spool", "--unix", "other.sock")
        assert (status, error) == (2, "cpsim: spool is in use by another process; stop it, or name another file\n")
    assert not (here / "other.sock").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give --spool FILE"),
        (("--spool", "s"), "give --unix or --tcp"),
        (("--spool", "s", "--unix", "u"), "give --server"),
        (("--spool", "s", "--unix", "u", "--server", "http://x/api"), "give --project"),
        (("--spool", "s", "--unix", "u", "--tcp", "127.0.0.1:0"), "exclude one another"),
        (("--spool", "s", "--unix", "u", "--server", "127.0.0.1:1"), "must be a URL"),
    ],
)
def test_wrong_usage(here, options, said):
    status, _, error = told(*options)
    assert status == 64
    assert said in error
    assert list(here.iterdir()) == []


def test_a_spool_that_is_not_there(here):
    assert told("--spool", "s", "--status") == (2, "", "cpsim: there is no spool s\n")


def test_the_server_applies_a_batch_once(server):
    alloc, claim = ("alloc", {"slot": "a"}), ("claim", {"slot": "b", "machine": "m"})
    with closing(HttpServer(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender:
        assert sender.knows_batches()
        first = [str(error) for error in sender.post("id", [alloc, claim])]
        assert first == ["None", "slot 'b' was never allocated"]
        assert [str(error) for error in sender.post("id", [alloc, claim])] == first
        assert [error is None for error in sender.post("id", [alloc])] == [False]
        assert [error is None for error in sender.post("other", [("counters", {"slot": "a", "x": 1})])] == [True]
    with server.accounts.reading() as ledger:
        assert ledger.project("p").slots["a"].counters == {"x": 1}


def test_a_server_that_breaks_off_batches_does_not_know_them(here):
    with (
        Fake({"p": SECRET}, http=ANY_PORT, quirks=frozenset({"bulk-abort"})) as fake,
        closing(HttpServer(parse_endpoint(fake.addresses["http"]), ("p", SECRET), 5)) as sender,
    ):
        assert not sender.knows_batches()
