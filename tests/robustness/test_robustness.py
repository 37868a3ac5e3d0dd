"""The scripts that bother the fake, at a small size."""

import json
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from cpdaemon import Client, parse_endpoint
from cpsim.fake import ANY_PORT, Fake

pytestmark = pytest.mark.timeout(400)


def run(script, *options):
    command = [sys.executable, Path(__file__).with_name(script), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    figures = json.loads(done.stdout)
    assert done.returncode == 0, figures
    return figures


def test_malformed_frames_and_requests_are_answered_or_closed():
    figures = run("fuzz.py", "--frames", "1000", "--bodies", "2000", "--seed", "3")
    assert figures["frames"]["answers"]["ER"] > 900
    assert figures["bodies"]["answers"]["400"] > 500
    assert {"401", "500", "closed"} <= figures["bodies"]["answers"].keys()


def test_idle_connections_starve_nobody():
    figures = run("idle.py", "--connections", "300", "--commands", "20")
    assert figures.keys() == {"unix", "tcp", "http"}


IDLE, COMMANDS = 300, 300


@pytest.mark.parametrize("kind", ["unix", "tcp", "http"])
def test_a_command_takes_no_more_steps_beside_idle_connections(tmp_path, kind):
    """Counted in functions that are called in the threads of the fake: to look at each idle one would be IDLE more."""
    called = [0]

    def count(frame, event, argument):
        called[0] += event in {"call", "c_call"}

    threading.setprofile(count)
    with ExitStack() as stack:
        stack.callback(threading.setprofile, None)
        fake = stack.enter_context(Fake({"p": "s"}, unix=tmp_path / "d.sock", tcp=ANY_PORT, http=ANY_PORT))
        where = parse_endpoint(fake.addresses[kind])
        client = stack.enter_context(Client(where, ("p", "s") if kind == "http" else None))

        def steps(prefix):
            before = called[0]
            for number in range(COMMANDS):
                client.alloc(f"{prefix}-{number}")
            fake.wait_until_idle(100)
            return (called[0] - before) / COMMANDS

        alone = steps("alone")
        assert alone > 1
        for _ in range(IDLE):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET))
            sock.connect(where.path if kind == "unix" else (where.host, where.port))
        assert steps("beside") - alone < IDLE / 2


def test_what_is_soaked_stays_as_it_was():
    figures = run("soak.py", "--minutes", "0", "--round", "1", "--rate", "500", "--pause", "0.2")
    assert figures["rounds"] == 4
    assert figures["last"]["operations"] > 400
