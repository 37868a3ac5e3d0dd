"""Runs at a target that is known to have quirks."""

import json
from pathlib import Path

import pytest

from cpsim.fake import ANY_PORT, Fake

SITE = """
description = "claims and discards, with metadata"
duration = "1h"
population = { machines = 5, users = 2 }
arrivals = { model = "constant", jobs = 40 }
run_time = { model = "constant", value = "5min" }
outcome = { claim = 0.8, discard = { late = 0.2 } }
metadata = { site = ["here", "there"] }
"""


@pytest.fixture
def quirky_site(here):
    Path("site.toml").write_text(SITE)
    Path("secret").write_text("s")
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, quirks=frozenset({"meta-dropped"})) as site:
        yield site


@pytest.mark.parametrize("wire", ["http", "unix"])
def test_a_run_is_valid_but_for_the_quirks_that_its_user_named(quirky_site, cpsim, wire):
    address, url = quirky_site.addresses[wire], quirky_site.addresses["http"]
    server = ["--server", url] if wire == "unix" else []
    at = ["--target", address, *server, "--project", "p", "--secret-file", "secret", "--timeout", "0.2"]
    status, out, _ = cpsim("run", "site.toml", *at, "--output", "unnamed")
    assert status == 1
    assert "as with the quirk meta-dropped" in out
    status, out, _ = cpsim("run", "site.toml", *at, "--quirk", "meta-dropped", "--output", "named")
    assert status == 0
    assert "valid but for known quirks" in out
    assert "40 slots show the known quirk meta-dropped" in out
    assert "rests on      slots, machines, users" in out
    assert json.loads(Path("named/verdict.json").read_text())["known_quirks"] == {"meta-dropped": 40}
    status, out, _ = cpsim("judge", "unnamed", "--quirk", "meta-dropped")
    assert (status, "40 slots show the known quirk meta-dropped" in out) == (0, True)
    status, out, _ = cpsim("judge", "named", "--quirk", "reclaim")
    assert status == 1


def test_a_loss_beside_a_known_quirk_is_found(quirky_site, cpsim):
    with quirky_site.accounts.reading() as ledger:
        apply_all, lost = ledger.apply_all, []

        def lose_one(project, calls, now_us, **options):
            if not lost and any(kind == "claim" for kind, _ in calls):
                lost.append(next(arguments["slot"] for kind, arguments in calls if kind == "claim"))
                calls = [call for call in calls if call[0] != "claim" or call[1]["slot"] != lost[0]]
            return apply_all(project, calls, now_us, **options)

        ledger.apply_all = lose_one
    at = ["--target", quirky_site.addresses["http"], "--project", "p", "--secret-file", "secret", "--timeout", "0.2"]
    status, _, _ = cpsim("run", "site.toml", *at, "--profile", "deployed", "--output", "out")
    verdict = json.loads(Path("out/verdict.json").read_text())
    assert (status, verdict["anomalies_by_name"]) == (1, {"lost": 1})
    assert verdict["rests_on"][0] == "slots"
    assert verdict["rests_on"][1].startswith("not on sums, which do not agree with claim-settled")
    assert verdict["anomalies"][0]["subject"] == lost[0]
    assert verdict["known_quirks"] == {"meta-dropped": 39}


def test_quirks_are_those_of_a_target(here, cpsim):
    status, _, err = cpsim("run", "smoke", "--quirk", "reclaim")
    assert status == 64
    assert "--profile and --quirk go with --target" in err
