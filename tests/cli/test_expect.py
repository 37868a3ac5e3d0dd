"""`cpsim expect` and `cpsim faults add`, `remove` and `list`: what a server that runs is asked and told."""

import json
from pathlib import Path

import pytest

from cpdaemon import Client
from cpsim.fake import ANY_PORT, Fake


@pytest.fixture
def fake(tmp_path):
    with Fake({"demo": "demo"}, unix=tmp_path / "s", http=ANY_PORT) as fake:
        yield fake


@pytest.fixture
def url(fake):
    return fake.addresses["http"]


@pytest.fixture
def jobs(fake):
    client = Client(fake.addresses["unix"])
    client.alloc("job-1", credits=5)
    client.counters("job-1", **{"job/events": 7})
    client.claim("job-1", "w")
    client.alloc("job-2")
    client.discard("job-2", "exit-3")
    fake.wait_until_idle()


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    "expected",
    [
        ["claimed", "job-1"],
        ["claimed", "job-1", "--machine", "w", "--credits", "5", "--counters", "job/events=7", "--within", "60s"],
        ["discarded", "job-2", "--reason", "exit-3"],
        ["settled-once"],
        ["settled-once", "job-1", "job-2"],
        ["nothing-sent-twice", "claim"],
        ["no-refusals"],
        ["idle"],
    ],
)
def test_what_is_as_expected(cpsim, url, expected):
    given = " ".join(expected).partition(" --")[0]
    assert cpsim("expect", url, *expected) == (0, f"{given}: as expected\n", "")


@pytest.mark.usefixtures("jobs")
def test_what_differs_is_said_of_each_slot(cpsim, url):
    status, out, err = cpsim("expect", url, "claimed", "job-1", "job-2", "--machine", "v")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "slot 'job-1' is not as expected:",
        "  machine: expected 'v', is 'w'",
        "history of slot 'job-1':",
    ]
    assert lines[6:9] == [
        "slot 'job-2' is not as expected:",
        "  state: expected 'claimed', is 'discarded'",
        "  machine: expected 'v', is missing",
    ]


@pytest.mark.usefixtures("jobs")
def test_what_may_come_has_its_time(cpsim, url):
    status, out, _ = cpsim("expect", url, "allocated", "job-3", "--within", "10ms")
    assert (status, out.splitlines()[0]) == (1, "there is no slot 'job-3'; there are 2 others; did you mean 'job-2'?")


def test_a_server_of_several_projects_is_asked_about_one(cpsim, url, fake, monkeypatch):
    fake.add_project("other", "s")
    assert cpsim("expect", url, "idle")[2].endswith("projects demo, other: name one with --project\n")
    assert cpsim("expect", url, "idle", "--project", "other")[0] == 0
    monkeypatch.setenv("CREDITPIGGY_PROJECT", "gone")
    status, _, err = cpsim("expect", url, "idle")
    assert status == 2
    assert "there is no project 'gone'; there are 'demo', 'other'" in err


def test_a_server_with_a_token(cpsim, here):
    (here / "token").write_text("hush")
    with Fake({"demo": "demo"}, http=ANY_PORT, control_token="hush") as fake:
        url = fake.addresses["http"]
        assert cpsim("expect", url, "idle")[0] == 2
        assert cpsim("expect", url, "idle", "--control-token-file", "token")[0] == 0


def test_faults_are_added_listed_and_removed(cpsim, url, fake, monkeypatch):
    assert cpsim("faults", "list", "--at", url) == (0, "no faults\n", "")
    fault = "daemon.error:kind=alloc,nth=1"
    assert cpsim("faults", "add", fault, "--at", url) == (0, f"{fault}   selected 0, fired 0\n", "")
    Client(fake.addresses["unix"]).claim("job-1", "w")
    monkeypatch.setenv("CREDITPIGGY_CONTROL", url)
    assert json.loads(cpsim("faults", "list", "--json")[1]) == [{"fault": fault, "selected": 0, "fired": 0}]
    assert cpsim("faults", "remove", fault) == (0, "no faults\n", "")
    assert not list(fake.faults)
    status, _, err = cpsim("faults", "remove", fault)
    assert status == 2
    assert f"fault '{fault}' is not set; these are: none" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["expect", "{url}", "claimd", "job-1"], "did you mean 'claimed'?"),
        (["expect", "{url}", "claimed"], "claimed needs a SLOT"),
        (["expect", "{url}", "idle", "--machine", "w"], "--machine: only for allocated, claimed, discarded, expired"),
        (["expect", "{url}", "no-refusals", "a"], "takes no names; settled-once and nothing-sent-twice do"),
        (["expect", "{url}", "idle", "--within", "5 days"], "'5 days' is not a duration up to 24h"),
        (["expect", "127.0.0.1:1", "idle"], "'URL': expected the server's URL, such as http://127.0.0.1:8080"),
        (["faults", "list", "--at", "127.0.0.1:1"], "'--at': expected the server's URL, such as http://127.0.0.1:8080"),
        (["expect", "{url}", "clamed", "job-1"], "'EXPECTATION': no expectation 'clamed'"),
        (["faults", "add", "--at", "{url}"], "Missing argument 'FAULT...'"),
        (["faults", "add", "hnag", "--at", "{url}"], "did you mean 'hang'?"),
        (["faults", "list"], "Missing option '--at'"),
    ],
)
def test_wrong_usage(cpsim, arguments, said):
    status, out, err = cpsim(*(argument.format(url="http://127.0.0.1:1") for argument in arguments))
    assert (status, out) == (64, "")
    assert said in " ".join(err.split())


def test_a_server_that_is_not_there(cpsim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = cpsim("expect", "http://127.0.0.1:1", "idle", "--project", "p")
    assert (status, out) == (2, "")
    assert err.startswith("cpsim: cannot reach http://127.0.0.1:1")
    assert not Path("runs").exists()
