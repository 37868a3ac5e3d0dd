"""What is wrong is shown with what happened, and with lines that repeat it; all is judged only when nothing moves."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.accounts.observer import Observer
from cpsim.fake import ANY_PORT, Fake
from cpsim.judge.model import SlotState, Span, Step
from cpsim.judge.repeat import shell_lines
from cpsim.judge.timeline import timeline
from cpsim.judge.verdict import Verdict
from cpsim.net.control import ControlClient
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run import folder as run_folder
from cpsim.run.documents import verdict_document
from cpsim.run.drivers import EMBEDDED
from cpsim.run.pipeline import ReplayTarget, run
from cpsim.run.summary import summarise
from cpsim.scenario import generate, source
from cpsim.server.control import export
from cpsim.server.ledger import Ledger

CREDENTIALS = ("p", "se'cret")
OPEN = SlotState("allocated")
NETCAT = """
import socket, sys
with socket.socket(socket.AF_UNIX if sys.argv[1] == "-U" else socket.AF_INET) as sock:
    sock.connect(sys.argv[2] if sys.argv[1] == "-U" else (sys.argv[1], int(sys.argv[2])))
    sock.sendall(sys.stdin.buffer.read())
    while data := sock.recv(100):
        sys.stdout.buffer.write(data)
"""
SMALL = """
description = "everything, in small"
duration = "1d"
population = { machines = 8, users = 4 }
arrivals = { model = "constant", jobs = 40 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 0.8, discard = { "too 'late'" = 0.2 } }
credits = { policy = "range", min = 5, max = 20, claim = { model = "uniform", low = 1, high = 30 } }
counters.claim = { "job/events" = { model = "poisson", mean = 100 } }
metadata = { site = ["here", "the%re"] }
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL, encoding="utf-8")
    Path("secret").write_text(f"{CREDENTIALS[1]}\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def site(place):
    """A fake of its own in this process."""
    with Fake(dict([CREDENTIALS]), unix=Path("cp.sock"), tcp=ANY_PORT, http=ANY_PORT) as started:
        yield started


@pytest.fixture
def miserly(monkeypatch):
    """A ledger that grants nothing for slots whose number ends with 3."""
    claim = Ledger._claim

    def wrong(ledger, project, slot, arguments, now_us):
        claim(ledger, project, slot, arguments, now_us)
        if "3" in arguments["slot"].removesuffix("-again")[-1:]:
            slot.granted = 0

    monkeypatch.setattr(Ledger, "_claim", wrong)


@pytest.fixture
def forgetful(monkeypatch):
    """A ledger that knows no metadata."""
    monkeypatch.setattr(Ledger, "_meta", lambda *_: None)


@pytest.fixture
def netcat(place):
    """A stand-in for nc, as not every machine has it; returns the environment that finds it."""
    program = place / "bin" / "nc"
    program.parent.mkdir()
    (place / "netcat.py").write_text(NETCAT, encoding="utf-8")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{place}/netcat.py" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}


def target(site, where):
    server = parse_endpoint(site.addresses["http"])
    return ReplayTarget(
        {"unix": UnixEndpoint("cp.sock"), "http": server}.get(where) or parse_endpoint(site.addresses[where]),
        server,
        CREDENTIALS,
    )


def perform(where, *, timeout_s=2.0):
    return run(
        lambda: generate(source.parse(SMALL, "small.toml"), 7),
        where,
        AsFastAsPossible(),
        in_flight=8,
        timeout_s=timeout_s,
        slot_prefix="it's %d",
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
    )


@pytest.mark.parametrize("where", ["unix", "tcp", "http"])
def test_the_lines_of_a_finding_repeat_it(miserly, site, netcat, where):
    result = perform(target(site, where))
    document = verdict_document(result.evidence, result.verdict)
    example = next(example for example in document["examples"] if example["name"] == "under-credited")
    script = "\n".join(["set -e", *example["repeat"]])
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=280, env=netcat)
    site.wait_until_idle()
    with site.accounts.reading() as ledger:
        slots = ledger.project("p").slots
        first, again = slots[example["slot"]], slots[f"{example['slot']}-again"]
    for name in ("state", "machine", "granted", "counters", "meta", "min", "max"):
        assert getattr(again, name) == getattr(first, name)
    assert again.granted == 0


def test_the_lines_of_a_finding_at_an_embedded_server_start_one(miserly, site):
    result = perform(target(site, "unix"))
    own = dataclasses.replace(result.evidence, embedded=True, endpoint=EMBEDDED)
    serve, *lines = verdict_document(own, result.verdict)["examples"][0]["repeat"]
    assert serve == "cpsim serve --unix creditapi.socket --http 127.0.0.1:8080 &"
    assert all(line.endswith("| nc -U creditapi.socket") for line in lines)


def test_a_command_that_was_never_sent_is_not_repeated():
    steps = [Step("alloc", {"slot": "s"}, Span(0, 1), applied) for applied in (True, None, False)]
    assert (
        shell_lines(steps, parse_endpoint("127.0.0.1:5667"))
        == ["printf '%s\\n' alloc,slot=s-again | nc 127.0.0.1 5667"] * 2
    )


def test_the_command_line_that_repeats_a_run(miserly, site, cpsim):
    where = ["--target", "./cp.sock", "--server", site.addresses["http"], "--project", "p", "--secret-file", "secret"]
    typed = ["run", "small.toml", *where, "--timeout", "2", "--output", "out", "--slot-prefix", "mine"]
    status, printed, _ = cpsim(*typed)
    assert status == 1
    command = f"cpsim run small.toml {' '.join(where)} --seed 1 --timeout 2.0"
    assert f"repeat with   {command}\n" in printed
    verdict = json.loads(Path("out/verdict.json").read_text(encoding="utf-8"))
    assert verdict["repeat"] == command
    assert (
        set(verdict["meanings"])
        == set(verdict["anomalies_by_name"])
        == {"under-credited", "over-credited", "not conserved"}
    )
    example = next(example for example in verdict["examples"] if example["name"] == "under-credited")
    assert "seen: claimed by" in example["timeline"][-1]
    for line in example["timeline"]:
        assert line in printed
    found = [finding for finding in verdict["anomalies"] if finding["subject"] == example["slot"]]
    assert found == [
        {"name": "under-credited", "subject": example["slot"], "detail": example["detail"], "slots": [example["slot"]]}
    ]


class Picture(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_a_slots_timeline_as_text_and_as_a_picture(miserly, site):
    result = perform(target(site, "http"))
    with run_folder.OutputFolder(Path("out")) as written:
        run_folder.write(result, summarise(result), written)
    text = Path("out/report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!127\.0\.0\.1)|@import|url\(", text.partition("<script>")[0])
    page = Picture(text)
    examples = [example for kept in result.verdict.examples.values() for example in kept]
    labels = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("class") == "timeline"]
    assert len(examples) > 0
    assert all(example.anomaly.subject in label for example, label in zip(examples, labels, strict=False))
    bars = [attributes for tag, attributes in page.tags if tag == "i" and "left:" in attributes.get("style", "")]
    assert sum(bar["class"] == "seen" for bar in bars) == len(examples)
    commands = sum(len(example.steps) for example in examples)
    assert sum(bar["class"] == "accepted" for bar in bars) >= commands
    for example in examples:
        for line in timeline(example).lines:
            assert line in page.text


def example(steps, found=OPEN):
    verdict = Verdict()
    verdict.add_example(verdict.find("lost", "s", "it is gone", ["s"]), steps, Span(5_000_000, 6_000_000), found)
    return verdict.examples["lost"][0]


def test_a_timeline_tells_what_happened():
    steps = [
        Step("alloc", {"slot": "s", "min": 1}, Span(1_000_000, 6_000_000), True, None, 1_500_000),
        Step("meta", {"slot": "s", "a": "x" * 60}, Span(2_000_000, 6_000_000), None, None, 4_000_000),
        Step("claim", {"slot": "s", "machine": "m"}, Span(3_000_000, 3_000_001), True, accepted=False),
        Step("discard", {"slot": "s"}, Span(3_000_000, 3_000_000), applied=False),
    ]
    shown = timeline(example(steps))
    assert shown.title == "s: lost: it is gone"
    assert [re.sub(" +", " ", line).strip() for line in shown.lines] == [
        "+0.000000 s alloc min=1 accepted after 0.500 ms",
        f"+0.001000 s meta a={'x' * 60} unknown after 2.000 ms",
        "+0.002000 s claim machine=m refused after 0.000 ms",
        "+0.002000 s discard refused after 0.000 ms",
        "+0.004000 s seen: allocated",
    ]
    assert [bar.outcome for bar in shown.bars] == ["accepted", "unknown", "refused", "refused", "seen"]
    assert all(bar.begin >= 0 and bar.begin + bar.width <= 100.01 and bar.width >= 1 for bar in shown.bars)
    assert [bar.begin for bar in shown.bars] == sorted(bar.begin for bar in shown.bars)
    assert shown.bars[1].begin > shown.bars[0].begin + shown.bars[0].width
    assert [bar.when for bar in shown.bars][-2:] == ["+0.002000 s  refused after 0.000 ms", "+0.004000 s"]
    assert max(len(bar.label) for bar in shown.bars) == 42
    assert len(shown.bars) == 5


def test_commands_of_a_millisecond_fill_a_picture_of_a_minute():
    steps = [
        Step("alloc", {"slot": "s"}, Span(0, 300_000), True),
        Step("claim", {"slot": "s"}, Span(1_000_000, 1_300_000), True),
    ]
    verdict = Verdict()
    verdict.add_example(verdict.find("lost", "s", "it is gone", ["s"]), steps, Span(60 * 10**9, 61 * 10**9), OPEN)
    bars = timeline(verdict.examples["lost"][0]).bars
    assert all(bar.width > 10 for bar in bars[:2])
    assert bars[-1].begin == 99


def test_states_are_told_in_words():
    state = SlotState("claimed", "m", 3, None, frozenset({("n", 1), ("a", -2)}), frozenset({("site", "x")}))
    lines = timeline(example([Step("alloc", {"slot": "s"}, Span(0, 0), True)], state)).lines
    assert lines[-1].endswith("seen: claimed by m for 3 credits, a=-2,n=1,site=x")
    assert timeline(example([Step("alloc", {"slot": "s"}, Span(0, 0), True)], None)).lines[-1].endswith("not there")


# Waiting


@pytest.fixture
def looks(monkeypatch):
    """How often the slots were read."""
    count, view = [], Observer.view
    monkeypatch.setattr(Observer, "view", lambda observer: count.append(1) or view(observer))
    return count


def test_while_an_effect_arrives_nothing_is_judged(place, looks, monkeypatch):
    totals = ControlClient.totals
    monkeypatch.setattr(ControlClient, "totals", lambda client: totals(client) | {"pending": 0})  # as of one far away
    with Fake(dict([CREDENTIALS]), unix=Path("cp.sock"), http=ANY_PORT, flush_interval_s=0.5) as slow:
        result = perform(target(slow, "unix"), timeout_s=5.0)
    assert result.verdict.ruling == "valid"
    assert len(looks) <= 4


def test_what_never_comes_is_waited_for_once(forgetful, site, looks):
    result = perform(target(site, "unix"), timeout_s=2.0)
    assert result.verdict.counts == {"lost": 40}
    assert len(looks) == 2


def test_what_a_server_has_answered_is_not_waited_for(miserly, site, looks):
    assert perform(target(site, "http"), timeout_s=60.0).verdict.ruling == "invalid"
    assert len(looks) == 1


def test_a_server_may_take_longer_for_a_table_than_for_an_answer(site, monkeypatch):
    made, asked, timeout_s = export.slots_parquet, [], 1.0

    def make(ledger, *page):
        """Make the table when who had asked for less would have gone."""
        asker, silent = socket.socketpair()
        with asker, silent:
            asker.settimeout(1.1 * timeout_s)
            with pytest.raises(TimeoutError):
                asker.recv(1)
        asked.append(timeout_s)
        return made(ledger, *page)

    monkeypatch.setattr(export, "slots_parquet", make)
    assert perform(target(site, "http"), timeout_s=timeout_s).verdict.ruling == "valid"
    assert asked
