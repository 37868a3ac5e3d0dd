"""Past runs: what is listed, shown, compared and removed, and what an --assert is relative to."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from axe import barriers
from click.testing import CliRunner

from cpsim.cli import cli
from cpsim.evidence import past
from cpsim.evidence.past import WRITTEN
from cpsim.run.folder import OutputFolder

SAMPLE = Path(__file__).parent.parent / "samples/v0.3/run"
SMALL = """
description = "small"
duration = "1d"
population = { machines = 4, users = 2 }
arrivals = { model = "constant", jobs = 10 }
run_time = { model = "constant", value = "10min" }
"""


def left(folder, name, when="2026-03-01T12:00:00+00:00", verdict="valid", **changes):
    """A run folder: summaries of the sample with changes, and other files that nobody may read."""
    path = Path(folder, name)
    path.mkdir(parents=True)
    run = json.loads((SAMPLE / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(run | {"started": when} | changes))
    document = json.loads((SAMPLE / "verdict.json").read_text())
    (path / "verdict.json").write_text(json.dumps(document | {"verdict": verdict}))
    for other in ("journal.parquet", "workload.parquet", "ledger.parquet", "report.html"):
        (path / other).write_bytes(b"not read")
    return path


def times(p99, **others):
    return dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), p99) | others


# What an --assert is relative to


def test_an_assert_may_be_relative_to_a_past_run(cpsim, here):
    left("runs", "slow", service_ms=times(60_000.0), operations_per_s=1.0)
    Path("small.toml").write_text(SMALL, encoding="utf-8")
    command = ["run", "small.toml", "--output", "out", "--baseline", "slow"]
    status, out, err = cpsim(*command, "--assert", "p99_ms<=1.1*baseline", "--assert", "operations_per_s<1*baseline")
    assert status == 1
    assert "holds  p99_ms<=1.1*baseline: it was " in out
    assert ", and 60000 in the baseline" in out
    assert "fails  operations_per_s<1*baseline: it was " in out
    [first, second] = json.loads(Path("out/run.json").read_text())["asserts"]
    assert (first["baseline"], first["holds"], second["baseline"], second["holds"]) == (60_000.0, True, 1.0, False)
    assert "the baseline runs/slow is not the same: scenario was scenario, and is small; " in err
    assert "--baseline runs/slow --assert 'p99_ms<=1.1*baseline'" not in err
    assert "--baseline runs/slow" in json.loads(Path("out/verdict.json").read_text())["repeat"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--assert", "p99_ms<2*baseline"], "--assert p99_ms<2*baseline: add --baseline RUN"),
        (["--baseline", "old", "--assert", "p99_ms<2"], "--baseline goes with an --assert that is relative to it"),
        (["--baseline", "old"], "--baseline goes with an --assert that is relative to it"),
        (
            ["--baseline", "odl", "--assert", "p99_ms<2*baseline"],
            "there is no run odl, and none below runs; did you mean old?",
        ),
        (["--baseline", "old", "--assert", "response_p99_ms<2*baseline"], "the baseline has no figure response_p99_ms"),
        (["--baseline", "cut", "--assert", "p99_ms<2*baseline"], "runs/cut has no figures: run.json cannot be read"),
        (
            ["--baseline", "other", "--assert", "p99_ms<2*baseline"],
            "runs/other is not a run folder: it has no run.json",
        ),
    ],
)
def test_a_baseline_that_says_nothing_is_refused_before_anything_is_sent(cpsim, here, options, says):
    left("runs", "old", response_ms=None)
    (left("runs", "cut") / "run.json").write_text('{"scenario": "sm')
    Path("runs/other").mkdir()
    status, _, err = cpsim("run", "smoke", *options)
    assert status == 64
    assert says in err
    assert sorted(path.name for path in Path("runs").iterdir()) == ["cut", "old", "other"]


# The list


def listed(cpsim, *arguments):
    status, out, _ = cpsim("runs", *arguments, "--json")
    assert status == 0
    return json.loads(out)


def test_runs_are_listed_newest_first_from_their_summaries_alone(cpsim, here):
    left("runs", "old", "2026-03-01T12:00:00+01:00", response_ms=times(9.0), operations_per_s=1234.5)
    left("runs", "new", "2026-03-01T11:30:00+00:00", "invalid", endpoint="127.0.0.1:5667")
    assert [(each["run"], each["verdict"], each["target"]) for each in listed(cpsim)] == [
        ("runs/new", "invalid", "127.0.0.1:5667"),
        ("runs/old", "valid", "embedded"),
    ]
    status, out, err = cpsim("runs")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["when", "verdict", "scenario", "target", "rate/s", "p99,", "ms", "run"],
        ["2026-03-01", "11:30:00+00:00", "invalid", "scenario", "127.0.0.1:5667", "122", "101.38", "new"],
        ["2026-03-01", "12:00:00+01:00", "valid", "scenario", "embedded", "1,234", "9.00", "old"],
    ]


def test_what_is_no_whole_run_is_listed_as_what_it_is_and_stops_nothing(cpsim, here):
    for version in ("v0.1", "v0.2", "v0.3"):
        shutil.copytree(SAMPLE.parent.parent / version / "run", Path("runs", version))
    (left("runs", "cut") / "run.json").write_text('{"scenario": "sm')
    left("runs", "infinite", service_ms=times(float("inf")))
    left("runs", "other-types", operations="many")
    left("runs", "countless", operations=10**400)
    left("runs", "busy", busy=10**400)
    (left("runs", "pipe") / "run.json").unlink()
    os.mkfifo("runs/pipe/run.json")
    Path("runs/loop").symlink_to("loop")
    Path("runs/search").mkdir()
    Path("runs/search/capacity.json").write_text(
        '{"scenario": "s", "endpoint": "e", "capacity_per_s": NaN, "steps": []}'
    )
    (left("runs", "unjudged") / "verdict.json").unlink()
    (left("runs", "misjudged") / "verdict.json").write_text("[]")
    left("runs", "not-finished.partial")
    (left("runs", "headless") / "run.json").unlink()
    Path("runs/empty").mkdir()
    Path("runs/a-file").write_text("")
    Path("runs/other").mkdir()
    Path("runs/other/notes.txt").write_text("")
    Path("runs/killed.partial").mkdir()
    Path("runs/killed.partial/journal-1.raw").write_bytes(b"")
    with OutputFolder(Path("runs/now")):
        found = {each["run"].removeprefix("runs/"): each["problem"] for each in listed(cpsim)}
        states = {each["run"].removeprefix("runs/"): each["state"] for each in listed(cpsim)}
        status, out, err = cpsim("runs")
    assert {name: state for name, state in states.items() if state != "damaged"} == {
        **dict.fromkeys(("v0.1", "v0.2", "v0.3"), "run"),
        "not-finished.partial": "not whole",
        "killed.partial": "not whole",
        "now.partial": "being written",
    }
    assert found["cut"].startswith("run.json cannot be read: ")
    assert found["infinite"] == "run.json is damaged: a figure is not a finite number"
    assert found["search"] == "capacity.json is damaged: a figure is not a finite number"
    assert found["other-types"] == "run.json is damaged: Expected `int`, got `str` - at `$.operations`"
    assert found["countless"] == "run.json is damaged: Expected `int` <= 9223372036854775807 - at `$.operations`"
    assert found["busy"] == "run.json is damaged: Number out of range - at `$.busy`"
    assert found["pipe"] == "it has no run.json"
    assert found["unjudged"] == "it has no verdict.json"
    assert found["misjudged"] == "verdict.json is not what cpsim writes: expected an object"
    assert found["headless"] == "it has no run.json"
    assert found["not-finished.partial"].startswith("an earlier run could write only journal.parquet, ")
    assert found["killed.partial"] == "the run was cut short: cpsim judge judges what there is"
    assert status == 0
    assert "cut: run.json cannot be read" in err
    assert len(out.splitlines()) == len(states) + 1
    assert Path("runs/not-finished.partial").is_dir()


def test_a_search_for_capacity_is_listed_with_the_highest_rate_that_passed(cpsim, here):
    step = {"offered_per_s": 100.0, "achieved_per_s": 99.5, "operations": 200, "lateness_p99_ms": 0.1, "busy": 0.5}
    step |= {"response_ms": times(7.0), "service_ms": times(6.0), "kept": True}
    document = {"scenario": "smoke", "endpoint": "127.0.0.1:5667", "capacity_per_s": 100.0}
    document["steps"] = [step, step | {"offered_per_s": 200.0, "kept": False}]
    Path("runs/search").mkdir(parents=True)
    Path("runs/search/capacity.json").write_text(json.dumps(document))
    [found] = listed(cpsim)
    assert (found["state"], found["operations_per_s"], found["response_ms"]["p99"]) == ("search", 100.0, 7.0)
    assert cpsim("runs")[1].splitlines()[1].split()[2:] == [
        "search",
        "smoke",
        "127.0.0.1:5667",
        "100",
        "7.00",
        "search",
    ]
    assert "capacity, operations/s   100" in cpsim("runs", "show", "search")[1]
    assert past.read(Path("runs/search")).metrics() == {
        **{f"{kind}{time}_ms": 7.0 for kind in ("", "response_") for time in times(0)},
        **{f"service_{time}_ms": 6.0 for time in times(0)},
        "operations": 200,
        "operations_per_s": 99.5,
        "lateness_p99_ms": 0.1,
        "busy": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["nowhere"], 2, "nowhere: there is no such folder: name a folder that holds run folders"),
        (["shwo", "run"], 64, "shwo is no folder and no subcommand; did you mean 'show'?"),
        (["runs/old"], 2, "runs/old is itself a run folder: `cpsim runs show runs/old` shows it"),
        (["show", "odl"], 64, "there is no run odl, and none below runs; did you mean old?"),
        (["show", "cut"], 2, "runs/cut: run.json cannot be read"),
        (["compare", "old", "cut"], 2, "runs/cut has no figures: run.json cannot be read"),
        (["trend", "smoke"], 2, "runs has no run of smoke; it has runs of: scenario"),
        (["trend", "scenario", "--target", "nowhere"], 64, "Invalid value for '--target': 'nowhere' has no port"),
        (["prune"], 64, "say what may go: --keep N, --older-than AGE, or both"),
        *(
            (["prune", "--older-than", age], 64, f"'{age}' is not an age such as 12h, 30d or 8w")
            for age in ("3y", "-5d", "1_0d", "9" * 5_000 + "h")
        ),
        (["--page", "full.html"], 2, "full.html cannot be written: No space left on device"),
        (["--page", "runs/old/run.json/runs.html"], 2, "run.json/runs.html cannot be written: File exists"),
        (["--page", "runs.txt"], 64, "--page runs.txt: a page is HTML: name it .html"),
        (["--page", "runs.html", "--json"], 64, "--page and --json exclude one another"),
    ],
)
def test_what_cannot_be_done_is_said(cpsim, here, arguments, status, says):
    left("runs", "old")
    (left("runs", "cut") / "run.json").write_text('{"scenario": "sm')
    Path("full.html").symlink_to("/dev/full")
    done, _, err = cpsim("runs", *arguments)
    assert done == status
    assert says in err


def test_without_runs_the_list_says_who_writes_them(cpsim, here):
    assert cpsim("runs") == (0, "no runs in runs: cpsim run writes them there\n", "")
    assert listed(cpsim) == []


# One, two and many


def test_a_run_is_shown_as_it_was_printed(cpsim, here):
    left(
        "runs",
        "old",
        slots_by_state={"claimed": 5},
        credits_granted=40,
        asserts=[{"assert": "p99_ms<2", "holds": False}],
    )
    out = cpsim("runs", "show", "old")[1]
    for line in ("verdict                  valid", "credits granted          40", "slots                    5 claimed"):
        assert line in out
    assert "assert                   p99_ms<2 fails" in out
    assert "page                     runs/old/report.html" in out
    document = json.loads(cpsim("runs", "show", "runs/old", "--json")[1])
    both = [json.loads(Path("runs/old", name).read_text()) for name in ("run.json", "verdict.json")]
    assert document == both[0] | both[1]


def test_two_runs_are_compared_in_what_they_did_and_how_they_did(cpsim, here):
    left("runs", "one", operations_per_s=100.0, credits_granted=40, slots_by_state={"claimed": 4})
    left("runs", "two", verdict="unknown", operations_per_s=125.0, credits_granted=30, slots_by_state=None, pace="50/s")
    out = cpsim("runs", "compare", "one", "two")[1]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "verdict valid unknown" in lines
    assert "pace in virtual time 50/s" in lines
    assert "operations_per_s 100 125 +25.0%" in lines
    assert "credits granted 40 30 -25.0%" in lines
    assert "slots claimed 4 \N{EN DASH}" in lines
    assert "service_p99_ms 101.4 101.4 same" in lines
    assert lines[-1] == "Which differences are noise is not known: there are not 5 other runs like the first."
    document = json.loads(cpsim("runs", "compare", "one", "two", "--json")[1])
    assert document["differences"] == [{"what": "pace", "one": "in virtual time", "other": "50/s"}]


def test_usual_is_what_five_other_runs_like_the_first_have_shown(cpsim, here):
    left("runs", "one", operations_per_s=100.0)
    left("runs", "two", operations_per_s=108.0, service_ms=times(300.0))
    for number in range(4):
        left("runs", f"like-{number}", operations_per_s=95.0 + 5 * number)
    left("runs", "other-target", operations_per_s=1.0, endpoint="127.0.0.1:5667")
    left("runs", "interrupted", operations_per_s=1.0, interrupted=True)
    left("runs", "slower", operations_per_s=1.0, pace="1/s")
    assert "is not known" in cpsim("runs", "compare", "one", "two")[1]
    Path("runs/link").symlink_to("like-0")
    left("runs", "like-4", busy=10**400)
    assert "is not known" in cpsim("runs", "compare", "one", "two")[1]
    left("runs", "like-5", operations_per_s=105.0)
    out = cpsim("runs", "compare", "one", "two")[1]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "operations_per_s 100 108 +8.0% 95 to 110 usual" in lines
    assert "service_p50_ms 0.4860 300 +61628.4% 0.4860 to 0.4860 not usual" in lines
    assert lines[-1] == "The usual range is from the least to the greatest of 5 other runs like the first."


def test_a_trend_is_of_one_scenario_at_each_target_and_says_what_changed(cpsim, here):
    left("runs", "a", "2026-03-03T00:00:00+00:00", operations_per_s=3.0, faults=[])
    left("runs", "b", "2026-03-01T00:00:00+00:00", operations_per_s=1.0)
    left("runs", "c", "2026-03-02T00:00:00+00:00", operations_per_s=2.0)
    left("runs", "elsewhere", endpoint="127.0.0.1:5667")
    left("runs", "another", scenario="smoke")
    assert [each["run"] for each in listed(cpsim, "trend", "scenario", "--target", "embedded")] == [
        *("runs/b", "runs/c", "runs/a")
    ]
    lines = [line.split() for line in cpsim("runs", "trend", "scenario")[1].splitlines()]
    assert [line[3] for line in lines if line and line[0].startswith("2026")][:3] == ["1", "2", "3"]
    assert " ".join(lines[4]).endswith("3 101.38 faults: none")
    assert ["scenario", "at", "127.0.0.1:5667,", "in", "virtual", "time"] in lines


# Removing


def names():
    return sorted(path.name for path in Path("runs").iterdir())


@pytest.fixture
def dated():
    """Runs of five days, the last of them far in the future."""
    for day in range(1, 5):
        left("runs", f"day-{day}", f"2026-03-0{day}T00:00:00+00:00")
    left("runs", "day-5", "9000-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        (["--keep", "2"], ["day-4", "day-5"]),
        (["--older-than", "1h"], ["day-5"]),
        (["--older-than", "99999999w"], ["day-1", "day-2", "day-3", "day-4", "day-5"]),
        (["--older-than", "1h", "--keep", "3"], ["day-3", "day-4", "day-5"]),
        (["--keep", "0"], []),
    ],
)
def test_old_runs_are_removed(cpsim, here, dated, options, stay):
    before = names()
    assert cpsim("runs", "prune", *options, "--dry-run")[0] == 0
    assert names() == before
    assert cpsim("runs", "prune", *options, "--yes")[0] == 0
    assert names() == stay


@pytest.mark.parametrize(("answer", "status", "left_over"), [("y\n", 0, 4), ("n\n", 0, 5), ("", 2, 5)])
def test_it_is_asked_before_anything_goes(here, dated, answer, status, left_over):
    done = CliRunner().invoke(cli, ["runs", "prune", "--keep", "4"], input=answer)
    assert "Remove 1 run?" in done.output
    assert len(names()) == left_over
    assert (done.exit_code == 0) is (status == 0)


def test_what_is_no_whole_run_or_holds_more_is_never_removed(cpsim, here, dated):
    (left("runs", "cut", "2026-01-01T00:00:00+00:00") / "run.json").write_text("{")
    left("runs", "half.partial", "2026-01-01T00:00:00+00:00")
    Path("runs/day-1/notes.txt").write_text("look again")
    Path("runs/day-2/more").mkdir()
    Path("runs/elsewhere").symlink_to(left("other", "run", "2026-01-01T00:00:00+00:00").absolute())
    Path("runs/notes").mkdir()
    with OutputFolder(Path("runs/now")) as output:
        output.write({name: partial(shutil.copy, SAMPLE / name) for name in ("run.json", "verdict.json")})
        status, out, err = cpsim("runs", "prune", "--keep", "0", "--yes")
    assert status == 0
    assert names() == ["cut", "day-1", "day-2", "elsewhere", "half.partial", "notes", "now"]
    assert "runs/day-1 stays: it holds what no run writes: notes.txt" in err
    assert "runs/day-2 stays: it holds what no run writes: more" in err
    assert "runs/elsewhere stays: it is a link to a folder elsewhere" in err
    assert "runs/now stays: a run is writing it" in err
    assert "3 runs removed" in out
    assert Path("other/run/run.json").is_file()


def test_a_link_is_no_further_run_that_is_kept(cpsim, here, dated):
    Path("runs/latest").symlink_to("day-5")
    assert cpsim("runs", "prune", "--keep", "1", "--yes")[0] == 0
    assert names() == ["day-5", "latest"]


def test_names_cannot_look_like_other_lines(cpsim, here):
    name = "a\nb\x1b[2J"
    left("runs", name, scenario="x\ny", machine={"platform": "p\nq"})
    (left("runs", f"{name}cut") / "run.json").write_text("{")
    Path("runs", name, "notes\x1b[2J\n.txt").write_text("")
    for arguments in (
        ["list"],
        ["show", f"runs/{name}"],
        ["trend", "x\ny"],
        ["compare", name, name],
        ["prune", "--keep", "0", "--yes"],
    ):
        _, out, err = cpsim("runs", *arguments)
        assert "\x1b" not in out + err
        assert not [line for line in (out + err).splitlines() if line.startswith(("b", "y", "q"))]


def test_all_files_of_a_run_folder_are_known():
    samples = {path.name for path in SAMPLE.parent.parent.glob("v0.*/run*/*")}
    while_it_lasts = {name for name in WRITTEN if name.endswith((".raw", ".notes"))}
    assert samples | {"capacity.json"} == WRITTEN - while_it_lasts


# Pages


def test_the_page_of_all_runs_is_offline_and_leads_to_their_own(cpsim, here):
    for day in range(1, 4):
        left("results/of all", f"day {day}", f"2026-03-0{day}T00:00:00+00:00", scenario="<b>bold</b>")
    (left("results/of all", "cut") / "run.json").write_text("{")
    assert cpsim("runs", "results/of all", "--page", "pages/runs.html")[:2] == (0, "pages/runs.html is written\n")
    text = Path("pages/runs.html").read_text()
    assert 'href="../results/of%20all/day%201/report.html"' in text
    assert "&lt;b&gt;bold&lt;/b&gt; at embedded, in virtual time: 3 runs" in text
    assert "<b>bold" not in text
    assert "run.json cannot be read" in text
    assert re.findall(r'(?:src|href)="(?!#|data:,|\.\./results)[^"]*"', text) == []
    assert len(re.findall('<figure class="chart">', text)) == 2


def test_the_page_of_two_runs_has_their_figures_and_curves(cpsim, here):
    for name, rate in (("one", 100.0), ("two", 125.0)):
        shutil.copy(SAMPLE / "latency.hgrm", left("runs", name, operations_per_s=rate))
    assert cpsim("runs", "compare", "one", "two", "--page", "two.html")[0] == 0
    text = Path("two.html").read_text()
    assert '<th scope="row">operations_per_s</th><td class="num">100</td><td class="num">125</td>' in text
    assert "Nothing differs in what was done" in text
    [chart] = [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    assert [series["name"] for series in chart["series"]] == ["one", "two"]
    at_median = min(range(len(chart["x"])), key=lambda place: abs(chart["x"][place] - 2))
    assert chart["series"][0]["values"][at_median] == pytest.approx(0.486, rel=0.05)


def test_the_page_of_two_runs_says_what_is_unknown(cpsim, here):
    for number in range(6):
        left("runs", f"one-{number}")
    left("runs", "two", service_ms={})
    assert cpsim("runs", "compare", "one-0", "two", "--page", "two.html")[0] == 0
    [row] = re.findall(r'<tr><th scope="row">service_p50_ms</th>.*</tr>', Path("two.html").read_text())
    assert row.endswith(": unknown</td></tr>")


def test_pages_fit_a_browser_of_any_width_and_say_nothing_wrong(cpsim, here, browser, tmp_path):
    for day in range(1, 6):
        shutil.copy(SAMPLE / "latency.hgrm", left("runs", f"day-{day}", f"2026-03-0{day}T00:00:00+00:00"))
    assert cpsim("runs", "--page", "runs.html")[0] == 0
    assert cpsim("runs", "compare", "day-1", "day-2", "--page", "two.html")[0] == 0
    for page, charts in (("runs.html", 2), ("two.html", 1)):
        for width in (400, 1400):
            size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get((tmp_path / page).as_uri())
            assert browser.get_log("browser") == []
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script("return document.querySelectorAll('.uplot canvas').length") == charts
        assert barriers(browser) == []


def test_runs_are_completed_by_their_names(here):
    left("runs", "smoke-1")
    left("runs", "smoke-2")
    left("runs", "other")
    done = CliRunner().invoke(
        cli,
        [],
        prog_name="cpsim",
        env={"_CPSIM_COMPLETE": "bash_complete", "COMP_WORDS": "cpsim runs show smo", "COMP_CWORD": "3"},
    )
    assert done.output.split() == ["plain,smoke-1", "plain,smoke-2"]
