"""Threads that meet an error which nobody expected: whoever relies on them is told, and no client is left waiting."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest

from cpdaemon import Client
from cpsim.daemon.courier import Courier
from cpsim.daemon.listener import Listener
from cpsim.daemon.memory import MemorySpool
from cpsim.daemon.site import Daemon
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake, FakeProcess
from cpsim.faults.plan import FaultPlan
from cpsim.server.dashboard.watch import Watch
from cpsim.server.http import Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer
from cpsim.store.log import Log
from cpsim.system.threads import Thread, ThreadFailed, on_thread_failure
from cpsim.testing import CreditPiggy

LONG_S = 60
BOOM = "RuntimeError: boom"


def boom(*_):
    raise RuntimeError("boom")


@pytest.fixture
def failed():
    """Set once a thread has failed."""
    event = threading.Event()
    with on_thread_failure(lambda _: event.set()):
        yield event


def test_the_error_that_ends_a_thread_is_told_and_kept(failed, caplog):
    thread = Thread(boom, "cpsim-test")
    thread.check()
    thread.start()
    thread.join()
    assert failed.is_set()
    assert "thread cpsim-test failed" in caplog.text
    for _ in range(2):
        with pytest.raises(ThreadFailed, match=f"thread cpsim-test failed: {BOOM}"):
            thread.check()


def test_a_listener(failed):
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    listener = Listener([listening], boom)
    listener.open()
    listener.start()
    with socket.create_connection(address, LONG_S) as waiting, socket.create_connection(address, LONG_S) as client:
        client.sendall(b"alloc,slot=a\n")
        assert failed.wait(LONG_S)
        with pytest.raises(ThreadFailed, match=BOOM):
            listener.check()
        assert waiting.recv(1) == b""  # nobody waits for an answer that does not come
    listener.stop()


class Broken:
    """A server that no courier can have to do with."""

    knows_batches = post = give_up = boom


def test_a_courier(failed):
    spool = MemorySpool()
    courier = Courier(spool, Broken(), 0.0)
    courier.start()
    courier.check()
    spool.put([("alloc", {"slot": "a"})])
    assert failed.wait(LONG_S)
    with pytest.raises(ThreadFailed, match=f"thread cpsim-courier failed: {BOOM}"):
        courier.check()
    assert courier.stop(LONG_S)


def test_a_daemon(here, failed):
    daemon = Daemon(Broken(), "p", unix=here / "cp.sock")
    daemon.bind()
    daemon.start()
    with Client("./cp.sock") as client:
        client.alloc("a")
    assert failed.wait(LONG_S)
    with pytest.raises(ThreadFailed, match=BOOM):
        daemon.stop()
    assert not (here / "cp.sock").exists()


def test_the_writer_of_a_log_tells_the_others_all_the_same(here, failed):
    log = Log(here / "log", "TEST")
    written, go_on, outcome = threading.Event(), threading.Event(), threading.Event()
    log.append(["first"], then=lambda _: (written.set(), go_on.wait(LONG_S)))
    assert written.wait(LONG_S)
    log.append(["a"], then=boom)  # in one commit with the next
    log.append(["b"], then=lambda _: outcome.set())
    go_on.set()
    assert outcome.wait(LONG_S)
    assert failed.is_set()
    log.wait(records=["c"])
    with pytest.raises(ThreadFailed, match=BOOM):
        log.check()
    log.close()
    with closing(Log(here / "log", "TEST")) as log:
        assert [record for _, record in log.read(0, 9, 9)] == ["first", "a", "b", "c"]


def test_a_server(failed):
    class Breaking(FaultPlan):
        asked = 0

        def next_change_s(self, _):
            self.asked += 1
            return 0.0 if self.asked == 1 else boom()

    server = HttpServer(Api(AccountServer({"p": "s"})), [socket.create_server(("127.0.0.1", 0))], Breaking([]))
    server.start()
    assert failed.wait(LONG_S)
    with pytest.raises(ThreadFailed, match=f"thread cpsim-http failed: {BOOM}"):
        server.check()
    server.stop()


def test_what_watches_for_the_dashboard(failed):
    with Fake({"p": "s"}) as fake:
        watch = Watch(fake.accounts, boom)
        watch.start()
        assert failed.wait(LONG_S)
        watch.close()
        with pytest.raises(ThreadFailed, match=BOOM):
            watch.check()


@pytest.fixture
def cannot_apply(monkeypatch):
    """A context in which no accounts can apply a command."""

    @contextmanager
    def cannot_apply():
        with monkeypatch.context() as patch:
            patch.setattr(AccountServer, "apply", boom)
            yield

    return cannot_apply


def test_a_fake(here, failed, cannot_apply):
    with cannot_apply():
        fake = Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, store=here / "store")
        fake.start()
        with Client("./cp.sock") as client:
            client.alloc("a")
        assert failed.wait(LONG_S)
    for look in (fake.wait_until_idle, fake.stop):
        with pytest.raises(ThreadFailed, match=BOOM):
            look()
    assert not (here / "cp.sock").exists()
    fake = Fake({"p": "s"}, store=here / "store")  # which has been closed
    fake.start()
    fake.stop()


@pytest.mark.parametrize("flush_interval_s", [0.0, 0.001])
def test_what_a_test_looks_at(failed, cannot_apply, flush_interval_s):
    with cannot_apply():
        creditpiggy = CreditPiggy(flush_interval_s=flush_interval_s)
        creditpiggy.start()
        with Client(creditpiggy.endpoint) as client:
            client.alloc("a")
        assert failed.wait(LONG_S)
    looks = (lambda: creditpiggy.slots, creditpiggy.wait_until_idle, lambda: creditpiggy.wait_for_claim("a"))
    for look in (*looks, creditpiggy.stop):
        with pytest.raises(ThreadFailed, match=BOOM):
            look()


PROCESSES = {
    "daemon": (
        "import cpsim.daemon.client as broken; broken.BulkClient.knows_batches = boom",
        "daemon --spool spool --server http://127.0.0.1:1/api --project p --secret-file secret --unix cp.sock",
    ),
    "serve": (
        "import cpsim.server.service as broken; broken.AccountServer.apply = boom",
        "serve --unix cp.sock",
    ),
    "record": (
        "import cpsim.record.exchanges as broken; broken.FrameExchange.on_client_data = boom",
        "record --listen ./cp.sock --target ./target.sock -o trace.csv",
    ),
    "record's tasks": (
        "import cpsim.record.relay as broken; broken.TargetSide.connection_made = boom",
        "record --listen ./cp.sock --target ./target.sock -o trace.csv",
    ),
}


BREAKING = """
import sys
def boom(*_, **__):
    raise RuntimeError("boom")
"""


@contextmanager
def started(program, *arguments):
    """A Python program; killed in the end."""
    command = [sys.executable, "-c", BREAKING + program, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.thorough
@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_ends_with_a_message(here, name):
    (here / "secret").write_text("s")
    breaking, arguments = PROCESSES[name]
    program = f"{breaking}\nsys.argv[0] = 'cpsim'\nfrom cpsim.cli import main\nmain()"
    with Fake({"p": "s"}, unix=here / "target.sock"), started(program, *arguments.split()) as process:
        assert process.stdout.readline()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG_S)
            client.connect("cp.sock")
            client.sendall(b"alloc,slot=a\n")
            _, error = process.communicate(timeout=LONG_S)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("cpsim: ")
    assert error.splitlines()[-1].endswith(BOOM)
    assert not (here / "cp.sock").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("store", [None, "store"])
def test_an_embedded_fake_ends_while_it_waits_for_its_caller(here, store):
    program = "import cpsim.server.service as broken; broken.AccountServer.apply = boom\n"
    with started(f"{program}from cpsim.fake.process import main; main()") as process:
        life = {"projects": {"p": "s"}, "unix": "cp.sock", "sites": [], "store": store}
        process.stdin.write(json.dumps(life) + "\n")
        process.stdin.flush()
        assert process.stdout.readline()
        with Client("./cp.sock") as client:
            client.alloc("a")
        assert process.wait(LONG_S) == 2
        assert process.stderr.read().endswith(f"failed: {BOOM}\n")


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="nothing says which process it is")
def test_an_embedded_fake_that_has_failed_is_told(here):
    def serve_and_die():
        with FakeProcess() as process, socket.socket(socket.AF_UNIX) as client:
            process.serve({"p": "s"}, here / "cp.sock")
            client.connect("cp.sock")
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            os.kill(struct.unpack("3i", credentials)[0], signal.SIGKILL)

    with pytest.raises(CpsimError, match="the embedded fake ended with status -9"):
        serve_and_die()
