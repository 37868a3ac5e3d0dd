"""Runs at servers of others, seen by `--accounts`: what is right is valid, and what is wrong is found."""

import json
from pathlib import Path

import pytest
from foreign import Accounts, ledger, serving

CHALLENGE = ["challenge", "--set", "arrivals.jobs=40", "--set", "population.machines=8"]
SAMPLE = Path(__file__).parents[1] / "samples/v0.3/run"
SIGNED = ["--project", "p", "--secret-file", "secret"]


@pytest.fixture
def cpsim(cpsim, monkeypatch, tmp_path):
    """The same, in a folder with the secret."""
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("hush", encoding="utf-8")
    return cpsim


def shows_with(harm):
    def shows(accounts):
        harmed = Accounts()
        harmed.slots = {slot_id: dict(slot) for slot_id, slot in accounts.slots.items()}
        harm(harmed)
        return {"all.jsonl": ledger(harmed)}

    return shows


def grant_more(accounts):
    claimed = [slot for slot in accounts.slots.values() if slot["state"] == "claimed"]
    for slot in claimed[:1]:
        slot["granted"] += 1


@pytest.mark.thorough
def test_the_challenge_at_a_server_of_others_is_valid_and_accounted_for(cpsim):
    with serving(Accounts(), shows_with(lambda _: None)) as url:
        target = ["--target", f"{url}/api", *SIGNED]
        shown = ["--accounts", f"{url}/shown/all.jsonl"]
        status, out, err = cpsim("run", *CHALLENGE, *target, *shown, "--json", "--output", "out")
        assert (status, err) == (0, "")
        document = json.loads(out)
        assert (document["verdict"], document["not_verified"], document["anomalies"]) == ("valid", [], [])
        checked = document["checked"]
        assert (checked["slots"], checked["sums"] > 10, checked["machines"] > 4) == (40, True, True)
        assert document["accounts"] == f"{url}/shown/all.jsonl"
        status, out, err = cpsim("judge", "out", *shown, "--json")
        assert (status, out, err) == (0, Path("out/verdict.json").read_text(encoding="utf-8"), "")
        reports = [cpsim("report", *shown, "summary", "--format", "json")]
    status, out, err = cpsim("judge", "out", "--json")
    assert (status, out, err) == (0, Path("out/verdict.json").read_text(encoding="utf-8"), "")
    reports.append(cpsim("report", "out", "summary", "--format", "json"))
    granted = document["credits_granted"]
    for status, out, err in reports:
        assert (status, err) == (0, "")
        report = json.loads(out)
        assert report["balanced"]
        assert report["note"].startswith("The accounts do not show when slots were allocated and settled")
        sums = {
            table["title"]: dict(zip(table["columns"], table["rows"][0], strict=True))
            for table in report["reports"][0]["tables"]
        }
        assert (sums["Projects"]["credits"], sums["Slots by state"]["allocated"]) == (granted, 40)


def test_a_run_at_an_embedded_server_has_no_accounts_elsewhere(cpsim):
    status, _, err = cpsim("judge", str(SAMPLE), "--accounts", "secret")
    assert status == 64
    assert "the run had a server of its own, which is gone" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smoke", "--accounts", "secret"], "--accounts, --profile and --quirk go with --target"),
        (["run", "smoke", "--target", "./d.sock", "--accounts", "secret"], "needs --project ID, and no --secret-file"),
        (["run", "smoke", "--target", "./d.sock", "--accounts", "none"], "there are no accounts at none"),
        (["verify", "./d.sock", "--accounts", "secret"], "--accounts goes with a server"),
        (["judge", ".", "--project", "p"], "--project goes with --accounts SOURCE"),
        (["report"], "Missing argument 'PATH'"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(cpsim, arguments, message):
    status, _, err = cpsim(*arguments)
    assert status == 64
    assert message in " ".join(err.split())


def test_accounts_that_cannot_be_read_stop_a_run_before_anything_is_sent(cpsim):
    accounts = Accounts()
    with serving(accounts) as url:
        target = ["--target", f"{url}/api", *SIGNED]
        status, out, err = cpsim("run", *CHALLENGE, *target, "--accounts", "program:false", "--output", "out")
    assert (status, out, err) == (2, "", "cpsim: program:false ended with status 1\n")
    assert (accounts.slots, Path("out").exists()) == ({}, False)


def test_a_wrong_credit_is_found(cpsim):
    with serving(Accounts(), shows_with(grant_more)) as url:
        target = ["--target", f"{url}/api", *SIGNED, "--timeout", "3"]
        status, out, err = cpsim("run", *CHALLENGE, *target, "--accounts", f"{url}/shown/all.jsonl", "--json")
    assert (status, err) == (1, "")
    document = json.loads(out)
    assert (document["verdict"], document["anomalies_by_name"]) == ("invalid", {"over-credited": 1})
