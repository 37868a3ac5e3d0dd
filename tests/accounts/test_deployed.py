"""The mapping and the program for the accounts of the server in production, at a database of that shape."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from deployed_accounts import DeployedAccounts
from foreign import serving

from cpsim.accounts.sources import parse_source

CHALLENGE = ["challenge", "--set", "arrivals.jobs=40", "--set", "population.machines=8"]
ANNS = [
    ("alloc", {"slot": "before", "min": 2, "max": 4}),
    ("counters", {"slot": "before", "job/events": 30}),
    ("claim", {"slot": "before", "machine": "of-ann", "credits": 3}),
]


@pytest.fixture
def cpsim(cpsim, monkeypatch, tmp_path):
    """cpsim(*arguments): exit status and JSON of a command, which prints nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("hush", encoding="utf-8")

    def call(*arguments):
        status, out, err = cpsim(*arguments)
        assert err == ""
        return status, json.loads(out)

    return call


@pytest.fixture
def database(tmp_path, monkeypatch):
    """The accounts in SQLite, before the run of which a user was paid for a slot that is gone."""
    url = f"sqlite:///{tmp_path / 'deployed.db'}"
    monkeypatch.setenv("CREDITPIGGY_DATABASE", url)
    accounts = DeployedAccounts(sa.create_engine(url, poolclass=sa.NullPool))
    for kind, given in ANNS:
        accounts.apply(kind, dict(given))
    return accounts


def ran(cpsim, accounts, source):
    """A run of the challenge at a server with these accounts."""
    with serving(accounts) as url:
        target = ["--target", f"{url}/api", "--project", "p", "--secret-file", "secret"]
        return cpsim("run", *CHALLENGE, *target, "--accounts", source, "--json", "--output", "out")


def test_the_mapping_shows_what_each_claim_granted(cpsim, database):
    status, document = ran(cpsim, database, "sql:deployed")
    assert (status, document["verdict"], document["anomalies"]) == (2, "unknown", [])
    assert document["checked"] == {"slots": 40, "replies": document["operations"]}
    assert [sentence.partition(":")[0] for sentence in document["not_verified"]] == [
        "The counters of slots, and whether accounts have these counters",
        "The metadata of slots",
        "Whether machines have what their slots granted",
        "Whether users have the counters that their machines earned",
    ]
    granted = document["credits_granted"]
    assert granted == database.run("SELECT SUM(credits) AS granted FROM core_creditslot WHERE status = 0")[0]["granted"]
    status, report = cpsim("report", "--accounts", "sql:deployed", "summary", "--format", "json")
    projects = report["reports"][0]["tables"][0]
    assert dict(zip(projects["columns"], projects["rows"][0], strict=True))["credits"] == granted
    assert (status, report["balanced"], "Owners and balances" in report["note"]) == (0, True, True)
    view = parse_source("sql:deployed").read(60.0)
    assert view.users.to_pylist() == [{"project": "p", "user": "ann", "credits": 3}]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("UPDATE core_creditslot SET credits = credits + 1 WHERE id = {id}", "over-credited"),
        ("UPDATE core_creditslot SET machine_id = 1 WHERE id = {id}", "altered"),
        ("UPDATE core_creditslot SET machine_id = NULL WHERE id = {id}", "lost"),
        ("DELETE FROM core_creditslot WHERE id = {id}", "lost"),
    ],
)
def test_what_is_wrong_there_is_found_in_a_run_that_is_judged_again(cpsim, database, wrong, found):
    ran(cpsim, database, "sql:deployed")
    claimed = database.run("SELECT id FROM core_creditslot WHERE machine_id IS NOT NULL AND status = 0")
    database.run(wrong.format(id=claimed[0]["id"]))
    status, document = cpsim("judge", "out", "--accounts", "sql:deployed", "--json")
    assert (status, document["verdict"]) == (1, "invalid")
    assert document["anomalies_by_name"] == {found: 1}
