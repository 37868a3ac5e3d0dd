"""Signals of what serves: SIGHUP has files read again, the others end it in order, and nothing is left."""

import os
import pty
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpdaemon import Alloc, Client
from cpdaemon.endpoint import parse_endpoint
from cpsim.net.http.client import fetch
from cpsim.system.signals import Signals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [False, True])
def test_hangups_have_files_read_again_until_the_end(number, ignored):
    """Also where `nohup` had them ignored; what there was before is there again afterwards."""
    handlers = [signal.SIG_IGN if ignored else signal.SIG_DFL, signal.getsignal(number)]
    first = signal.signal(signal.SIGHUP, handlers[0])
    try:
        with Signals() as signals:
            read = []
            send(signal.SIGHUP)
            send(signal.SIGHUP)
            send(number)
            signals.wait(lambda: read.append(1))
        assert len(read) == 2
        assert [signal.getsignal(signal.SIGHUP), signal.getsignal(number)] == handlers
    finally:
        signal.signal(signal.SIGHUP, first)


def test_a_signal_ends_it_whichever_thread_it_interrupts():
    """The main thread, which waits, takes none."""
    with Signals() as signals:
        thread = threading.Thread(target=signal.raise_signal, args=(signal.SIGTERM,))
        thread.start()
        signals.wait(pytest.fail)
        thread.join()


def test_a_thread_can_end_it():
    with Signals() as signals:
        threading.Thread(target=signals.end).start()
        signals.wait(pytest.fail)


SCRIPT = """
from cpsim.system.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    signals.wait(lambda: print("again", flush=True))
open("ended", "w").close()
"""


@pytest.mark.thorough
def test_a_terminal_that_is_closed_ends_it(here, wait_for):
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT])
    said = b""

    def has(word):
        nonlocal said
        while word not in said:
            said += os.read(terminal, 100)

    has(b"ready\r\n")
    os.kill(process, signal.SIGHUP)
    has(b"again\r\n")
    os.close(terminal)
    assert os.waitpid(process, 0)[1] == 0
    assert (here / "ended").exists()


@contextmanager
def meanwhile(work):
    """Do something in a thread while the main one serves, which ends with it; its error is raised here."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again
            errors.append(error)
        finally:
            send(signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    for error in errors:
        raise error


def test_a_server_reads_its_secrets_again_and_drops_no_connection(here, cpsim, wait_for):
    secret, token, ready = Path("secret"), Path("token"), Path("ready")
    secret.write_text("old")
    token.write_text("old token")
    statuses = []

    def totals(shown):
        endpoint = parse_endpoint(next(line for line in ready.read_text().split() if line.startswith("http:")))
        headers = {"Authorization": f"Bearer {shown}"}
        return fetch(endpoint, "GET", "/__cpsim/totals", headers=headers, connect_s=60, timeout_s=60)[0]

    def work():
        wait_for(ready.exists)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("cp.sock")
            secret.write_text("new")
            token.write_text("new token")
            send(signal.SIGHUP)
            wait_for(lambda: totals("new token") == 200)
            statuses.append(totals("old token"))
            sock.sendall(b"alloc,slot=a,credits=5\n")
            assert sock.recv(100) == b"OK"
        url = ready.read_text().split()[-1]
        for known in ("new", "old"):
            with Client(url, ("p", known)) as client:
                outcome = client.send_many([Alloc(known)])[0]
                statuses.append(200 if outcome.error is None else outcome.error.status)
        secret.write_text("")
        send(signal.SIGHUP)
        wait_for(lambda: "stay as they were" in sys.stderr.getvalue())

    options = ["--project", "p", "--secret-file", secret, "--control-token-file", token, "--ready-file", ready]
    with meanwhile(work):
        status, _, err = cpsim("serve", "--unix", "cp.sock", "--http", "127.0.0.1:0", "--store", "store", *options)
    assert (status, statuses) == (0, [401, 200, 401])
    first, second = err.splitlines()
    assert first == "cpsim: SIGHUP: the secrets were read again"
    assert second.startswith("cpsim: SIGHUP: the secrets stay as they were: --secret-file secret is empty")
    assert sorted(path.name for path in here.iterdir()) == ["secret", "store", "store.p.spool", "token"]
