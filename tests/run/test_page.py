"""The page of a run: its figures over time, what it says, and what a browser shows of it."""

import base64
import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from axe import barriers

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim import fake
from cpsim.config.thresholds import Threshold
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run import page, pipeline
from cpsim.run.documents import run_document, verdict_document
from cpsim.run.latency import Histogram
from cpsim.run.over_time import OverTime
from cpsim.run.pipeline import ApplyDelay
from cpsim.run.plan import ReplayTarget
from cpsim.run.summary import summarise
from cpsim.scenario import generate, source

SMALL = """
description = "a little of everything"
duration = "1d"
population = { machines = 8, users = 4 }
arrivals = { model = "constant", jobs = 60 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 0.7, never = 0.1, discard = { late = 0.2 } }
credits = { policy = "range", min = 5, max = 20 }
metadata = { site = ["here", "there"] }
"""
ERRORS = ["", "no answer in time", "HTTP 503"]
LARGEST_BYTES = 1_500_000


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run of some 200 operations at a fake whose accounts were seen."""
    daemon = tmp_path_factory.mktemp("run") / "cp.sock"
    with fake.Fake({"p": "s"}, unix=daemon, http=fake.ANY_PORT) as site:
        target = ReplayTarget(UnixEndpoint(str(daemon)), parse_endpoint(site.addresses["http"]), ("p", "s"))
        return pipeline.run(
            lambda: generate(source.parse(SMALL, "small.toml"), 7),
            target,
            AsFastAsPossible(),
            in_flight=8,
            timeout_s=5.0,
            slot_prefix="w",
            command=lambda seed: f"cpsim run small.toml --seed {seed}",
            on_stage=lambda _: None,
            on_progress=lambda *_: None,
        )


def lasting(real, sent_s, took_s, error=(), due_s=None, **changes):
    """The run with other times: when each operation was sent, and how long its answer took, in seconds."""
    records = np.zeros(len(sent_s), RECORD_TYPE)
    records["op"] = np.arange(len(records))
    records["sent_ns"] = np.round(np.asarray(sent_s) * 1e9)
    records["answered_ns"] = records["sent_ns"] + np.round(np.asarray(took_s) * 1e9).astype(np.int64)
    for place, code in dict(error).items():
        records["error"][place] = code
        records["outcome"][place] = OperationOutcome.UNKNOWN if code == 1 else OperationOutcome.REFUSED
    schedule_us = None if due_s is None else np.resize(np.round(np.asarray(due_s) * 1e6), len(real.plan.workload))
    schedule_us = None if schedule_us is None else schedule_us.astype(np.int64)
    elapsed_s = float(records["answered_ns"].max()) / 1e9
    evidence = replace(
        real.evidence, records=records, errors=ERRORS, schedule_us=schedule_us, elapsed_s=elapsed_s, **changes
    )
    return replace(real, evidence=evidence)


def over_time(run, delay=None):
    return OverTime.of(run.evidence, delay or ApplyDelay(unknown="nobody knows"))


def text_of(run, thresholds=()):
    summary = summarise(run, {})
    summary.check([Threshold.parse(text) for text in thresholds])
    return page.html(run, summary, run_document(run, summary), verdict_document(run.evidence, run.verdict))


def said(text):
    """The text of a page without its style and scripts, and without tags."""
    return " ".join(unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)).split())


def charts(text):
    """The data of each chart by its title."""
    found = re.findall(
        r'<figure class="chart">\s*<figcaption>(.*?)</figcaption>.*?<script type="application/json">(.*?)</script>',
        text,
        re.DOTALL,
    )
    return {title: json.loads(data) for title, data in found}


def values(text, title, name):
    return next(series["values"] for series in charts(text)[title]["series"] if series["name"] == name)


# Figures over time


def test_a_last_interval_that_is_not_whole_has_no_rate(real):
    cut = over_time(lasting(real, [second / 10 for second in range(124)], [0.05] * 124))
    assert cut.step_s == 1
    assert cut.achieved == [10.0] * 12 + [None]
    assert cut.refused == [0.0] * 12 + [None]
    assert cut.service_ms["p50"] == [50.0] * 13
    whole = over_time(lasting(real, [second / 10 for second in range(120)], [0.1] * 120))
    assert whole.achieved == [9.0] + [10.0] * 10 + [11.0]


def test_offered_is_what_was_due_and_achieved_what_was_answered(real):
    due_s = [second / 10 for second in range(200)]
    sent = lasting(real, due_s[:150], [0.02] * 149 + [1.0], {100: 1, 110: 2, 111: 2}, due_s)
    found = over_time(sent)
    assert found.offered[:15] == [10.0] * 15
    assert sum(found.achieved[:-1]) == 148
    assert sum(found.unknown[:-1]) == 1
    assert [found.refused[10], found.refused[11]] == [0.0, 2.0]
    assert over_time(lasting(real, due_s, [0.1] * 200)).offered is None


def test_latencies_are_of_the_interval_in_which_operations_were_due(real):
    due_s = [place / 10 for place in range(120)]
    late_s = [due + 2 if 50 <= place < 60 else due for place, due in enumerate(due_s)]
    found = over_time(lasting(real, late_s, [0.001] * 120, due_s=due_s))
    assert found.response_ms["p50"][5] == pytest.approx(2001)
    assert found.response_ms["max"][7] == found.service_ms["max"][5] == pytest.approx(1)
    idle = over_time(lasting(real, [0, 1, 14], [0.5] * 3))
    assert idle.service_ms["p99"][2:14] == [None] * 12


def test_short_and_long_runs_have_so_many_intervals(real):
    short = over_time(lasting(real, [0.001 * place for place in range(100)], [0.001] * 100))
    assert (short.step_s, len(short.achieved)) == (0.005, 20)
    long = over_time(lasting(real, [1_000 * place for place in range(100)], [0.001] * 100))
    assert (long.step_s, len(long.achieved)) == (300, 331)
    assert over_time(lasting(real, [0], [1e-6])).achieved == [None]


def test_a_queue_is_what_was_acknowledged_and_not_applied(real):
    run = lasting(real, [0.5 + place for place in range(12)], [0.1] * 12)
    answered_ns = run.evidence.records["answered_ns"]
    found = over_time(run, ApplyDelay(np.full(12, 3_000_000_000), answered_ns))
    assert found.pending == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert found.apply_delay_ms["max"] == [3000.0] * 12
    assert found.in_flight == [0] * 12
    assert over_time(run).pending is None
    assert over_time(lasting(real, [0.5, 0.9, 11], [5, 0.2, 1])).in_flight[:6] == [2, 1, 1, 1, 1, 0]


def test_an_outage_is_a_wait_without_any_answer(real):
    steadily = [place / 10 for place in range(50)]
    waited = lasting(real, [*steadily, 5.0, 8.0], [0.01] * 50 + [4.0, 1.0])
    assert over_time(waited).outages == [pytest.approx((5.0, 9.0))]
    timed_out = lasting(real, [*steadily, 5.0, 5.1], [0.01] * 50 + [4.0, 4.0], {50: 1, 51: 1})
    assert over_time(timed_out).outages == [pytest.approx((5.0, 9.1))]
    idle = lasting(real, [*steadily, 9.0], [0.01] * 51)
    assert over_time(idle).outages == []


def test_a_quantile_that_only_the_greatest_value_tells_is_unknown():
    hundred = Histogram.of(np.arange(1, 101) * 1_000_000)
    assert hundred.quantile_ms(0.5) == pytest.approx(50, rel=0.001)
    assert hundred.quantile_ms(0.99) == pytest.approx(99, rel=0.001)
    assert hundred.quantile_ms(0.999) is None
    assert Histogram.of(np.empty(0, np.int64)).quantile_ms(0.5) is None


# What the page says


def test_verdict_and_reasons_come_first(real):
    run = lasting(real, [place / 10 for place in range(120)], [0.1] * 120)
    text = said(text_of(run, ["p99_ms<1", "p99_ms<1000"]))
    reasons = ["All that was checked", "assert fails: p99_ms<1: it was", "assert holds: p99_ms<1000", "Checked:"]
    sections = [
        "operations sent",
        "Over time Intervals",
        "Latency Latency in",
        "Commands Commands by",
        "Worst slots accepted",
    ]
    places = [text.index(each) for each in ["small: valid Seed 7", *reasons, *sections]]
    assert places == sorted(places)


def test_charts_and_tables_show_the_run(real):
    text = text_of(lasting(real, [place / 10 for place in range(124)], [0.05] * 124, {7: 2}))
    assert values(text, "Operations per second", "achieved") == [10.0] * 12 + [None]
    assert values(text, "Service time, ms", "p99") == [50.0] * 13
    curve = charts(text)["Milliseconds at each percentile"]
    assert curve["x"][0] == 1
    assert curve["x"][-1] <= 124
    for chart in charts(text).values():
        assert all(len(series["values"]) == len(chart["x"]) for series in chart["series"])
    assert text.count("<details><summary>Table</summary>") == len(charts(text)) >= 5
    plain = said(text)
    assert "The last interval is not whole: its rates are not shown." in plain
    assert re.search(r"kind planned accepted refused unknown p50, ms p99, ms max, ms alloc 60 \d+ [01] 0 50", plain)
    assert re.search(r"Slots by outcome (claimed|discarded|allocated|expired) \d+", plain)
    assert "HTTP 503 1" in plain
    assert "cpsim run small.toml --seed 7" in plain
    assert re.search(r"generator \S.*\d+ processors versions cpsim", plain)
    assert len(text.encode()) < LARGEST_BYTES


def test_what_is_missing_is_said_to_be(real):
    records = real.evidence.records
    unseen = replace(real.evidence, seen=None, command="")
    run = replace(real, evidence=unseen, apply_delay=ApplyDelay(unknown="there is no server with a clock"))
    plain = said(text_of(run))
    assert len(records)
    for sentence in (
        "unknown apply delay, p99",
        "Offered is not known: at this pace, operations have no due times.",
        "Apply delay and the queue behind OK are not known: there is no server with a clock.",
        "response time, from due to answer not known: operations had no due times",
        "apply delay, from OK to applied unknown: there is no server with a clock",
        "Slots by outcome are not known",
        "How many credits were granted is not known",
        "There is no command line that repeats this run",
    ):
        assert sentence in plain


def test_a_run_in_which_nothing_was_sent_has_a_page(real):
    nothing = replace(real.evidence, records=real.evidence.records[:0], elapsed_s=0.0)
    text = text_of(replace(real, evidence=nothing))
    assert "Nothing was sent: there are no figures over time." in said(text)
    assert charts(text) == {} or list(charts(text)) == ["Milliseconds at each percentile"]


def test_faults_and_outages_are_on_the_axis(real):
    faults = (
        {"fault": "server.down:from=5,until=9", "selected": 1, "fired": 1},
        {"fault": "daemon.error:probability=0.1", "selected": 9, "fired": 2},
        {"fault": "server.down:from=500,until=900", "selected": 0, "fired": 0},
    )
    firings = tuple({"time_s": time_s} for time_s in (1.5, 5.0, 700.0))
    sent_s = [*(place / 10 for place in range(50)), 5.0, 9.5, 11.0]
    run = lasting(real, sent_s, [0.01] * 50 + [4.0, 0.1, 0.5], faults=faults, firings=firings)
    text = text_of(replace(run, faults_since_s=-0.5))
    chart = charts(text)["Operations per second"]
    assert chart["bands"] == [
        [4.5, 8.5, faults[0]["fault"], "open"],
        [5.0, 9.0, "outage: nothing was answered", "bad"],
    ]
    assert chart["ticks"] == pytest.approx([1.0, 4.5], abs=0.02)
    plain = said(text)
    assert "server.down:from=5,until=9 4.500 8.500 1" in plain
    assert "daemon.error:probability=0.1 \N{EN DASH} \N{EN DASH} 2" in plain
    virtual = replace(run.evidence, virtual_ns=run.evidence.records["sent_ns"], faults=faults[:1])
    in_virtual_time = text_of(replace(run, evidence=virtual))
    assert "Faults have the scenario's times" in said(in_virtual_time)
    assert [band[2] for band in charts(in_virtual_time)["Operations per second"]["bands"]] == [
        "outage: nothing was answered"
    ]


def test_the_slowest_slots_are_shown_with_their_commands(real):
    took_s = [0.001] * 120
    took_s[17], took_s[40] = 0.9, 0.5
    run = lasting(real, [place / 10 for place in range(120)], took_s)
    headings = re.findall(r"<h3>(w-\d+: .*?)</h3>", text_of(run))
    assert len(headings) == 3
    assert headings[0].endswith("was accepted after 900.000 ms")
    assert headings[1].endswith("was accepted after 500.000 ms")
    workload = real.plan.workload
    assert headings[0].startswith(f"w-{workload.slot_numbers[workload.slot[17]]}: ")


# In a browser


@pytest.fixture
def shown(browser, real, tmp_path):
    """Return shown(width, dark=, media=) -> the browser, with the page of a run in it."""
    faults = ({"fault": "server.down:from=5,until=7", "selected": 1, "fired": 1},)
    sent_s = [place / 10 for place in range(124)]
    took_s = [0.004 + place % 10 / 1000 for place in range(124)]
    run = lasting(real, sent_s, took_s, {7: 2, 30: 1}, sent_s, faults=faults, firings=({"time_s": 5.5},))
    path = tmp_path / "report.html"
    path.write_text(text_of(run), encoding="utf-8")

    def show(width=1400, *, dark=False, media="screen"):
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.as_uri())
        return browser

    return show


def test_the_page_works_alone_at_every_size_and_is_kept_as_a_picture(shown, request):
    """Pictures are in `.artefacts/`, for somebody to look at."""
    folder = request.config.rootpath / ".artefacts"
    folder.mkdir(exist_ok=True)
    for name, width, options in (
        ("wide-light", 1400, {}),
        ("wide-dark", 1400, {"dark": True}),
        ("narrow-light", 400, {}),
        ("narrow-dark", 400, {"dark": True}),
        ("print", 800, {"media": "print"}),
    ):
        browser = shown(width, **options)
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, name
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('canvas')].map(canvas => new Set(new Uint32Array("
            "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size)"
        )
        assert not name.startswith("wide") or barriers(browser) == [], name
        assert len(drawn) == 7, name
        assert min(drawn) > 5, name
        height = min(12_000, browser.execute_script("return document.documentElement.scrollHeight"))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (folder / f"run-{name}.png").write_bytes(base64.b64decode(taken["data"]))


def test_commands_of_a_timeline_can_be_seen_and_have_names(shown):
    browser = shown()
    bars = browser.execute_script(
        "return [...document.querySelectorAll('.steps .track i')].map(bar => "
        "bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width)"
    )
    assert bars
    assert min(bars) > 0.02
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, a, [role=region], [role=application], figure.timeline')]"
        ".filter(each => !each.getAttribute('aria-label') && !each.textContent.trim()).map(each => each.outerHTML)"
    )
    assert nameless == []
    assert browser.execute_script("return [...document.querySelectorAll('table')].every(each => each.caption)")
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
