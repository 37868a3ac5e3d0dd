"""The page of a run while it goes on."""

import http.client
import json
import os
import re
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe import barriers

from cpdaemon import TcpEndpoint
from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.evidence.journal import Journal, OperationOutcome
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay.pace import AsFastAsPossible, Rate
from cpsim.run import pipeline
from cpsim.run.live import UNREPORTED, LivePage
from cpsim.run.plan import Plan, ReplayTarget
from cpsim.scenario import generate, source
from cpsim.testing import ManualClock

SMALL = """
description = "a little"
duration = "1h"
population = { machines = 4, users = 2 }
arrivals = { model = "constant", jobs = 100 }
run_time = { model = "constant", value = "10min" }
"""
FINAL = Path("runs/small/report.html")


@pytest.fixture(scope="module")
def plan():
    workload = generate(source.parse(SMALL, "small.toml"), 7)
    target = ReplayTarget(TcpEndpoint("127.0.0.1", 9))
    return Plan(workload, target, Rate(100.0), "w", datetime.now(UTC), 4, 5.0, command="cpsim run small.toml --seed 7")


@contextmanager
def shown(plan, faults=(), shares=1):
    """(live page, the clock that it flushes by, journals), while it is served."""
    clock, journals = ManualClock(), [Journal() for _ in range(shares)]
    with LivePage(ANY_PORT, FINAL, clock) as live:
        live.begin(plan, faults)
        live.follow(journals)
        yield live, clock, journals
    for journal in journals:
        journal.close()


def record(journal, ops, error=""):
    outcome = OperationOutcome.REFUSED if error else OperationOutcome.ACCEPTED
    for op in ops:
        journal.record(op, outcome, error, op * 10_000_000, op * 10_000_000 + 2_000_000)


def ask(url, path="/", method="GET", **headers):
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=280)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_a_page_shows_what_is_known_so_far_until_the_run_ends(plan, wait_for):
    with shown(plan, ["server.status=503:from=2"], shares=2) as (live, clock, journals):
        status, text = ask(live.url)
        assert status == 200
        assert f"0 of {len(plan.workload)} operations are answered" in text
        assert "Nothing was sent" in text
        record(journals[0], range(3))
        record(journals[1], range(2), "HTTP 503")
        live.flush(journals, faults_since_s=0.5, judged="valid so far: 2 slots, 0 findings")
        wait_for(lambda: "5 of" in ask(live.url)[1])
        text = ask(live.url)[1]
        assert '<span class="running">running</span>' in text
        assert "connect-src 'self'" in text
        assert str(FINAL) in text
        assert "verified at its end (valid so far: 2 slots, 0 findings)." in text
        assert "Not verified: The run has not ended" in text
        assert "server.status=503:from=2" in text
        assert re.search(r">HTTP 503</th><td class=\"num\">2<", text)
        assert "busy" not in text
        record(journals[0], range(3, 4), "ER")
        journals[0].flush()
        wait_for(lambda: UNREPORTED in ask(live.url)[1])
        clock.advance(1)
        live.flush(journals, faults_since_s=0.5)
        wait_for(lambda: UNREPORTED not in (text := ask(live.url)[1]) and ">ER</th>" in text)
        assert ask(live.url, "/slots")[0] == 404
        assert ask(live.url, method="POST")[0] == 405
        assert ask(live.url, Host="evil.example")[0] == 403
    with pytest.raises(ConnectionRefusedError):
        ask(live.url)


class CountedJournal(Journal):
    """A journal that counts how often it is flushed."""

    flushed = 0

    def flush(self):
        self.flushed += 1
        super().flush()


def test_journals_are_flushed_once_a_second_and_no_more():
    clock, journal = ManualClock(), CountedJournal()
    with closing(journal), LivePage(ANY_PORT, FINAL, clock) as live:
        for _ in range(3):
            for _ in range(20):
                live.flush([journal], 0.0)
                clock.advance(0.05)
        assert journal.flushed == 3


@pytest.mark.thorough
def test_a_page_whose_process_has_ended_does_not_hurt_the_run(plan):
    with shown(plan) as (live, clock, journals):
        live._process.kill()
        live._process.wait()
        for number in range(3):
            record(journals[0], [number], f"error {number}")
            clock.advance(1)
            live.flush(journals, 0.0)
        assert len(journals[0].records()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "smoke", "--virtual", "--page", "0"), "--virtual has no --page"),
        (("load", "smoke", "--target", "h:1", "--find-capacity", "--page", "0"), "--find-capacity has no --page"),
        (("run", "smoke", "--page", "nowhere"), "is not HOST:PORT"),
    ],
)
def test_where_there_is_no_page_it_is_refused(cpsim, arguments, said):
    status, _, errors = cpsim(*arguments)
    assert status == 64
    assert said in errors


class Heard:
    """A live page that hears, and shows nothing."""

    def __init__(self):
        self.begun, self.sizes, self.errors, self.since_s = [], [], [], None

    def begin(self, plan, faults):
        self.begun.append((plan, tuple(faults)))

    def follow(self, journals):
        self.journals = list(journals)

    def flush(self, journals, faults_since_s, judged):
        assert journals == self.journals
        for journal in journals:
            journal.flush()
        self.sizes.append(sum(os.fstat(journal.fileno()).st_size for journal in journals))
        self.errors.append([list(journal.errors) for journal in journals])
        self.since_s = faults_since_s


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_run_says_what_it_has_recorded_while_it_replays(processes, tmp_path):
    heard = Heard()
    with Fake({"p": "s"}, unix=tmp_path / "cp.sock", http=ANY_PORT) as site:
        target = ReplayTarget(UnixEndpoint(site.addresses["unix"]), parse_endpoint(site.addresses["http"]), ("p", "s"))
        result = pipeline.run(
            lambda: generate(source.parse(SMALL, "small.toml"), 7),
            target,
            Rate(200.0) if processes > 1 else AsFastAsPossible(),
            in_flight=8,
            timeout_s=5.0,
            processes=processes,
            slot_prefix=None,
            faults=["daemon.error:kind=claim"],
            on_stage=lambda _: None,
            on_progress=lambda *_: None,
            live=heard,
        )
    ((plan, faults),) = heard.begun
    assert plan is result.plan
    assert faults == ("daemon.error:kind=claim",)
    assert len(heard.journals) == processes
    assert heard.sizes[-1] > 0
    assert heard.sizes == sorted(heard.sizes)
    assert -60 < heard.since_s <= 0
    assert all("ER" in " ".join(texts) for texts in heard.errors[-1])


@pytest.mark.thorough
def test_a_command_serves_the_page_of_its_run(cpsim, tmp_path):
    folder = tmp_path / "run"
    status, printed, errors = cpsim("run", "smoke", "--page", "127.0.0.1:0", "--output", folder, "--json")
    assert status == 0
    assert re.search(r"the page of this run: http://127\.0\.0\.1:\d+/\n", errors)
    assert json.loads(printed)["verdict"] == "valid"
    assert "--page" not in json.loads((folder / "verdict.json").read_text())["repeat"]
    page = (folder / "report.html").read_text()
    assert 'class="pause"' not in page
    assert "connect-src" not in page


@pytest.mark.thorough
def test_a_browser_follows_a_run_to_its_end(browser, plan, wait_for):
    def text(selector):
        return browser.execute_script(f"return document.querySelector('{selector}').textContent")

    with shown(plan) as (live, clock, journals):
        record(journals[0], range(100))
        live.flush(journals, 0.0)
        browser.get(live.url)
        wait_for(lambda: "100 of" in text("#head"))
        wait_for(lambda: browser.execute_script("return document.querySelectorAll('canvas').length") >= 4)
        browser.execute_script("document.querySelector('#time details').open = true")
        rows = "return document.querySelector('#time .chart tbody').rows.length"
        before = browser.execute_script(rows)
        record(journals[0], range(100, 160))
        clock.advance(1)
        live.flush(journals, 0.0)
        wait_for(lambda: "160 of" in text("#head"))
        assert browser.execute_script(rows) != before
        assert browser.execute_script("return document.querySelector('#time details').open")
        assert browser.get_log("browser") == []
        for width, scheme in ((1400, "light"), (400, "dark")):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            chosen = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": [chosen]})
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert barriers(browser) == []
    wait_for(lambda: str(FINAL) in text("#news"))
    assert "has ended" in text("#news")
