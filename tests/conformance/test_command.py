"""`cpsim verify` as a user runs it, and the clauses as a plain pytest suite."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cpsim.conformance.clause import catalogue
from cpsim.fake import ANY_PORT, Fake

MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")


OF_THE_CLOCK = {"EXPIRE-3", "EXPIRE-8", "EXPIRE-9"}
"""The clauses that are not verifiable while another process moves the server's clock."""
CPSIM = ["-c", "from cpsim.cli import main; main()"]


def run_apart(*arguments, program=CPSIM):
    """Run a program in a process of its own."""
    command = [sys.executable, *program, *map(str, arguments)]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | os.environ
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture
def run(cpsim):
    """run(*arguments): what cpsim does with them in this process."""

    def call(*arguments):
        done = subprocess.CompletedProcess(arguments, *cpsim(*arguments))
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return call


@pytest.fixture
def served(tmp_path, monkeypatch):
    """served(quirks): the options that say where a fake is, whose daemon comes first."""
    monkeypatch.chdir(tmp_path)
    for name, (_, secret) in (("mine", MINE), ("other", OTHER)):
        Path(name).write_text(f"{secret}\n", encoding="utf-8")
    started = []

    def serve(*quirks):
        fake = Fake(dict([MINE, OTHER]), tcp=ANY_PORT, http=ANY_PORT, quirks=frozenset(quirks))
        fake.start()
        started.append(fake)
        own = ["--project", MINE[0], "--secret-file", "mine"]
        return [fake.addresses["tcp"], "--server", fake.addresses["http"], *own, "--max-rate", 1e6]

    yield serve
    for fake in started:
        fake.stop()


def test_without_an_endpoint_the_embedded_fake_is_verified_whole(of_the_pair):
    done = run_apart("verify", "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0
    assert outcome["verdict"] == "valid"
    assert outcome["counts"]["pass"] == len(of_the_pair)
    assert {clause["id"] for clause in outcome["clauses"]} == set(catalogue())
    assert 0 < outcome["commands"] < 4_000


def test_the_table_has_a_line_a_clause_and_names_what_cannot_be_seen(run, served):
    done = run("verify", *served(), "-k", "PROJECT-*", "-k", "claim-6", "-v")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert any(re.match(r"CLAIM-6 +2 +pass +A second claim", line) for line in lines)
    assert any(re.match(r"PROJECT-1 +2 +not verifiable ", line) for line in lines)
    assert "--other-project ID" in done.stdout
    assert lines[-1].startswith("verdict valid: 1 clause passes, 8 cannot be verified here; ")


def test_a_deviation_shows_what_was_sent_expected_and_got(run, served):
    done = run("verify", *served("claim-settled"), "-k", "CLAIM-8")
    assert done.returncode == 1
    assert "CLAIM-8  deviation (claim-settled): A claim of a discarded slot is refused." in done.stdout
    assert "section 2, Slot life cycle" in done.stdout
    assert "expected  answer to claim = refused" in done.stdout
    assert "got       accepted" in done.stdout
    assert re.search(r"\| > POST /api/batch/claim \{\"slot\":\"verify-", done.stdout)
    assert "| < HTTP 200" in done.stdout
    assert MINE[1] not in done.stdout + done.stderr


def test_a_known_quirk_counts_apart(run, served):
    done = run("verify", *served("claim-settled"), "-k", "CLAIM-*", "--profile", "deployed")
    assert done.returncode == 0
    assert re.search(r"^CLAIM-8 +2 +known quirk claim-settled", done.stdout, re.MULTILINE)
    assert "show a known quirk" in done.stdout
    assert done.stdout.splitlines()[-1] == "quirks  claim-settled"


def clauses_in(junit):
    """What a JUnit file says of each clause."""
    cases = ET.parse(junit).getroot().iter("testcase")
    said = [{each.get("name"): each.get("value") for each in case.iter("property")} for case in cases]
    return {each["clause"]: each for each in said}


def test_junit_has_what_each_clause_came_to(run, served, tmp_path):
    done = run("verify", *served("claim-settled"), "-k", "CLAIM-8", "-k", "CLAIM-6", "--junit", "out.xml")
    assert done.returncode == 1
    suite = ET.parse(tmp_path / "out.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite.iter("testcase")] == [
        "CLAIM-6: A second claim by the same machine is refused.",
        "CLAIM-8: A claim of a discarded slot is refused.",
    ]
    assert {(clause, each["result"], each["quirk"]) for clause, each in clauses_in(tmp_path / "out.xml").items()} == {
        ("CLAIM-6", "pass", ""),
        ("CLAIM-8", "deviation", "claim-settled"),
    }
    assert "expected refused, got accepted" in suite.find("testcase/failure").get("message")
    assert "| < HTTP 200" in suite.find("testcase/failure").text


def test_a_dry_run_lists_what_would_be_sent_and_sends_nothing(run):
    nobody = ["127.0.0.1:1", "--server", "http://127.0.0.1:1/api", "--project", "p", "--secret-file", __file__]
    done = run("verify", *nobody, "--dry-run")
    assert done.returncode == 0
    assert re.search(r"^CLAIM-8  A claim of a discarded slot is refused\.$", done.stdout, re.MULTILINE)
    assert re.search(r'^  POST /api/batch/discard \{"slot":"verify-\w+-claim-8-1"\}$', done.stdout, re.MULTILINE)
    assert re.search(r"^  alloc,slot=verify-\w+-wire-4-1\\n$", done.stdout, re.MULTILINE)
    assert "  nothing: it needs a second project" in done.stdout


def test_clauses_are_listed(run):
    done = run("verify", "--list", "-k", "WIRE-1?")
    assert done.returncode == 0
    assert "WIRE-10     A reply is two bytes and no more" in done.stdout
    assert "must, section 3, needs daemon; may show single-read" in done.stdout
    assert "CLAIM-1" not in done.stdout


def test_a_slot_prefix_begins_every_id(run, served):
    done = run("verify", *served(), "-k", "ALLOC-1", "--slot-prefix", "night shift", "--dry-run")
    assert '{"slot":"night shift-' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["-k", "CLIAM-6"], "no clause 'CLIAM-6'; did you mean CLAIM-6?", 64),
        (["-k", "nonsense"], "`cpsim verify --list` lists them", 64),
        (["--profile", "deploied"], "'documented', 'deployed'", 64),
        (["--server", "http://127.0.0.1:1/api"], "go with an ENDPOINT", 64),
        (["127.0.0.1"], "has no port", 64),
        (["http://127.0.0.1:1/api"], "needs --project ID and --secret-file FILE", 64),
        (["127.0.0.1:1", "--project", "p", "--secret-file", __file__], "add --server URL", 64),
        (["127.0.0.1:1", "--server", "127.0.0.1:2"], "--server must be a URL", 64),
        (["127.0.0.1:1", "--slot-prefix", "a,b"], "cannot begin the id of a slot", 64),
        (["127.0.0.1:1", "--max-rate", "0"], "--max-rate", 64),
        (["127.0.0.1:1"], "cannot connect to the daemon at 127.0.0.1:1: Connection refused", 2),
        (["./nowhere.sock"], "cannot connect to the daemon at ./nowhere.sock: No such file", 2),
        (["http://127.0.0.1:1/api", "--project", "p", "--secret-file", __file__], "cannot reach", 2),
        (["--dry-run", "--junit", "out.xml"], "leave out --junit and --summary", 64),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, arguments, said, status):
    done = run("verify", *arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert not done.stdout


def test_a_wrong_secret_is_said_before_anything_is_sent(run, served, tmp_path):
    options = served()
    Path("mine").write_text("not it", encoding="utf-8")
    done = run("verify", *options)
    assert done.returncode == 2
    assert "does not accept the secret of project alpha" in done.stderr


def test_what_cannot_be_reached_is_an_error_in_junit(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("verify", "127.0.0.1:1", "--junit", "out.xml").returncode == 2
    error = ET.parse("out.xml").getroot().find("testsuite/testcase/error")
    assert "cannot connect to the daemon at 127.0.0.1:1: Connection refused" in error.get("message")


def test_a_url_without_its_path_is_said(run, served):
    options = [option.removesuffix("/api") if isinstance(option, str) else option for option in served()]
    done = run("verify", *options)
    assert done.returncode == 2
    assert "usually ends in /api" in done.stderr


def test_what_can_show_nothing_of_what_was_asked_is_unknown(run, served):
    daemon = served()[0]
    done = run("verify", daemon, "-k", "CLAIM-*")
    assert done.returncode == 2
    assert "verdict unknown: 15 cannot be verified here" in done.stdout


def test_the_users_own_pytest_settings_stay_out_of_it(served, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --nonsense\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text("raise SystemExit('mine')\n", encoding="utf-8")
    assert run_apart("verify", *served(), "-k", "ALLOC-1").returncode == 0


def pytest_suite(*options):
    """The clauses run by pytest itself, as another project would."""
    fixed = [
        "--pyargs",
        "cpsim.conformance",
        "-p",
        "cpsim.pytest_plugin",  # which is there wherever cpsim is installed
        "-p",
        "cpsim.conformance.plugin",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
    ]
    return run_apart(*fixed, *options, program=["-m", "pytest"])


def as_pytest_options(options):
    names = {option: option.replace("--", "--cp-") for option in options if str(option).startswith("--")}
    return ["--cp-target", *(names.get(option, option) for option in options)]


def test_pytest_runs_the_clauses(served):
    done = pytest_suite(*as_pytest_options(served("reclaim")), "-k", "CLAIM-6 or CLAIM-1 or PROJECT-1", "-v", "-rs")
    assert done.returncode == 1
    assert "test_a_second_claim FAILED" in done.stdout
    assert "CLAIM-6: A second claim by the same machine is refused." in done.stdout
    assert "answer to claim: expected refused, got accepted" in done.stdout
    assert "test_an_allocated_slot PASSED" in done.stdout
    assert "needs a second project at the server" in done.stdout


def test_pytest_runs_them_in_several_processes(served, of_the_pair, unseen_when_busy, tmp_path):
    others = ["--other-project", OTHER[0], "--other-secret-file", "other"]
    done = pytest_suite(
        *as_pytest_options([*served("meta-dropped"), *others]),
        "-p",
        "xdist",
        "-n",
        "2",
        "--cp-target-profile",
        "deployed",
        "--junit-xml",
        "out.xml",
    )
    assert done.returncode == 0, done.stdout
    said = clauses_in(tmp_path / "out.xml")
    assert said.keys() == set(catalogue())
    page = (Path(__file__).parents[2] / "docs/conformance.md").read_text(encoding="utf-8")
    (ids,) = re.findall(r"^\| `meta-dropped` \| server \| (.+) \|$", page, re.MULTILINE)
    known = {clause: each["quirk"] for clause, each in said.items() if each["result"] == "known quirk"}
    assert known == dict.fromkeys(ids.split(", "), "meta-dropped")
    behind = set(catalogue()) - set(of_the_pair)
    unseen = {clause for clause, each in said.items() if each["result"] == "not verifiable"}
    assert behind <= unseen <= behind | OF_THE_CLOCK | unseen_when_busy


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--cp-target ENDPOINT is missing"),
        (["--cp-target", "127.0.0.1"], "has no port"),
        (["--cp-target", "127.0.0.1:1", "--cp-timeout", "0"], "--cp-timeout must be above 0"),
        (["--cp-target", "127.0.0.1:1"], "cannot connect to the daemon at 127.0.0.1:1"),
    ],
)
def test_pytest_says_what_is_wrong(options, said):
    done = pytest_suite(*options)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
