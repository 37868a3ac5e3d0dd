"""`cpsim load` under a real Locust: alone, with workers as processes, and with one that dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest
from ports import free_port
from scraping import replayed, scrape

from cpsim.fake import ANY_PORT, Fake

from .conftest import Loads

SMOKE = 1_968


def said(process):
    output, _ = process.communicate(timeout=280)
    return output


def document(path):
    return json.loads((path / "run.json").read_text()) | json.loads((path / "verdict.json").read_text())


def requests_in(path):
    """Requests and failures that Locust counted, by name."""
    return {entry["name"]: (entry["num_requests"], entry["num_failures"]) for entry in json.loads(path.read_text())}


def test_one_process_replays_verifies_and_agrees_with_locust(loads, tmp_path):
    baseline = Path(__file__).parent.parent / "samples/v0.3/run"
    asserts = ["--assert", "error_rate<=0", "--assert", "operations>5000"]
    asserts += ["--baseline", baseline, "--assert", "operations>2*baseline"]
    options = ["--output", "run", *asserts, "--set", "population.machines=7", "--junit", "out.xml"]
    process = loads.start("smoke", "--headless", "--json-file", "stats", options=options)
    output = said(process)
    assert process.returncode == 1, output  # an assertion that fails
    assert re.search(r"\nverdict +valid .+, 7 machines, .+\nrests on .+\nrun folder +run\n$", output)
    (failure,) = ET.parse(tmp_path / "out.xml").getroot().iter("failure")
    assert failure.get("message") == "operations>5000: it was 1968"
    assert "operations>5000: it was 1968" in output
    run = document(tmp_path / "run")
    assert [(each["value"], each["holds"]) for each in run["asserts"]] == [(0.0, True), (SMOKE, False), (SMOKE, True)]
    assert run["asserts"][2]["baseline"] == 152
    assert f"the baseline {baseline} is not the same: scenario was scenario, and is smoke; " in output
    assert (run["verdict"], run["operations"], run["failures"]) == ("valid", SMOKE, {})
    assert run["effect_ms"] is None
    assert "under Locust" in run["effect_unknown"]
    counted = requests_in(tmp_path / "stats.json")
    assert counted == {kind: (counts["accepted"], 0) for kind, counts in run["by_kind"].items()}


def test_a_load_is_judged_by_anybodys_accounts(loads, tmp_path, site):
    url = f"{site.fake.addresses['http'].removesuffix('/api')}/__cpsim"
    process = loads.start("smoke", "--headless", options=["--output", "run", "--accounts", url])
    output = said(process)
    assert process.returncode == 0, output
    run = document(tmp_path / "run")
    assert (run["accounts"], run["verdict"], run["checked"]["slots"]) == (url, "valid", 500)
    source = ["--output", "none", "--accounts", "program:false"]
    process = loads.start("smoke", "--headless", options=[*source, "--junit", "out.xml"])
    output = said(process)
    assert process.returncode == 2, output
    assert "program:false ended with status 1" in output
    (error,) = ET.parse(tmp_path / "out.xml").getroot().iter("error")
    assert "program:false ended with status 1" in error.get("message")
    assert not (tmp_path / "none").exists()


def test_the_verdict_on_wrong_slots_is_that_of_one_process_with_any_number_of_workers(cpsim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("demo-secret")
    found = []
    for workers in (None, 1, 2, 4):
        with Fake({"demo": "demo-secret"}, unix=Path("d.sock"), http=ANY_PORT, quirks=frozenset({"reclaim"})) as fake:
            server = ["--server", fake.addresses["http"], "--project", "demo", "--secret-file", "secret"]
            where = ["duplicate-claims", "--target", "./d.sock", *server, "--set", "arrivals.jobs=200"]
            options = ["--slot-prefix", "same", "--output", f"run-{workers}"]
            if workers is None:
                status, *told = cpsim("run", *where, *options, "--asap")
            else:
                loads = Loads(tmp_path, where[1:])
                process = loads.start(where[0], "--headless", "--processes", str(workers), options=options)
                told, status = said(process), process.returncode
                loads.end()
        assert status == 1, told
        status, again, _ = cpsim("judge", f"run-{workers}", "--json")
        assert (status, again) == (1, (tmp_path / f"run-{workers}/verdict.json").read_text())
        verdict = json.loads(again)
        assert len(verdict["anomalies"]) > 10
        for example in verdict["examples"]:
            del example["timeline"]  # which has the times of a run
        found.append(json.dumps(verdict | {"repeat": ""}))
    assert set(found) == {found[0]}


@pytest.mark.parametrize(
    ("threshold", "why"),
    [("effect_p99_ms<100", "the apply delay is not measured"), ("response_p99_ms<9", "add --rate or --speed")],
)
def test_a_figure_that_a_load_will_not_have_is_refused_before_anything_is_sent(cpsim, site, threshold, why):
    status, output, errors = cpsim("load", "smoke", *site.options, "--assert", threshold, "--", "--headless")
    words = " ".join((output + errors).split())
    assert status == 64, words
    assert f"--assert {threshold}: " in words
    assert why in words
    assert not has_slots(site, 1)


def test_a_master_and_two_workers_share_the_slots(loads, tmp_path, site, port):
    master = loads.start(
        *("smoke", "--headless", "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port),
        *("--expect-workers", "2", "--json-file", "stats"),
        options=["--output", "run"],
    )
    workers = [loads.start("smoke", "--worker", "--master-host", "127.0.0.1", "--master-port", port) for _ in range(2)]
    output = said(master)
    assert master.returncode == 0, output
    assert [worker.wait(90) for worker in workers] == [0, 0]
    run = document(tmp_path / "run")
    assert (run["verdict"], run["operations"]) == ("valid", SMOKE)
    journal = pq.read_table(tmp_path / "run" / "journal.parquet")
    assert sorted(journal["id"].to_pylist()) == list(range(SMOKE))
    assert sum(requests for requests, _ in requests_in(tmp_path / "stats.json").values()) == SMOKE
    with site.fake.accounts.reading() as ledger:
        assert len(ledger.projects["demo"].slots) == 500


ASIDE = """
import cpsim.replay.wires.connect  # before Locust
import gevent, gevent.monkey
from cpsim.load.aside import aside
Event = gevent.monkey.get_original("threading", "Event")
computing, seen = Event(), Event()

def compute():
    computing.set()
    return "computed while greenlets ran" if seen.wait(60) else "no greenlet ran"

def look():
    while not computing.is_set():
        gevent.sleep(0.001)
    seen.set()

gevent.spawn(look)
print(aside(compute))
try:
    aside(lambda: 1 / 0)
except ZeroDivisionError:
    print("raised")
"""


def test_a_worker_is_heard_of_while_it_computes(tmp_path):
    command = [sys.executable, "-P", "-c", ASIDE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (["computed while greenlets ran", "raised"], "")


def test_an_assert_that_is_broken_ends_a_load(loads, tmp_path):
    asserts = ["--assert", "max_ms[alloc]<0.001", "--stop-on-breach"]
    process = loads.start("smoke", "--headless", options=["--output", "run", "--rate", "300", *asserts])
    output = said(process)
    assert process.returncode == 1, output
    run = document(tmp_path / "run")
    assert (run["stopped_by"], run["interrupted"], run["verdict"]) == ("max_ms[alloc]<0.001", False, "valid")
    assert 0 < run["operations"] < SMOKE


def test_a_finding_ends_a_load_of_two_workers(site, loads, tmp_path):
    site.fake.set_quirks(frozenset({"drop-on-error"}))
    site.fake.faults.add("server.status=503:kind=bulk,nth=9")
    options = ["--output", "run", "--rate", "60", "--timeout", "1", "--fail-fast"]
    process = loads.start("smoke", "--headless", "--processes", "2", options=options)
    output = said(process)
    assert process.returncode == 1, output
    run = document(tmp_path / "run")
    assert run["stopped_by"].startswith("lost: smoke-")
    assert (run["interrupted"], run["verdict"]) == (False, "invalid")
    assert 0 < run["operations"] < SMOKE
    assert run["stopped_by"] in output


def test_a_run_time_ends_a_load(loads, tmp_path):
    process = loads.start("smoke", "--headless", "--run-time", "1s", options=["--output", "run", "--rate", "50"])
    output = said(process)
    assert process.returncode == 2, output
    assert "ignored" not in output
    run = document(tmp_path / "run")
    assert run["interrupted"]
    assert 0 < run["operations"] < SMOKE


def test_workers_of_another_workload_are_turned_away(loads, port):
    bind = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "1"]
    master = loads.start("smoke", "--headless", *bind)
    loads.start("smoke", "--worker", "--master-host", "127.0.0.1", "--master-port", port, options=["--seed", "2"])
    output = said(master)
    assert master.returncode == 2
    assert "has another workload" in output


def test_a_worker_killed_in_the_middle_leaves_its_slots_unknown_and_no_other(loads, tmp_path, site, port, wait_for):
    master = loads.start(
        *("smoke", "--headless", "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port),
        *("--expect-workers", "2"),
        options=["--output", "run", "--rate", "300", "--timeout", "2"],
    )
    worker = ["smoke", "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    same = ["--rate", "300", "--timeout", "2"]
    survivor, victim = (loads.start(*worker, options=same) for _ in range(2))
    wait_for(lambda: has_slots(site, 100))
    os.killpg(victim.pid, signal.SIGKILL)
    successor = loads.start(*worker, options=same)  # gets nothing of what the victim had
    output = said(master)
    run = document(tmp_path / "run")
    assert run["verdict"] == "unknown", output
    assert master.returncode == 2
    assert set(run["failures"]) == {"worker"}
    journal = pq.read_table(tmp_path / "run" / "journal.parquet").to_pylist()
    assert len(journal) == SMOKE
    lost = {row["slot"] for row in journal if row["error"] == "lost with its worker"}
    kept = {row["slot"] for row in journal if row["outcome"] == "accepted"} - lost
    numbers = {int(slot.rpartition("-")[2]) % 2 for slot in lost}
    assert lost
    assert len(kept) >= 250
    assert len(numbers) == 1 or not kept & lost
    assert "lost in the middle of the replay" in str(run)
    with site.fake.accounts.reading() as ledger:
        assert len(ledger.projects["demo"].slots) <= 500
    assert survivor.wait(90) == 0
    successor.terminate()


def has_slots(site, count):
    with site.fake.accounts.reading() as ledger:
        return "demo" in ledger.projects and len(ledger.projects["demo"].slots) >= count


def test_ctrl_c_ends_it_with_what_was_sent_and_its_page_shows_that_before(loads, tmp_path, site, wait_for):
    port = free_port()
    options = ["--output", "run", "--rate", "20", "--page", "0", "--metrics", str(port)]
    process = loads.start("smoke", "--headless", "--processes", "2", options=options)
    url = until(process, "the page of this run: ").split()[-1]

    def answered():
        with urllib.request.urlopen(url, timeout=280) as answer:
            return int(re.search(rf"(\d+) of {SMOKE:,} operations are answered", answer.read().decode())[1])

    wait_for(lambda: has_slots(site, 20) and answered() >= 20)
    wait_for(lambda: replayed(scrape(port)) >= 20)
    found = scrape(port)
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=280)
    caught.value.close()
    os.killpg(process.pid, signal.SIGINT)
    output = said(process)
    run = document(tmp_path / "run")
    assert found["cpsim_replay_planned_operations"] == [({}, SMOKE)]
    assert [labels["result"] for labels, _ in found["cpsim_replay_judged_slots_total"]] == ["valid", "finding"]
    assert replayed(found) <= run["operations"]
    assert process.returncode == 2, output
    assert run["interrupted"] is True
    assert 20 <= run["operations"] < SMOKE
    assert "Traceback" not in output


def test_ctrl_c_while_workers_are_waited_for(loads, port):
    bind = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2"]
    master = loads.start("smoke", "--headless", *bind)
    worker = loads.start("smoke", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    heard = []
    for line in master.stdout:
        heard.append(line)
        if "Waiting for workers to be ready, 1 of 2" in line:
            break
    os.killpg(master.pid, signal.SIGINT)
    output = "".join(heard) + said(master)
    assert master.returncode == 2, output
    assert "interrupted before the replay began" in output
    assert "KeyboardInterrupt" not in output  # Locust itself may complain of a worker's report that came too soon
    assert worker.wait(90) == 0


def test_a_target_that_is_not_there_is_named(loads, site):
    loads.options[1] = "./nowhere.sock"
    process = loads.start("smoke", "--headless")
    output = said(process)
    assert process.returncode == 2
    assert "cannot reach ./nowhere.sock" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("extra", [["--rate", "5", "--speed", "2"], ["--assert", "p9<1"], ["--project", "x"]])
def test_options_that_cannot_be_are_wrong_usage(cpsim, extra):
    assert cpsim("load", "smoke", "--target", "./d.sock", *extra, "--", "--headless")[0] == 64


def test_its_page_and_its_master_listen_on_loopback_alone(loads, port, wait_for):
    master_port = str(free_port())
    process = loads.start("smoke", "--web-port", port, "--master", "--master-bind-port", master_port)
    for line in process.stdout:
        if "Starting web interface at" in line:
            break
    assert f"http://127.0.0.1:{port}" in line
    for number in (port, master_port):
        wait_for(partial(connected, int(number))).close()
        with pytest.raises(OSError, match=r"refused|assign"):
            socket.create_connection(("127.0.0.2", int(number)), 1)


def connected(port):
    """A connection, or None as long as nobody listens."""
    with suppress(ConnectionRefusedError):
        return socket.create_connection(("127.0.0.1", port), 100)
    return None


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]])
def test_a_scenario_with_a_mistake_is_told_at_once(cpsim, site, tmp_path, processes):
    (tmp_path / "mine.toml").write_text("duration = 5", encoding="utf-8")
    status, output, errors = cpsim("load", "mine.toml", *site.options, "--", "--headless", *processes)
    assert status == 2
    assert "cpsim: mine.toml: " in errors
    assert "Traceback" not in output + errors


@pytest.mark.parametrize("taken", ["--web-port", "--master-bind-port"])
def test_a_port_that_others_have_is_named_and_nobody_is_left_waiting(loads, port, taken, wait_for):
    with socket.create_server(("127.0.0.1", int(port))):
        process = loads.start("smoke", "--processes", "2", taken, port)
        output = said(process)
    assert process.returncode == 2
    assert f"cpsim: Locust's {'page' if taken == '--web-port' else 'master'}" in output
    assert port in output
    assert f"choose another port for it by -- {taken}" in output
    assert "Traceback" not in output
    wait_for(lambda: is_over(process.pid))


def is_over(group):
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


LOCUSTFILE = """
import gevent
from locust import constant, task
from cpsim.load import CreditPiggyUser

class Jobs(CreditPiggyUser):
    wait_time = constant(0.01)

    @task
    def job(self):
        slot = self.new_slot()
        assert self.alloc(slot, credits=5)
        assert self.counters(slot, **{"job/success": 1})
        assert self.claim(slot, "worker-1")
        if self.environment.stats.total.num_requests > 30:  # however long that takes
            gevent.spawn(self.environment.runner.quit)

    @task
    def overdue(self):
        slot = self.new_slot()
        assert self.alloc(slot)
        assert self.meta(slot, queue="short")
        assert self.discard(slot, "expired")
"""


def test_a_host_that_cannot_be_used_ends_anybodys_locustfile(tmp_path):
    (tmp_path / "mine.py").write_text(LOCUSTFILE)
    locust = [sys.executable, "-m", "locust", "-f", "mine.py", "--host", "nowhere", "--headless", "-u", "2"]
    done = subprocess.run(locust, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 2, done.stderr
    assert "cpsim: 'nowhere' has no port: write HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_for_anybodys_locustfile(site, tmp_path):
    (tmp_path / "mine.py").write_text(LOCUSTFILE)
    locust = [sys.executable, "-m", "locust", "-f", "mine.py", "--host", "./d.sock", "--headless", "-u", "5", "-r", "5"]
    options = ["--stop-timeout", "5", "--json-file", "stats"]
    done = subprocess.run([*locust, *options], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    counted = requests_in(tmp_path / "stats.json")
    with site.fake.accounts.reading() as ledger:
        slots = ledger.projects["demo"].slots
    assert counted["alloc"][0] > 0
    assert 0 <= len(slots) - counted["alloc"][0] <= 5  # what each user was at when it was stopped
    assert {failures for _, failures in counted.values()} == {0}


NOTHING_SENT = """
import gevent
from locust import constant, task
from cpsim.load import CreditPiggyUser

class Jobs(CreditPiggyUser):
    wait_time = constant(0.01)

    @task
    def job(self):
        assert not self.alloc(f"{self.new_slot()},a")
        assert not self.counters(self.new_slot(), events="7")
        assert not self.discard(self.new_slot())
        if self.environment.stats.total.num_requests > 5:
            gevent.spawn(self.environment.runner.quit)
"""


def test_a_user_says_why_nothing_was_sent(tmp_path):
    (tmp_path / "mine.py").write_text(NOTHING_SENT)
    locust = [sys.executable, "-m", "locust", "-f", "mine.py", "--host", "./d.sock", "--headless", "-u", "1"]
    done = subprocess.run(locust, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    said = done.stdout + done.stderr
    assert said.count("InvalidCommand(\"alloc: slot contains ',', which no frame can carry: replace it\")") == 1
    assert said.count("InvalidCommand('counters: events is of type str: give a whole number, as int')") == 1
    assert said.count("NoSuchSocket('there is no socket ./d.sock: is the daemon running?')") == 1


def test_an_output_that_exists_is_refused_before_anything_starts(cpsim, site, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine").touch()
    told = cpsim("load", "smoke", *site.options, "--output", "run", "--", "--headless")
    assert told == (2, "", "cpsim: run is there already; name another folder with --output\n")


def test_a_second_start_into_the_same_output_is_refused_at_once(loads, site, port, wait_for):
    process = loads.start("smoke", "--web-port", port, options=["--output", "run"])
    until(process, "Starting web interface at")
    wait_for(lambda: state(port) == "ready")
    assert verdict(port) == [{"what": "There is no verdict yet.", "found": ""}]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=280) as answer:
        page = answer.read().decode()
    assert re.search(r'"hide_common_options": true', page)  # users and their ramp are not asked for,
    assert re.search(r"userCount.+display:none.+</head>", page, re.DOTALL)  # nor shown
    assert re.search(r'"title": "Verdict"', page)
    start(port)
    until(process, "run folder    run")
    assert verdict(port)[0]["what"] == "verdict"
    assert verdict(port)[0]["found"].startswith("valid (500 slots")
    assert {"what": "claim", "found": "416, 416, 0, 0"} in verdict(port)
    commands = len(list(site.fake.accounts.journal.read("demo")))
    wait_for(lambda: state(port) == "stopped")
    start(port)
    until(process, "cpsim: run is there already; name another folder with --output")
    assert len(list(site.fake.accounts.journal.read("demo"))) == commands
    assert verdict(port)[0] == {
        "what": "failed",
        "found": "run is there already; name another folder with --output",
    }


def verdict(port):
    """The rows of the page's tab Verdict."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=280) as answer:
        (tab,) = json.load(answer)["extended_stats"]
    return tab["data"]


def until(process, text):
    """Read a process's output up to a line with a text, which is returned."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"the process ended without {text!r}")


def start(port):
    """Press START on Locust's page."""
    form = urllib.parse.urlencode({"user_count": 1, "spawn_rate": 1}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", form, timeout=280) as answer:
        assert answer.status == 200


def state(port):
    """What Locust's page says of the test; nothing if it says nothing yet."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=280) as answer:
        return json.load(answer)["state"]
