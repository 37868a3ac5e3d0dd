"""A daemon that takes nothing new, delivers what it has, and ends."""

import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cpdaemon import Client
from cpdaemon.errors import ConnectFailed
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_status
from cpsim.fake import ANY_PORT, Fake

GUARD_S = 60.0


class Server:
    """A server that cannot be reached until it is let."""

    def __init__(self):
        self.reachable = threading.Event()
        self.tried = threading.Event()
        self.batches = []

    def knows_batches(self):
        return True

    def post(self, _, calls):
        self.tried.set()
        if not self.reachable.is_set():
            raise ConnectFailed("down")
        self.batches.append([arguments["slot"] for _, arguments in calls])
        return [None] * len(calls)

    def give_up(self, *_):
        raise ConnectFailed("down")


@pytest.mark.parametrize("durable", [True, False])
def test_a_drain_takes_nothing_new_and_retries_until_all_is_delivered(here, durable):
    server, drained = Server(), threading.Event()
    spool = Spool(Path("spool")) if durable else None
    with Daemon(server, "p", unix=Path("socket"), spool=spool, flush_interval_s=3_600, max_backoff_s=0.001) as daemon:
        with Client("./socket") as client:
            client.alloc("a")
            client.alloc("b")
            daemon.drain(drained.set)
            with pytest.raises(ConnectFailed):
                client.alloc("c")
        assert server.tried.wait(GUARD_S)  # at once, whatever the flush interval
        assert not drained.is_set()
        assert daemon.pending == 2
        server.reachable.set()
        assert drained.wait(GUARD_S)
        assert (daemon.pending, server.batches) == (0, [["a", "b"]])


def test_a_drain_without_anything_to_deliver_has_ended(here):
    drained = threading.Event()
    with Daemon(Server(), "p", unix=Path("socket")) as daemon:
        daemon.drain(drained.set)
        assert drained.wait(GUARD_S)


def test_a_drain_can_be_stopped(here):
    server = Server()
    with Daemon(server, "p", unix=Path("socket"), spool=Spool(Path("spool"))) as daemon:
        with Client("./socket") as client:
            client.alloc("a")
        daemon.drain(lambda: None)
        assert server.tried.wait(GUARD_S)
    assert read_status(Path("spool")).queued == 1


@pytest.fixture
def drain(here, cpsim):
    """Return drain(url, *options) -> (status, output, error) of a drain of the spool `spool`, which has a command."""
    with closing(Spool(Path("spool"))) as spool:
        spool.put(["alloc,slot=a"], {}, lambda _: None)
    Path("secret").write_text("s")
    settings = ("--spool", "spool", "--project", "p", "--secret-file", "secret", "--unix", "socket", "--drain")
    return lambda url, *options: cpsim("daemon", "--server", url, *settings, *options)


def test_a_stopped_daemons_spool_is_drained(drain):
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        assert drain(fake.addresses["http"])[:2] == (0, "")
        with fake.accounts.reading() as ledger:
            assert list(ledger.project("p").slots) == ["a"]
    assert read_status(Path("spool")).queued == 0
    assert not Path("socket").exists()


def test_what_remains_after_the_time_is_said(drain):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
    status, _, error = drain(url, "--drain-timeout", "0")
    assert (status, error.splitlines()[-1]) == (1, "cpsim: the drain has left 1 commands in spool, undelivered")
    assert read_status(Path("spool")).queued == 1


def test_a_spool_that_is_not_there_is_not_drained(drain):
    assert drain("http://127.0.0.1:1/api", "--spool", "sppol") == (2, "", "cpsim: there is no spool sppol\n")
    assert not Path("sppol").exists()


def test_a_drain_needs_a_spool(here, cpsim):
    Path("secret").write_text("s")
    settings = ("--server", "http://127.0.0.1:1/api", "--project", "p", "--secret-file", "secret")
    status, _, error = cpsim("daemon", *settings, "--profile", "deployed", "--drain")
    assert (status, "give --spool FILE" in error) == (64, True)
