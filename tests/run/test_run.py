"""The main job from end to end, at every kind of target, and what it leaves on disk."""

import fcntl
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ports import free_port

from cpdaemon.commands import KINDS
from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from cpdaemon.errors import InvalidCommand
from cpsim import fake
from cpsim.accounts.observer import Observer
from cpsim.config.catalog import find_scenario
from cpsim.errors import CpsimError
from cpsim.evidence.files import JOURNAL_SCHEMA
from cpsim.evidence.writing import write_journal
from cpsim.net.http.messages import Response
from cpsim.protocol import arguments as typed
from cpsim.replay.pace import AsFastAsPossible, Rate
from cpsim.run import folder as run_folder
from cpsim.run import pipeline as run_module
from cpsim.run.pipeline import check_prefix
from cpsim.run.plan import ReplayTarget
from cpsim.run.summary import summarise
from cpsim.scenario import generate, load_workload, source
from cpsim.server.http import Api

PROJECT, SECRET = "Proj", "hush"
FILES = {
    *("run.json", "evidence.json", "workload.parquet", "journal.parquet", "verdict.json"),
    *("latency.hgrm", "seconds.parquet", "report.html"),
}
EFFECT = {"ledger.parquet", "accounts.parquet", "effect.hgrm"}
SMALL = """
description = "everything, in small"
duration = "1d"
population = { machines = 8, users = 4, linked = 0.5 }
arrivals = { model = "constant", jobs = 60 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 0.7, never = 0.1, discard = { late = 0.2 } }
credits = { policy = "range", min = 5, max = 20, claim = { model = "uniform", low = 1, high = 30 } }
counters.claim = { events = { model = "poisson", mean = 100 }, success = 1 }
metadata = { site = ["here", "there"] }
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of one's own to be in, with small.toml and the secret in it."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL, encoding="utf-8")
    Path("secret").write_text(f"{SECRET}\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def site(place):
    """A fake in this process: ./cp.sock, TCP and HTTP."""
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock"), tcp=fake.ANY_PORT, http=fake.ANY_PORT) as started:
        yield started


def perform(target, *, scenario=SMALL, pace=None, timeout_s=5.0, on_stage=print, on_progress=None, prefix="w"):
    """A run without the command line."""
    return run_module.run(
        lambda: generate(source.parse(scenario, "small.toml"), 7),
        target,
        pace or AsFastAsPossible(),
        in_flight=8,
        timeout_s=timeout_s,
        slot_prefix=prefix,
        on_stage=on_stage,
        on_progress=on_progress or (lambda planned, progress: None),
    )


def document(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def credentials():
    return ["--project", PROJECT, "--secret-file", "secret"]


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


# Targets


def test_an_embedded_site_is_valid(place, cpsim):
    status, out, err = cpsim("run", "smoke", "--output", "out")
    assert (status, err) == (0, "")
    assert re.search(r"^verdict +valid \(500 slots, 20 machines, .* 1,968 replies checked\)$", out, re.MULTILINE)
    assert re.search(r"^credits +[\d,]+ granted, conserved$", out, re.MULTILINE)
    assert out.endswith("run folder    out\n")
    assert names("out") == FILES | EFFECT
    assert names(".") == {"out", "small.toml", "secret"}
    with pytest.raises(ChildProcessError):  # the embedded site's process is gone
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_daemon_alone_shows_only_its_acknowledgements(site, cpsim, kind):
    status, out, _ = cpsim("run", "small.toml", "--target", site.addresses[kind], "--output", "out")
    assert status == 2
    assert "not verified: Whether any command was applied: a daemon shows only its acknowledgements." in out
    assert "--server URL --project ID --secret-file FILE" in out
    assert names("out") == FILES
    verdict = document("out/verdict.json")
    assert verdict["verdict"] == "unknown"
    assert verdict["checked"] == {"replies": document("out/run.json")["operations"]}


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_daemon_and_its_server_are_valid(site, cpsim, kind):
    arguments = ["--target", site.addresses[kind], "--server", site.addresses["http"], *credentials()]
    for output in ("first", "second"):  # slot ids are new with every run
        status, out, _ = cpsim("run", "small.toml", *arguments, "--output", output)
        assert status == 0, out
        assert names(output) == FILES | EFFECT
    assert pq.read_metadata("second/ledger.parquet").num_rows == 120
    assert document("second/run.json")["slots_by_state"] == document("first/run.json")["slots_by_state"]
    assert document("second/run.json")["credits_granted"] == document("first/run.json")["credits_granted"]


@pytest.mark.parametrize("project", [PROJECT, PROJECT.upper()])
def test_a_server_is_valid(site, cpsim, project):
    arguments = ["--target", site.addresses["http"], "--project", project, "--secret-file", "secret"]
    status, out, _ = cpsim("run", "small.toml", *arguments, "--in-flight", 4, "--output", "out")
    assert status == 0, out
    assert document("out/run.json")["endpoint"] == site.addresses["http"]
    assert names("out") == FILES | EFFECT


def test_what_a_daemon_keeps_for_a_while_is_waited_for(place):
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=fake.ANY_PORT, flush_interval_s=0.3) as slow:
        server = parse_endpoint(slow.addresses["http"])
        result = perform(ReplayTarget(UnixEndpoint("cp.sock"), server, (PROJECT, SECRET)))
    assert result.verdict.ruling == "valid"


@pytest.fixture
def closed_site(place, monkeypatch):
    """A site whose server has no control API, like those in production."""
    respond = Api.respond
    monkeypatch.setattr(
        Api,
        "respond",
        lambda api, request: (
            Response(404, b"no such page") if request.path.startswith("/__cpsim/") else respond(api, request)
        ),
    )
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=fake.ANY_PORT) as started:
        yield started


@pytest.mark.parametrize("kind", ["unix", "http"])
def test_without_a_control_api_the_outstanding_slots_are_judged(closed_site, cpsim, kind):
    server = ["--server", closed_site.addresses["http"]] if kind == "unix" else []
    arguments = ["--target", closed_site.addresses[kind], *server, *credentials(), "--output", "out"]
    status, out, _ = cpsim("run", "small.toml", *arguments)
    assert status == 2
    assert "the server has no control API" in out
    assert document("out/verdict.json")["checked"]["slots"] == 60
    assert names("out") == FILES


@pytest.mark.parametrize("kind", ["alloc", "discard", "claim"])
def test_without_a_control_api_lost_commands_are_found_but_for_claims(closed_site, cpsim, kind):
    """A claimed slot that is still listed may be claimed: there are servers that list it."""
    with closed_site.accounts.reading() as ledger:
        apply_all = ledger.apply_all
        ledger.apply_all = lambda project, calls, now_us, **options: apply_all(
            project, [call for call in calls if call[0] != kind], now_us, **options
        )
    arguments = ["--target", "./cp.sock", "--server", closed_site.addresses["http"], *credentials(), "--timeout", "0.3"]
    status, out, _ = cpsim("run", "small.toml", *arguments, "--output", "out")
    verdict = document("out/verdict.json")
    if kind == "claim":
        assert (status, verdict["anomalies_by_name"]) == (2, {})
        assert re.search(r"not verified: Whether \d+ slots were claimed: they are still listed", out)
        return
    assert status == 1
    shown = "listed as outstanding, but should be discarded" if kind == "discard" else "not listed as outstanding"
    assert re.search(rf"^ +\d+ lost\n +small-.*: {shown}", out, re.MULTILINE)
    assert set(verdict["anomalies_by_name"]) == {"lost"}


# Trouble on the way


def test_lost_replies_widen_what_is_acceptable(site):
    """Between the job manager and the daemon, every tenth reply is lost, and every tenth command."""
    numbers, stopping = count(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def pass_on():
        while not stopping.is_set():
            connection, _ = listener.accept()
            with connection, socket.socket(socket.AF_UNIX) as daemon:
                frame = connection.recv(1500)
                number = next(numbers) % 10 if frame else 9
                if number < 9:
                    daemon.connect("./cp.sock")
                    daemon.sendall(frame)
                    reply = daemon.recv(10)
                    if number < 8:
                        connection.sendall(reply)

    thread = threading.Thread(target=pass_on)
    thread.start()
    try:
        endpoint = TcpEndpoint("127.0.0.1", listener.getsockname()[1])
        result = perform(ReplayTarget(endpoint, parse_endpoint(site.addresses["http"]), (PROJECT, SECRET)))
    finally:
        stopping.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()
    unknown = Counter(result.evidence.records["outcome"].tolist())[2]
    assert unknown >= len(result.plan.workload) // 10
    assert result.verdict.ruling == "valid", result.verdict.anomalies
    assert 0 < result.verdict.uncertain <= unknown


def every(number, *, applied, answer):
    """A server that answers every `number`-th command with something else, applied or not."""
    numbers, respond = count(1), Api.respond

    def wrong(api, request):
        if "/batch/" not in request.path or request.path.endswith("/slots") or next(numbers) % number:
            return respond(api, request)
        right = respond(api, request)
        if applied:
            api.finish([right])
        return answer

    return wrong


@pytest.mark.parametrize("status", [500, 502])
@pytest.mark.parametrize("applied", [False, True])
def test_an_answer_that_is_no_answer_is_unknown_not_wrong(site, monkeypatch, status, applied):
    monkeypatch.setattr(Api, "respond", every(7, applied=applied, answer=Response(status, b"<h1>Oops</h1>")))
    server = parse_endpoint(site.addresses["http"])
    result = perform(ReplayTarget(server, server, (PROJECT, SECRET)))
    assert result.verdict.ruling == "valid", result.verdict.anomalies
    assert result.verdict.uncertain > 0
    assert f"HTTP {status} with a body that is not the API's" in result.evidence.errors


def test_a_right_signature_that_is_refused_is_wrong(site, monkeypatch):
    answer = Response(401, b'{"result":"error","message":"who?"}')
    monkeypatch.setattr(Api, "respond", every(7, applied=False, answer=answer))
    server = parse_endpoint(site.addresses["http"])
    result = perform(ReplayTarget(server, server, (PROJECT, SECRET)))
    assert result.verdict.counts["wrongly refused"] == 1
    assert "well-formed commands were answered HTTP 401: who?" in result.verdict.anomalies[-1].detail


def test_a_daemon_that_says_er_is_wrong(place, monkeypatch):
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock")) as full:
        monkeypatch.setattr(full.daemons[0]._listener, "_is_full", lambda: True)
        result = perform(ReplayTarget(UnixEndpoint("cp.sock")))
    assert result.verdict.ruling == "invalid"
    assert result.verdict.counts == {"wrongly refused": 1}
    assert "Everything: no operation was accepted." in result.verdict.not_verified


def test_a_server_that_is_gone_in_the_end_leaves_the_effect_unseen(place):
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock")):
        accounts = fake.Fake({PROJECT: SECRET}, http=fake.ANY_PORT)
        accounts.start()
        result = perform(
            ReplayTarget(UnixEndpoint("cp.sock"), parse_endpoint(accounts.addresses["http"]), (PROJECT, SECRET)),
            on_stage=lambda stage: accounts.stop() if stage == "verifying" else None,
        )
    assert result.verdict.ruling == "unknown"
    assert [sentence for sentence in result.verdict.not_verified if "cannot reach http" in sentence]
    assert result.verdict.checked == {"replies": len(result.plan.workload)}
    with run_folder.OutputFolder(Path("out")) as written:
        run_folder.write(result, summarise(result), written)
    assert names("out") == FILES


def test_a_ledger_that_cannot_be_read_leaves_the_effect_unseen(site, monkeypatch):
    monkeypatch.setattr(
        Api,
        "respond",
        lambda api, request, respond=Api.respond: (
            Response(200, b"not Parquet") if request.path == "/__cpsim/slots.parquet" else respond(api, request)
        ),
    )
    server = parse_endpoint(site.addresses["http"])
    result = perform(ReplayTarget(server, server, (PROJECT, SECRET)))
    assert result.verdict.ruling == "unknown"
    assert "not whole Parquet" in result.verdict.not_verified[0]


@pytest.mark.parametrize("body", [b"<h1>Welcome</h1>", b"[]", b'"pending"', b'{"data": 5}', b"\xff"])
def test_a_server_of_another_kind_is_told_apart(site, monkeypatch, body):
    monkeypatch.setattr(Api, "respond", lambda *_: Response(200, body))
    observer = Observer(parse_endpoint(site.addresses["http"]), (PROJECT, SECRET), 5.0)
    assert not observer.control.exists()
    with pytest.raises(CpsimError, match=r"POST /api/batch/slots on http://.* answered no list of slots"):
        observer.outstanding()


# Interrupting


def test_interrupting_an_embedded_run_leaves_no_process(place):
    def interrupt(planned, progress):
        if progress.accepted >= 5:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = perform(None, pace=Rate(100), on_progress=interrupt)
    assert result.evidence.interrupted
    assert 5 <= len(result.evidence.records) < len(result.plan.workload)
    assert result.verdict.ruling == "unknown"
    assert result.verdict.counts == {}
    missing = len(result.plan.workload) - len(result.evidence.records)
    assert result.verdict.not_verified == [f"{missing:,} operations were not sent: the run was interrupted."]
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_to_be_stopped_writes_what_happened(site, place, number, wait_for):
    def has_begun(run):
        assert run.poll() is None, run.stderr.read()
        with site.accounts.reading() as ledger:
            return len(ledger.project(PROJECT).slots) >= 3

    arguments = ["--target", site.addresses["unix"], "--server", site.addresses["http"], *credentials()]
    command = [sys.executable, "-m", "cpsim", "run", "small.toml", "--rate", "10", *arguments, "--output", "out"]
    environment = os.environ | {"TMPDIR": str(place), "PYTHONWARNINGS": "error"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as run:
        wait_for(lambda: has_begun(run))
        run.send_signal(number)
        out, err = run.communicate(timeout=280)
    assert (run.returncode, err) == (2, "")
    assert "operations were not sent: the run was interrupted" in out
    assert names("out") == FILES | EFFECT | {"response.hgrm"}
    assert names(".") == {"out", "small.toml", "secret", "cp.sock"}
    figures = document("out/run.json")
    assert figures["interrupted"] is True
    assert 3 <= figures["operations"] < 240
    assert figures["operations"] == pq.read_metadata("out/journal.parquet").num_rows
    with site.accounts.reading() as ledger:
        assert figures["by_kind"]["alloc"]["accepted"] == len(ledger.project(PROJECT).slots)
    assert "<b>interrupted</b>" in Path("out/report.html").read_text(encoding="utf-8")


# The run folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a paced run of smoke at a daemon that answers some commands badly; and the run."""
    place = tmp_path_factory.mktemp("folder")
    workload = load_workload(find_scenario("smoke"), 4)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    stopping = threading.Event()
    replies = {0: b"OK", 1: b"OK", 2: b"ER", 3: b"", 4: b"??"}

    def serve():
        numbers = count()
        while not stopping.is_set():
            connection, _ = listener.accept()
            with connection:
                if connection.recv(1500):
                    connection.sendall(replies[next(numbers) % 5])

    thread = threading.Thread(target=serve)
    thread.start()
    result = run_module.run(
        lambda: workload,
        ReplayTarget(TcpEndpoint("127.0.0.1", listener.getsockname()[1])),
        Rate(4000),
        in_flight=4,
        timeout_s=5.0,
        slot_prefix="x<y>&z",
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
    )
    stopping.set()
    socket.create_connection(listener.getsockname()).close()
    thread.join()
    listener.close()
    with run_folder.OutputFolder(place / "out") as written:
        run_folder.write(result, summarise(result), written)
    return place / "out", result


def given(row):
    """The arguments of a row of a journal; other kinds' columns have nothing."""
    own = row["kind"]
    columns = {field.name: row[field.name] for field in typed.fields() if row[field.name] is not None}
    assert all(column == own or column.startswith(f"{own}.") for column in columns)
    free = dict(columns.pop(own, None) or {})
    return {column.removeprefix(f"{own}."): value for column, value in columns.items()} | free


def test_the_journal_says_what_happened(folder):
    path, result = folder
    assert pq.read_schema(path / "journal.parquet").remove_metadata() == JOURNAL_SCHEMA
    rows = pq.read_table(path / "journal.parquet").to_pylist()
    calls = list(result.plan.workload.calls(0, len(result.plan.workload), "x<y>&z"))
    assert len(rows) == len(calls)
    outcomes = Counter(row["outcome"] for row in rows)
    assert outcomes["accepted"] == pytest.approx(2 * len(calls) / 5, abs=2)
    assert outcomes["refused"] == pytest.approx(len(calls) / 5, abs=2)
    due_us = Rate(4000).schedule(result.plan.workload.due_us).tolist()
    errors = {"accepted": {""}, "refused": {"ER"}, "unknown": {"garbage reply", "reply lost: closed without an answer"}}
    for number, (row, (kind, sent)) in enumerate(zip(rows, calls, strict=True)):
        assert (row["id"], row["kind"], row["slot"]) == (number, kind, sent.pop("slot"))
        assert given(row) == sent
        assert row["due_us"] == due_us[number] <= row["sent_us"] <= row["answered_us"]
        assert row["error"] in errors[row["outcome"]]
    assert (np.array([row["sent_us"] for row in rows]) == result.evidence.records["sent_ns"] // 1000).all()


def test_the_documents_say_what_happened(folder):
    path, result = folder
    figures = document(path / "run.json")
    rows = pq.read_table(path / "journal.parquet").to_pylist()
    for kind in KINDS:
        of_kind = Counter(row["outcome"] for row in rows if row["kind"] == kind)
        assert figures["by_kind"][kind] == {
            "planned": sum(of_kind.values()),
            **{name: of_kind[name] for name in ("accepted", "refused", "unknown")},
        }
    assert figures["errors"] == {error: n for error, n in Counter(row["error"] for row in rows).items() if error}
    assert figures["operations"] == len(rows)
    assert figures["operations_per_s"] == pytest.approx(len(rows) / figures["elapsed_s"], rel=0.01)
    assert figures["workload_sha256"] == result.plan.workload.digest()
    expected = {
        "scenario": "smoke",
        "seed": 4,
        "slot_prefix": "x<y>&z",
        "endpoint": str(result.plan.target.endpoint),
        "server": None,
        "pace": "4000 operations/s",
        "interrupted": False,
        "slots_by_state": None,
        "credits_granted": None,
    }
    assert expected.items() <= figures.items()
    service_ms = [(row["answered_us"] - row["sent_us"]) / 1000 for row in rows]
    assert figures["service_ms"]["p50"] == pytest.approx(np.percentile(service_ms, 50), rel=0.02, abs=0.005)
    response_ms = [(row["answered_us"] - row["due_us"]) / 1000 for row in rows]
    assert figures["response_ms"]["max"] == pytest.approx(max(response_ms), rel=0.01, abs=0.01)
    verdict = document(path / "verdict.json")
    assert verdict["verdict"] == "invalid"
    assert verdict["anomalies_by_name"] == {"wrongly refused": 1}
    assert names(path) == FILES | {"response.hgrm"}
    assert names(path.parent) == {"out"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text = Counter(), [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.references += [value for name, value in attrs if name in {"src", "href", "action", "data", "srcset"}]

    def handle_data(self, data):
        self.text += data


def test_the_report_stands_alone(folder):
    text = (folder[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {link for link in page.references if not link.startswith("#")} == {"data:,"}
    assert not re.search(r"https?://|@import|url\(", text.partition("<script>")[0])
    assert len(text) < 1_500_000
    assert page.tags["table"] >= 3
    for said in ("smoke", "invalid", "4000 operations/s", "reply lost: closed without an answer", "response time"):
        assert said in page.text


def test_names_do_no_harm_to_report_and_summary(place, cpsim):
    name = "[/red] <script>x</script> [bold]&amp; %d"
    Path("odd.toml").write_text(f"name = '{name}'\n{SMALL}", encoding="utf-8")
    status, out, _ = cpsim("run", "odd.toml", "--output", "[red]out")
    assert status == 0
    assert f"{name}, seed 1" in out
    assert "run folder    [red]out" in out
    text = Path("[red]out/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script>x" not in text
    assert name in page.text


def test_the_ledger_of_a_run_is_what_its_journal_leads_to(place, cpsim):
    assert cpsim("run", "small.toml", "--seed", 5, "--output", "out")[0] == 0
    journal = pq.read_table("out/journal.parquet").to_pylist()
    ledger = {row["slot"]: row for row in pq.read_table("out/ledger.parquet").to_pylist()}
    accounts = pq.read_table("out/accounts.parquet").to_pylist()
    claims = {row["slot"] for row in journal if row["kind"] == "claim"}
    assert {slot for slot, row in ledger.items() if row["state"] == "claimed"} == claims
    granted = sum(row["granted"] or 0 for row in ledger.values())
    assert granted == sum(row["credits"] for row in accounts if row["kind"] == "machine")
    assert granted == document("out/run.json")["credits_granted"]
    assert {row["kind"] for row in accounts} == {"machine", "user"}
    assert all(row["due_us"] is None for row in journal)
    assert not Path("out/response.hgrm").exists()


def test_a_run_without_any_answer_is_written_too(place):
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock")):
        result = perform(ReplayTarget(UnixEndpoint("cp.sock")))
    for schedule_us in (None, Rate(10).schedule(result.plan.workload.due_us)):
        evidence = replace(result.evidence, records=result.evidence.records[:0], schedule_us=schedule_us)
        unanswered = replace(result, evidence=evidence)
        name = f"out-{schedule_us is None}"
        summary = summarise(unanswered)
        assert (summary.operations, summary.per_second, summary.response) == (0, [], None)
        with run_folder.OutputFolder(Path(name)) as written:
            run_folder.write(unanswered, summary, written)
        assert pq.read_schema(f"{name}/journal.parquet").equals(JOURNAL_SCHEMA)
        assert pq.read_metadata(f"{name}/journal.parquet").num_rows == 0
        assert names(name) == FILES - {"seconds.parquet"}


def test_the_journal_goes_over_borders_of_chunks(place):
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock")):
        result = perform(ReplayTarget(UnixEndpoint("cp.sock")))
    records = result.evidence.records
    evidence = replace(result.evidence, records=records[np.arange(len(records)) % 3 > 0])  # some were not sent
    for name, size in (("whole", 16_384), ("cut", 10)):
        write_journal(evidence, Path(name), size)
    whole, cut = (pq.read_table(name).to_pylist() for name in ("whole", "cut"))
    assert whole == cut
    assert len(whole) == len(evidence.records)
    assert isinstance(pq.read_schema("whole").field("kind").type, pa.DictionaryType)


# Runs that fail leave nothing


def test_a_host_that_can_be_none_is_wrong_usage_and_leaves_nothing(site, cpsim):
    before = names(".")
    status, out, err = cpsim("run", "small.toml", "--target", site.addresses["tcp"].replace("127.0.0.1", "a" * 64))
    assert (status, out) == (64, "")
    assert "is not a host name" in err
    assert names(".") == before


def test_a_run_that_fails_leaves_nothing(site, cpsim):
    before = names(".")
    Path("wrong").write_text("wrong", encoding="utf-8")
    port = free_port()
    wrong = ["--project", PROJECT, "--secret-file", "wrong"]
    for arguments, said in (
        (["small.toml", "--target", "./nobody"], "cannot reach ./nobody: No such file or directory"),
        (["small.toml", "--target", f"127.0.0.1:{port}"], "Connection refused"),
        (["small.toml", "--target", f"http://127.0.0.1:{port}/api", *credentials()], "Connection refused"),
        (["small.toml", "--target", site.addresses["http"], *wrong], "answered 401"),
        (["small.toml", "--target", f"{site.addresses['http']}x", *credentials()], "answered 404"),
        (["small.toml", "--target", "./cp.sock", "--server", site.addresses["http"], *wrong], "answered 401"),
        (["nothing.toml"], "nothing.toml: no such file"),
    ):
        status, out, err = cpsim("run", *arguments, "--output", "out")
        assert (status, out) == (2, "")
        assert err.startswith("cpsim: ")
        assert said in err
        assert err.count("\n") == 1
        assert names(".") == before | {"wrong"}


def test_an_output_folder_that_is_empty_is_taken(place, cpsim):
    Path("out").mkdir()
    assert cpsim("run", "small.toml", "--output", "out")[0] == 0
    assert "run.json" in names("out")


def test_an_output_that_exists_is_not_touched(place, cpsim):
    Path("out").mkdir()
    Path("out/mine").write_text("mine", encoding="utf-8")
    Path("link").symlink_to("nowhere")
    for name in ("out", "link", "small.toml"):
        status, out, err = cpsim("run", "small.toml", "--output", name)
        assert (status, out) == (2, "")
        assert err == f"cpsim: {name} is there already; name another folder with --output\n"
    assert names(".") == {"out", "small.toml", "secret", "link"}
    assert names("out") == {"mine"}


def test_what_a_killed_run_left_is_used_if_it_is_nothing(place, cpsim):
    Path("out.partial").mkdir()
    assert cpsim("run", "small.toml", "--output", "out")[0] == 0
    assert names(".") == {"out", "small.toml", "secret"}


def test_what_an_earlier_run_could_write_is_not_touched(place, cpsim):
    Path("out.partial").mkdir()
    Path("out.partial/run.json").write_text("{", encoding="utf-8")
    status, out, err = cpsim("run", "small.toml", "--output", "out")
    assert (status, out) == (2, "")
    assert err.startswith(
        "cpsim: out.partial has what could be written of an earlier run; move it away, or name another"
    )
    assert Path("out.partial/run.json").read_text(encoding="utf-8") == "{"


def test_a_folder_that_another_run_writes_is_refused_at_once(place, cpsim):
    with run_folder.OutputFolder(Path("out")):
        status, out, err = cpsim("run", "small.toml", "--output", "out")
        assert (status, out) == (2, "")
        assert err == "cpsim: another run is writing out; name another folder with --output\n"
        assert names(".") == {"out.partial", "small.toml", "secret"}
    assert names(".") == {"small.toml", "secret"}


def test_a_run_folder_is_for_its_owner_alone(place):
    """Also where somebody has made an empty folder for it that anybody could read."""
    Path("out.partial").mkdir(0o755)
    with run_folder.OutputFolder(Path("out")) as written:
        written.write({"a.json": lambda path: path.write_text("{}", encoding="utf-8")})
    assert [stat.S_IMODE(Path(name).stat().st_mode) for name in ("out", "out/a.json")] == [0o700, 0o600]


@pytest.fixture
def before(monkeypatch):
    """Return before(owner, name, happens), which has something happen before the next call of a function."""

    def prepare(owner, name, happens):
        called = getattr(owner, name)

        def call(*arguments, **options):
            patched.undo()
            happens()
            return called(*arguments, **options)

        patched.setattr(owner, name, call)

    with monkeypatch.context() as patched:
        yield prepare


def text(path):
    path.write_text("{}", encoding="utf-8")


def test_a_run_that_ends_while_another_begins_leaves_the_folder_to_one(place, before):
    ending, began = run_folder.OutputFolder(Path("out")), []

    def end_and_begin():
        ending.__exit__()
        began.append(run_folder.OutputFolder(Path("out")))

    before(fcntl, "flock", end_and_begin)
    with pytest.raises(run_folder.FolderExists, match="another run is writing out"):
        run_folder.OutputFolder(Path("out"))
    with began[0] as written:
        written.write({"run.json": text})
    assert names("out") == {"run.json"}


def test_a_run_that_becomes_whole_while_another_begins_is_found_at_once(place, before):
    with run_folder.OutputFolder(Path("out")) as first:
        before(Path, "mkdir", lambda: first.write({"run.json": text}))
        with pytest.raises(run_folder.FolderExists, match="out is there already"):
            run_folder.OutputFolder(Path("out"))
    assert names(".") == {"out", "small.toml", "secret"}


def test_the_end_of_a_run_removes_no_folder_of_another(place):
    with run_folder.OutputFolder(Path("out")) as first:
        first.write({"run.json": text})
        Path("out").rename("moved")
        second = run_folder.OutputFolder(Path("out"))
    with second:
        second.write({"run.json": text})
    assert names("out") == names("moved") == {"run.json"}


def test_a_run_whose_empty_folder_somebody_has_removed_is_written(place):
    with run_folder.OutputFolder(Path("out")) as written:
        Path("out.partial").rmdir()
        written.write({"run.json": text})
    assert names("out") == {"run.json"}


@pytest.mark.thorough
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_run_that_cannot_be_written_keeps_what_it_has(place, options):
    program = """
import resource, sys
from cpsim.cli import main
from cpsim.run.folder import OutputFolder

class Limited(OutputFolder):
    def write(self, files):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        super().write(files)

sys.modules["cpsim.run.folder"].OutputFolder = Limited
sys.argv[0] = "cpsim"
main()
"""
    arguments = ["run", "small.toml", "--set", "arrivals.jobs=1000", "--output", "out", *options]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 2
    if options:
        assert json.loads(done.stdout)["verdict"] == "valid"
    else:
        assert "verdict       valid" in done.stdout
        assert "run folder" not in done.stdout
    said = done.stderr.splitlines()[-1]
    assert said.startswith("cpsim: out could not be written: ")
    kept = said.partition("; out.partial has what could: ")[2].split(", ")
    assert {"run.json", "verdict.json", "latency.hgrm"} <= set(kept)
    assert "journal.parquet" not in kept
    assert names("out.partial") == set(kept)
    assert json.loads(Path("out.partial/verdict.json").read_text(encoding="utf-8"))["verdict"] == "valid"


# Slot ids, open files


def test_slot_ids_begin_with_the_prefix(site, cpsim):
    arguments = ["--target", "./cp.sock", "--output", "out", "--slot-prefix", "mine 'é'"]
    assert cpsim("run", "small.toml", *arguments)[0] == 2
    with site.accounts.reading() as ledger:
        assert all(re.fullmatch(r"mine 'é'-\d+", slot) for slot in ledger.project(PROJECT).slots)


@pytest.mark.parametrize("prefix", ["a,b", "a=b", "a\nb", "", " a", "x" * 81, "é" * 41, "\udc80"])
def test_prefixes_that_no_slot_id_can_have(prefix):
    with pytest.raises(InvalidCommand):
        check_prefix(prefix)
    with pytest.raises(InvalidCommand):
        perform(ReplayTarget(UnixEndpoint("./nobody")), prefix=prefix)


def test_long_names_make_prefixes_that_fit(site):
    named = f"name = '{'é' * 200}'\n{SMALL}"
    result = perform(ReplayTarget(UnixEndpoint("./cp.sock")), scenario=named, prefix=None)
    again = perform(ReplayTarget(UnixEndpoint("./cp.sock")), scenario=named, prefix=None)
    assert set(result.evidence.records["outcome"]) == {0}
    assert result.plan.slot_prefix != again.plan.slot_prefix
    for made in (result, again):
        check_prefix(made.plan.slot_prefix)


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(place, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        run_module._allow_open_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
        run_module._allow_open_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(CpsimError, match=r"10,064 files .* allows 1,024: lower --in-flight"):
        run_module._allow_open_files(10_064)


@pytest.mark.parametrize(
    ("busy", "retried", "lateness_ms", "limit"),
    [
        (0.5, {}, None, "target"),
        (0.95, {}, None, "generator"),
        (0.95, {}, 0.5, None),
        (0.95, {}, 50.0, "generator"),
        (0.5, {}, 50.0, "target"),
        (0.95, {"cannot connect: no port is free here": 3}, None, "ports"),
        (0.5, {"backlog full": 3}, None, "backlog"),
    ],
)
def test_what_limited_a_run(busy, retried, lateness_ms, limit):
    from types import SimpleNamespace

    from cpsim.replay.engine import Effort
    from cpsim.replay.pace import AsFastAsPossible
    from cpsim.run.summary import _limit

    run = SimpleNamespace(plan=SimpleNamespace(pace=AsFastAsPossible()), effort=Effort(busy, retried))
    assert _limit(run, SimpleNamespace(lateness_p99_ms=lateness_ms, own_p99_ms=None, sent=1)) == limit
