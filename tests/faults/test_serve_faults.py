"""Faults of `cpsim serve`: from options and from a file, and crashes that are real."""

import signal
import subprocess
import sys
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner

from cpdaemon import Client
from cpdaemon.errors import BadReply, CreditPiggyError, ReplyLost
from cpsim.cli import cli
from cpsim.errors import CpsimError
from cpsim.fake import Fake
from cpsim.faults.spec import ACTIONS, KEYS


@contextmanager
def served(*options):
    """Addresses of a `cpsim serve` with options, and its process."""
    command = [sys.executable, "-P", "-m", "cpsim", "serve", "--http", "127.0.0.1:0", "--unix", "cp.sock", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        addresses = dict(process.stdout.readline().split() for _ in range(2))
        yield addresses, process
    finally:
        process.kill()
        process.communicate()


def test_faults_from_options(here):
    with (
        served("--fault", "server.status=503:kind=alloc,nth=2", "--seed", "3") as (addresses, _),
        Client(addresses["http"], ("demo", "demo")) as client,
    ):
        client.alloc("a")
        with pytest.raises(BadReply, match="503"):
            client.alloc("b")
        client.alloc("c")


def test_faults_from_a_file(here):
    (here / "serve.toml").write_text('faults = ["daemon.lose-reply:count=1"]\nseed = 2\n')
    with served("--config", "serve.toml") as (addresses, _), Client(addresses["unix"]) as client:
        with pytest.raises(ReplyLost):
            client.alloc("a")
        client.alloc("b")


@pytest.mark.parametrize(
    ("fault", "survives"),
    [
        ("daemon.crash-before-ok", False),
        ("daemon.crash-after-ok", True),
        ("daemon.crash-after-commit", True),
        ("server.crash-after-commit", True),
    ],
)
def test_what_a_crash_leaves(here, fault, survives):
    """A command that was answered, or that the accounts had, is there after the crash, once."""
    kind, credentials = ("http", ("demo", "demo")) if fault.startswith("server") else ("unix", None)
    with served("--store", "accounts", "--fault", f"{fault}:slot=fatal") as (addresses, process):
        with Client(addresses[kind], credentials) as client:
            client.alloc("harmless")
            try:
                client.alloc("fatal")
            except CreditPiggyError:
                assert fault != "daemon.crash-after-ok"
        assert process.wait(10) == -signal.SIGKILL
        assert process.stderr.read() == f"cpsim: warning: {fault}, for alloc of slot 'fatal': this process dies\n"
    with served("--store", "accounts") as (addresses, process):
        with Client(addresses["unix"]) as client:
            client.discard("fatal")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    with Fake({"demo": "demo"}, store=here / "accounts") as fake, fake.accounts.reading() as ledger:
        assert list(ledger.project("demo").slots) == ["harmless", *(["fatal"] if survives else [])]


def test_what_waits_in_a_spool_that_is_not_served_is_told(here):
    (here / "serve.toml").write_text('[[daemon]]\nproject = "demo"\nunix = "cp.sock"\nflush_interval = 60\n')
    with served("--store", "accounts", "--config", "serve.toml") as (addresses, process):
        with Client(addresses["unix"]) as client:
            client.alloc("a")
        process.kill()
        process.wait(10)
    (here / "cp.sock").unlink()
    with served("--store", "accounts", "--quirk", "ack-before-delivery") as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        said = process.stderr.read()
    assert said.startswith("cpsim: warning: accounts.demo.spool holds 1 commands, which stay there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fault", "daemon.hnag"], "no action 'hnag'; .* did you mean 'hang'"),
        (["--config", "serve.toml"], r"serve.toml: faults\[0\]: fault 'hang:knd=claim': no key 'knd'"),
    ],
)
def test_what_is_wrong_with_a_fault_is_said(here, arguments, message):
    (here / "serve.toml").write_text('faults = ["hang:knd=claim"]\n')
    with pytest.raises((CpsimError, click.UsageError), match=message):
        CliRunner().invoke(cli, ["serve", *arguments], catch_exceptions=False, standalone_mode=False)


def test_faults_are_listed():
    listed = CliRunner().invoke(cli, ["faults"]).output
    assert all(name in listed for name in (*ACTIONS, *KEYS))
