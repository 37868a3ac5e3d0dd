"""How far `cpsim verify` is, what it shows meanwhile, and what it keeps when it is interrupted."""

import gc
import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance import table
from cpsim.conformance.exchange import HttpConnection
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target, reach
from cpsim.conformance.walk import walk
from cpsim.fake import ANY_PORT, Fake

CREDENTIALS = ("p", "hush")


@pytest.fixture
def fake(here):
    """A fake in which discarded slots can be claimed."""
    Path("secret").write_text(CREDENTIALS[1])
    with Fake(dict([CREDENTIALS]), http=ANY_PORT, quirks=frozenset({"claim-settled"})) as fake:
        yield fake


@pytest.fixture
def target(fake):
    """It as a target."""
    return Target(server=parse_endpoint(fake.addresses["http"]), credentials=CREDENTIALS)


@pytest.fixture
def verify(fake, cpsim):
    """verify(*options) -> exit status, standard output, standard error."""
    options = [fake.addresses["http"], "--project", CREDENTIALS[0], "--secret-file", "secret"]
    return lambda *more: cpsim("verify", *options, "--max-rate", 100_000, *more)


def test_deviations_come_first_and_passes_are_folded(verify):
    status, out, err = verify("-k", "CLAIM-[168]")
    lines = out.splitlines()
    assert status == 1
    assert err == ""
    assert lines[0] == "CLAIM-8  deviation (claim-settled): A claim of a discarded slot is refused."
    assert out.count("expected  answer to claim = refused") == 1
    assert [line.split()[0] for line in lines if " A claim of a discarded slot" in line] == ["CLAIM-8", "CLAIM-8"]
    assert "CLAIM-6" not in out
    assert "2 clauses pass, 1 deviates" in lines[-2]
    _, out, _ = verify("-k", "CLAIM-[168]", "-v")
    assert {line.split()[0] for line in out.splitlines() if " pass " in line} == {"CLAIM-1", "CLAIM-6"}


def test_progress_is_counted_when_a_clause_ends(target):
    said = []
    examine(target, ["CLAIM-[168]"], on_finding=lambda outcome: said.append(table.progress(outcome)))
    assert said == ["1/3, no deviation", "2/3, no deviation", "3/3, 1 deviation"]


def interrupt_at(*numbers):
    """A function that is interrupted when it is called for the first or any other time."""
    calls = []

    def call(_):
        calls.append(None)
        if len(calls) in numbers:
            raise KeyboardInterrupt

    return call


def test_an_interruption_keeps_what_was_found_and_discards_what_is_outstanding(target, fake):
    outcome = examine(target, ["CLAIM-[168]", "EXPIRE-1"], on_clause=interrupt_at(3))
    assert [finding.clause.id for finding in outcome.findings] == ["CLAIM-1", "CLAIM-6"]
    assert outcome.ruling == "unknown"
    assert "verdict unknown: interrupted after 2 of 4 clauses, 2 clauses pass" in table.summary(outcome)
    assert outcome.left.outstanding == ()
    with fake.accounts.reading() as ledger:
        assert {slot.state for slot in ledger.project("p").slots.values()} <= {"claimed", "discarded"}


def test_a_deviation_before_the_interruption_decides(target):
    outcome = examine(target, ["CLAIM-[168]", "EXPIRE-1"], on_clause=interrupt_at(4))
    assert outcome.interrupted
    assert outcome.ruling == "invalid"


def test_random_sequences_keep_what_they_have(target):
    walks = walk(reach(target, most=10_000), 50, 1, interrupt_at(4))
    assert (walks.interrupted, walks.ruling, walks.sequences) == (True, "unknown", 4)
    assert walks.left is not None


def test_a_signal_ends_a_run_that_writes_its_files(verify, fake, wait_for):
    def end():
        def has_slots():
            with fake.accounts.reading() as ledger:
                return ledger.project("p").slots

        wait_for(has_slots)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    status, out, _ = verify("--max-rate", 20, "--json", "--junit", "out.xml", "--summary", "out.md")
    ending.join()
    outcome = json.loads(out)
    assert (status, outcome["verdict"], outcome["interrupted"]) == (2, "unknown", True)
    suite = ET.parse("out.xml").getroot().find("testsuite")
    assert int(suite.get("tests")) == len(outcome["clauses"]) + 1
    assert "interrupted after" in suite.find("testcase/error").get("message")
    assert "interrupted after" in Path("out.md").read_text()


@pytest.fixture
def interruptible():
    """SIGINT interrupts this process, also where a shell has started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_in_the_middle_of_a_reply_leaves_nothing_half_open(monkeypatch):
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def begin_to_answer():
            with listener.accept()[0] as incoming:
                incoming.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
                os.kill(os.getpid(), signal.SIGINT)
                with suppress(ConnectionResetError):
                    incoming.recv(1)

        answering = threading.Thread(target=begin_to_answer)
        answering.start()
        server = parse_endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/api")
        with pytest.raises(KeyboardInterrupt), HttpConnection(server, 60.0) as connection:
            connection.reply("GET")
        answering.join()
    gc.collect()  # of what earlier tests have left, too
    assert not [each for each in found if isinstance(each.object, HTTPResponse)]
