"""The search for a capacity, at targets whose capacity is known, and why steps failed."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint, parse_endpoint
from cpsim.config.catalog import find_scenario
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay.wires import one_shot
from cpsim.run import capacity
from cpsim.run.capacity import FIRST_RATE, Capacity, SearchRequest, find, part
from cpsim.run.curve import show
from cpsim.run.plan import ReplayTarget
from cpsim.scenario import load_workload

SERVICE_S = 0.01
QUICK_S = 0.001


class OneByOne:
    """A daemon that takes one command at a time, each for `service_s`."""

    def __init__(self, backlog, reply, service_s):
        self.reply = reply
        self.service_s = service_s
        self.served = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("d.sock")
        self.listener.listen(backlog)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        done_s = 0.0
        while not self.stopping.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, suppress(BrokenPipeError):
                if connection.recv(1500):
                    # by how much the wait before was too long is made up for
                    done_s = max(done_s, time.perf_counter() - self.service_s / 2) + self.service_s
                    self.stopping.wait(done_s - time.perf_counter())
                    connection.sendall(self.reply(self.served))
                    self.served += 1

    def stop(self):
        self.stopping.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(60)
        self.listener.close()


@pytest.fixture
def one_by_one(tmp_path, monkeypatch):
    """Return start(backlog, reply, service_s) -> OneByOne at d.sock; reply(number) is what it answers."""
    monkeypatch.chdir(tmp_path)
    started = []

    def start(backlog=1024, reply=lambda _: b"OK", service_s=SERVICE_S):
        started.append(OneByOne(backlog, reply, service_s))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="module")
def smoke():
    return load_workload(find_scenario("smoke"))


def searched(workload, target=None, *, p99_ms=150.0, processes=1, on_progress=lambda *_: None):
    """What a search with steps of half a second finds."""
    where = target or ReplayTarget(UnixEndpoint("./d.sock"))
    found = Capacity(p99_ms)
    asked = SearchRequest(workload, where, p99_ms, 0.5, 5.0, processes, None)
    find(asked, found, on_stage=lambda _: None, on_progress=on_progress)
    return found


def test_several_processes_share_a_step(one_by_one, smoke, monkeypatch):
    monkeypatch.setattr(capacity, "MOST_STEPS", 1)
    target = one_by_one(service_s=QUICK_S)
    (step,) = searched(smoke, processes=2).steps
    planned = len(part(smoke, round(FIRST_RATE * 1.5)))
    assert step.summary.operations + step.unsent == planned
    assert target.served == step.summary.operations


def test_a_generator_without_ports_is_not_taken_for_a_slow_target(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(capacity, "MOST_STEPS", 2)
    numbers = count()

    class Portless(one_shot.RawSocket):
        def connect_ex(self, address):
            return errno.EADDRNOTAVAIL if next(numbers) % 100 else super().connect_ex(address)

    with Fake({"p": "s"}, unix=Path("d.sock")):
        monkeypatch.setattr(one_shot, "RawSocket", Portless)
        monkeypatch.setattr(one_shot.OneShot, "reach", lambda *_: None)
        found = searched(smoke)
    assert found.border.failed_by == "ports"


def test_a_target_that_refuses_fails_at_once(one_by_one, smoke, monkeypatch):
    monkeypatch.setattr(capacity, "MOST_STEPS", 2)
    one_by_one(reply=lambda number: b"ER" if number % 50 == 0 else b"OK", service_s=QUICK_S)
    found = searched(smoke)
    assert found.best is None
    assert found.border.failed_by == "effect"  # a well-formed command that is answered ER
    assert found.steps[0].summary.failures["ER"] > 0


def test_where_the_effect_shows_it_is_verified(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(capacity, "MOST_STEPS", 2)
    with Fake({"p": "s"}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        server = parse_endpoint(fake.addresses["http"])
        assert isinstance(server, UrlEndpoint)
        found = searched(smoke, ReplayTarget(UnixEndpoint("./d.sock"), server, ("p", "s")))
        assert [step.ruling for step in found.steps] == ["valid", "valid"]
        assert found.ended == "2 steps were measured"
        with fake.accounts.reading() as ledger:
            sent = sum(step.summary.operations for step in found.steps)
            assert len(ledger.projects["p"].slots) > sent / 5  # none twice: a slot cannot be allocated again


def test_what_is_known_is_told_when_the_target_goes_away(one_by_one, smoke):
    target = one_by_one(service_s=QUICK_S)

    def leave(*_):
        if target.served > 100:
            target.stop()
            Path("d.sock").unlink(missing_ok=True)

    found = searched(smoke, on_progress=leave)
    assert found.steps
    assert "cannot reach" in found.ended
    screen = Console(record=True, width=80)
    show(found, screen)
    assert "The search is not complete" in screen.export_text()
    found.ended = "HTTP 500: \x1b[2J [bold]"
    show(found, screen)
    assert r"HTTP 500: \x1b[2J [bold]" in screen.export_text()


def test_a_target_that_is_not_there_is_an_error(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CpsimError, match="cannot reach"):
        searched(smoke)


@pytest.mark.parametrize("operations", [1, 100, 1_968, 5_000])
def test_a_part_of_a_workload_is_whole_slots_under_ids_of_their_own(smoke, operations):
    some = part(smoke, operations)
    assert 0.8 * operations <= len(some) <= 1.2 * operations + 5
    assert (np.diff(some.due_us) >= 0).all()
    assert len(np.unique(some.slot_numbers)) == len(some.slot_numbers)
    whole = np.bincount(smoke.slot, minlength=len(smoke.slot_numbers))
    sent = np.bincount(some.slot, minlength=len(some.slot_numbers))
    assert all(sent[slot] in {0, whole[slot % len(whole)]} for slot in range(len(sent)))
    assert [kind for kind, _ in some.calls(0, 1, "x")] == ["alloc"]


def load(*options, folder):
    command = [sys.executable, "-P", "-m", "cpsim", "load", "smoke", "--target", "./d.sock", *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FAST = ["--find-capacity", "--step-time", "0.3"]


def test_the_command_prints_the_curve_and_writes_it(one_by_one, tmp_path):
    one_by_one()
    process = load(*FAST, "--p99-ms", "150", "--output", "found", "--assert", "operations_per_s>5", folder=tmp_path)
    said, errors = process.communicate(timeout=280)
    assert process.returncode == 0, said + errors
    document = json.loads((tmp_path / "found" / "capacity.json").read_text())
    assert f"capacity      {document['capacity_per_s']:,.0f} operations/s within 150 ms (p99)" in said
    assert f"failed        {document['gave_way']}, at {document['gave_way_at_per_s']:,.0f}/s" in said
    assert "holds  operations_per_s>5" in said
    assert len([line for line in said.splitlines() if "┊" in line or "█" in line]) == len(document["steps"])
    assert all(len(line) <= 80 for line in said.splitlines() if "/s │" in line)
    kept = [step for step in document["steps"] if step["kept"]]
    assert max(step["offered_per_s"] for step in kept) == document["capacity_per_s"]
    assert all(step["response_ms"]["p99"] <= 150 and not step["unsent"] for step in kept)
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"capacity.json", "latency.hgrm", "response.hgrm"}


def test_that_no_rate_is_kept_is_the_exit_status(one_by_one, tmp_path):
    one_by_one()
    hopeless = load(*FAST, "--p99-ms", "1", "--json", folder=tmp_path)
    said, errors = hopeless.communicate(timeout=280)
    assert hopeless.returncode == 1, errors
    assert json.loads(said)["capacity_per_s"] is None


def test_an_assertion_that_fails_is_the_exit_status(one_by_one, tmp_path):
    one_by_one()
    failing = load(*FAST, "--p99-ms", "150", "--assert", "operations_per_s>1000", folder=tmp_path)
    said, errors = failing.communicate(timeout=280)
    assert failing.returncode == 1, errors
    assert "fails  operations_per_s>1000" in said


def test_ctrl_c_tells_what_is_known_so_far(one_by_one, tmp_path, wait_for):
    target = one_by_one(service_s=QUICK_S)
    process = load(*FAST, "--json", folder=tmp_path)
    wait_for(lambda: target.served >= 100)
    os.kill(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=280)
    assert process.returncode == 2, said + errors
    document = json.loads(said)
    assert document["ended"] == "interrupted"
    assert document["steps"][0]["offered_per_s"] == 125
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "options",
    [
        ["--p99-ms", "5"],
        ["--json"],
        ["--find-capacity", "--rate", "5"],
        ["--find-capacity", "--in-flight", "64"],
        ["--find-capacity", "--", "--headless"],
        ["--find-capacity", "--p99-ms", "0"],
    ],
)
def test_options_that_cannot_be_are_wrong_usage(options, cpsim):
    status, said, errors = cpsim("load", "smoke", "--target", "./d.sock", *options)
    assert status == 64
    assert "Traceback" not in said + errors
