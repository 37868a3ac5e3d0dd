"""`cpsim report` and `cpsim reports`: what they say, write, and exit with."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from cpsim.cli.group import cli
from cpsim.server.store import Store

from .conftest import Site


def test_reports_are_listed(cpsim):
    status, out, _ = cpsim("reports")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("summary  ")
    assert any(line.startswith("leaderboards  ") and "who has most credits" in line for line in lines)


def test_the_terminal_has_all_when_it_is_asked(cpsim, week):
    status, out, _ = cpsim("report", week.export(), "--format", "terminal")
    assert status == 0
    assert out.count("The books balance: 10 conservation laws hold.") == 13
    assert "Leaderboards: who has most credits" in out


def test_without_a_name_there_is_a_summary_that_says_how_to_get_the_rest(cpsim, week):
    status, out, _ = cpsim("report", week.export(), "--project", "p")
    assert status == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert "The books balance: 7 conservation laws hold." in lines
    assert "45 credits; 8 slots: 5 claimed, 1 discarded, 1 expired, 1 outstanding" in lines
    users = lines.index("Leading users")
    assert [line.split() for line in lines[users + 1 : users + 3]] == [
        ["1", "bob", "20", "█" * 30],
        ["2", "ann", "13", "█" * 19 + "▌"],
    ]
    days = lines.index("Credits per day")
    assert [line.split()[:2] for line in lines[days + 1 : days + 7]] == [
        *(["2026-01-02", "12"], ["2026-01-03", "20"], ["2026-01-04", "12"]),
        *(["2026-01-05", "0"], ["2026-01-06", "0"], ["2026-01-07", "1"]),
    ]
    assert len(lines) < 40
    assert [line.split("  ")[1] for line in lines[-4:]] == [
        *("NAME", "--format terminal", "--output credit.html", "--format csv --output DIR"),
    ]


def test_a_summary_is_short_however_much_there_is(cpsim, site):
    for number in range(60):
        site.at(number / 2).alloc(f"s{number}", credits=1)
        site.claim(f"s{number}", f"m{number}")
    out = cpsim("report", site.export())[1]
    assert "Leading machines, the first 10 of 60" in out
    assert "Credits per day, the last 14 of 30" in out
    assert len(out.splitlines()) < 50


def test_a_summary_has_what_options_ask_for(cpsim, week, tmp_path):
    other = Site(tmp_path / "other")
    other.alloc("a", credits=50)
    out = cpsim("report", week.export(), "--against", other.export(), "--for", "bob")[1]
    assert "Leading users" in out
    assert "Machines that differ most" in out
    assert "User bob" in out
    assert "Machine statement" not in out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["runs/a", "leader"], ["leaderboards"]),
        (["runs/a", "summary", "mine.p"], ["mine.p"]),
        (["--accounts", "http://127.0.0.1:1/view", "user-"], ["user-statement"]),
        (["runs/"], ["runs/"]),
    ],
)
def test_names_of_reports_are_completed(words, found):
    completed = ShellComplete(cli, {}, "cpsim", "_CPSIM_COMPLETE").get_completions(["report", *words[:-1]], words[-1])
    assert [item.value for item in completed] == found


def test_one_report_with_options(cpsim, week):
    status, out, _ = cpsim(
        *("report", week.export(), "leaderboards", "--project", "p", "--top", 1, "--timezone", "Europe/Zurich"),
        *("--since", "2026-01-03", "--until", "2026-01-05"),
    )
    assert status == 0
    assert "2026-01-03 00:00+01:00 to 2026-01-05 00:00+01:00 Europe/Zurich" in out
    assert "m2" in out
    assert "m3" not in out


def test_books_that_do_not_balance_are_told(cpsim, make_site):
    site = make_site("reclaim")
    site.alloc("a", credits=5)
    site.claim("a", "m")
    site.claim("a", "n")
    status, out, _ = cpsim("report", site.export(), "summary")
    assert status == 0
    assert "The books do not balance: 2 of 3 conservation laws are broken." in out
    assert re.search(r"p +credits: granted .* 5 +10 +5 +no", out)


@pytest.mark.parametrize(
    ("name", "begins"),
    [("credit.html", b"<!doctype html>"), ("credit.json", b"{"), ("credit.md", b"# Credit"), ("credit.xlsx", b"PK")],
)
def test_the_name_of_the_output_says_its_format(cpsim, week, tmp_path, name, begins):
    (tmp_path / name).write_text("what was there is replaced")
    status, out, _ = cpsim("report", week.export(), "summary", "--output", tmp_path / name)
    assert (status, out) == (0, f"{tmp_path / name} is written\n")
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("form", "file"),
    [("csv", "summary-projects.csv"), ("parquet", "summary-projects.parquet"), ("boinc", "p/user.gz")],
)
def test_folders_of_files(cpsim, week, tmp_path, form, file):
    for _ in range(2):  # there already, the second time
        assert cpsim("report", week.export(), "summary", "--format", form, "--output", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / file).stat().st_size > 20


def test_text_goes_to_standard_output(cpsim, week, tmp_path):
    status, out, _ = cpsim("report", week.export(), "counters", "--format", "json")
    assert status == 0
    assert json.loads(out)["reports"][0]["name"] == "counters"
    status, out, _ = cpsim("report", week.export(), "counters", "--format", "markdown")
    assert out.startswith("# Credit of")
    assert cpsim("report", week.export(), "counters", "--format", "terminal", "--output", tmp_path / "t.txt")[0] == 0
    assert "The books balance" in (tmp_path / "t.txt").read_text(encoding="utf-8")


def test_an_id_is_shown_as_it_is(cpsim, site):
    """And is no markup, and no emoji."""
    site.alloc("a", credits=5)
    site.claim("a", "[bold]:smile:")
    assert "[bold]:smile:" in cpsim("report", site.export(), "leaderboards")[1]


def test_a_comparison(cpsim, week, tmp_path):
    other = Site(tmp_path / "other")
    other.alloc("a", credits=50)
    status, out, _ = cpsim("report", week.export(), "comparison", "--against", other.export())
    assert status == 0
    assert "Machines that differ most" in out


def test_a_statement(cpsim, week):
    status, out, _ = cpsim("report", week.export(), "user-statement", "--for", "bob")
    assert status == 0
    assert "User bob" in out
    assert "User ann" not in out


def test_an_empty_ledger(cpsim, site):
    """It is of no time, unless the server or somebody else says so."""
    export = site.export()
    status, out, _ = cpsim("report", export)
    assert status == 0
    assert "The ledger is empty" in out
    assert "export, at no known time" in out
    assert "1970" not in cpsim("report", export, "--format", "markdown")[1]
    assert json.loads(cpsim("report", export, "--format", "json")[1])["since"] is None
    _, out, _ = cpsim("report", export, "--since", "2026-03-01", "summary")
    assert "export, 2026-03-01 00:00+00:00 to ? UTC" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere"], 2, "nowhere: no such file or folder"),
        (["HERE", "leaderbord"], 64, 'did you mean "leaderboards"?'),
        (["HERE", "mine.py"], 2, "mine.py: no such file"),
        (["HERE", "--project", "z"], 2, 'no project "z"'),
        (["HERE", "--for", "nobody"], 2, 'no machine and no user "nobody"'),
        (["HERE", "--timezone", "Nowhere"], 64, 'no time zone "Nowhere"'),
        (["HERE", "--since", "soon"], 64, 'since = "soon" is not a time'),
        (["HERE", "--top", "0"], 64, "0 is not in the range"),
        (["HERE", "--format", "csv"], 64, "--format csv needs --output DIR"),
        (["HERE", "--format", "html"], 64, "--format html needs --output FILE"),
        (["HERE", "--output", "x.pdf"], 64, "does not say which format"),
        (["HERE", "--format", "csv", "--output", "HERE/slots.parquet"], 64, "is a file: csv is a folder of files"),
        (["HERE", "--format", "json", "--output", "HERE"], 64, "is a folder: json is one file"),
        (["HERE", "--format", "pdf"], 64, "'pdf' is not one of"),
        (["HERE", "--engine", "dask"], 64, "--engine dask and --scheduler ADDRESS go together"),
        (["HERE", "--against", "nowhere"], 2, "nowhere: no such file or folder"),
        ([], 64, "Missing argument 'PATH'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(cpsim, week, monkeypatch, tmp_path, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    here = str(week.export())
    found, out, err = cpsim("report", *(argument.replace("HERE", here) for argument in arguments))
    assert found == status
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_store_in_use(cpsim, tmp_path):
    store = Store(tmp_path / "store")
    try:
        status, _, err = cpsim("report", tmp_path / "store")
    finally:
        store.close()
    assert status == 2
    assert "in use by another process" in err


def test_without_the_extra_it_says_what_to_install(cpsim, week, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "duckdb" else find(name))
    status, _, err = cpsim("report", week.export())
    assert (status, err) == (2, "cpsim: cpsim report needs duckdb: pip install 'creditpiggy-sim[report]'\n")


def test_a_report_that_is_named_twice_is_made_once(cpsim, week):
    out = cpsim("report", week.export(), "summary", "summary")[1]
    assert out.count("The books balance") == 1


def test_names_move_nothing_on_a_terminal(cpsim, site):
    site.alloc("a", credits=5)
    site.claim("a", "m\u202e\x1b[2Jx")
    status, out, _ = cpsim("report", site.export(), "leaderboards")
    assert status == 0
    assert r"m\u202e\x1b[2Jx" in out
    assert "\u202e" not in out


@pytest.mark.thorough
def test_letters_that_the_output_cannot_have(site):
    site.alloc("a", credits=5)
    site.claim("a", "m\u00e9")
    command = [sys.executable, "-m", "cpsim", "report", str(site.export()), "leaderboards"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"m\xe9" in done.stdout
