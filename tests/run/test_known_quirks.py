"""Runs at a target that is known to have quirks."""

import json
from pathlib import Path

import pytest

from cpdaemon import Client
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
MISBEHAVING = """
description = "what is refused, beside what is right"
duration = "1h"
population = { machines = 6, users = 3 }
arrivals = { model = "constant", jobs = 60 }
run_time = { model = "constant", value = "5min" }
outcome = { claim = 0.7, discard = { late = 0.3 } }
credits = { policy = "range", min = 5, max = 20, claim = { model = "around", below = 0.2, above = 0.2 } }
counters.claim = { "job/events" = { model = "poisson", mean = 100 } }
misbehaviour = { claim_twice = 0.1, claim_by_two = 0.1, claim_after_discard = 0.2, counters_after_claim = 0.1, \
discard_after_claim = 0.1 }
"""
BREAKING = ["reclaim", "claim-settled", "discard-settled", "counters-settled", "slots-vanish"]


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
    at = ["--target", address, *server, "--project", "p", "--secret-file", "secret", "--timeout", "2"]
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
    at = ["--target", quirky_site.addresses["http"], "--project", "p", "--secret-file", "secret", "--timeout", "2"]
    status, _, _ = cpsim("run", "site.toml", *at, "--profile", "deployed", "--output", "out")
    verdict = json.loads(Path("out/verdict.json").read_text())
    assert (status, verdict["anomalies_by_name"]) == (1, {"lost": 1})
    assert verdict["rests_on"][:3] == ["slots", "machines", "users"]
    assert verdict["rests_on"][3].startswith("sums but for what claim-settled")
    assert verdict["anomalies"][0]["subject"] == lost[0]
    assert verdict["known_quirks"] == {"meta-dropped": 39}


LOSSES = [None, "earned", "waiting", "owned"]


@pytest.mark.parametrize(
    ("quirk", "loss", "wire"),
    [
        (quirk, loss, ("http", "unix")[(at + number) % 2])
        for at, quirk in enumerate([*BREAKING, "all of them"])
        for number, loss in enumerate(LOSSES)
    ],
)
def test_a_loss_in_sums_is_found_beside_quirks_that_break_them(here, cpsim, quirk, loss, wire):
    """What quirks do to sums is known; one credit less, on a machine, that waits, or of a user, is no quirk's doing."""
    Path("site.toml").write_text(MISBEHAVING)
    Path("secret").write_text("s")
    quirks = BREAKING if quirk == "all of them" else [quirk]
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, quirks=frozenset(quirks)) as site:
        with site.accounts.reading() as ledger:
            ledger.apply_all = losing(ledger, loss)
        server = ["--server", site.addresses["http"]] if wire == "unix" else []
        at = ["--target", site.addresses[wire], *server, "--project", "p", "--secret-file", "secret"]
        named = [option for name in quirks for option in ("--quirk", name)]
        status, out, _ = cpsim("run", "site.toml", *at, *named, "--timeout", "2", "--output", "out")
    verdict = json.loads(Path("out/verdict.json").read_text())
    if loss is None:
        assert (status, verdict["anomalies"], verdict["not_verified"]) == (0, [], [])
        assert "valid but for known quirks" in out
        assert {name for names in verdict["known_quirks"] for name in names.split(" + ")} <= set(quirks)
    else:
        assert status == 1
        assert "not conserved" in verdict["anomalies_by_name"]
    assert cpsim("judge", "out", "--json")[1] == Path("out/verdict.json").read_text()


def losing(ledger, loss):
    """`apply_all` of a ledger that links every second machine, and takes a credit away after twenty claims."""
    apply_all, claims, machines = ledger.apply_all, [], []

    def apply(project, calls, now_us, **options):
        given = [arguments for kind, arguments in calls if kind == "claim"]
        for machine in dict.fromkeys(arguments["machine"] for arguments in given):
            if machine not in machines:
                machines.append(machine)
                if len(machines) % 2:
                    ledger.link(machine, f"user-{len(machines)}")
        refusals = apply_all(project, calls, now_us, **options)
        if len(claims) <= 20 < len(claims) + len(given):
            accounts = ledger.projects[project]
            if loss == "earned":
                accounts.machines[machines[1]].earned.credits -= 1
            elif loss == "waiting":
                accounts.machines[machines[1]].waiting.credits -= 1
            elif loss == "owned":
                accounts.users["user-1"].credits -= 1
        claims.extend(given)
        return refusals

    return apply


def test_books_that_were_out_of_balance_before_a_run_do_not_count_against_it(here, cpsim):
    Path("site.toml").write_text(SITE)
    Path("secret").write_text("s")
    with Fake({"p": "s", "q": "s"}, unix=here / "cp.sock", http=ANY_PORT) as site:
        for project in ("p", "q"):
            client = Client(site.addresses["http"], (project, "s"))
            with client:
                client.alloc("old", credits=7)
                client.claim("old", "another machine")
        with site.accounts.reading() as ledger:
            for project in ledger.projects.values():
                project.machines["another machine"].earned.credits += 100
                project.machines["another machine"].waiting.credits -= 3
        at = ["--target", site.addresses["http"], "--project", "p", "--secret-file", "secret", "--timeout", "2"]
        status, _, _ = cpsim("run", "site.toml", *at, "--output", "out")
        verdict = json.loads(Path("out/verdict.json").read_text())
        assert (status, verdict["anomalies"]) == (0, [])
        with site.accounts.reading() as ledger:
            own = ledger.projects["p"].machines.keys() - {"another machine"}
            assert verdict["checked"]["machines"] == len(own)
        assert cpsim("judge", "out")[0] == 0

        with site.accounts.reading() as ledger:  # a run is to blame for what changes while it lasts
            ledger.apply_all = losing(ledger, "earned")
        status, _, _ = cpsim("run", "site.toml", *at, "--output", "worse")
        verdict = json.loads(Path("worse/verdict.json").read_text())
        assert (status, verdict["anomalies_by_name"]) == (1, {"under-credited": 1, "not conserved": 1})

    document = json.loads(Path("worse/evidence.json").read_text())
    Path("worse/evidence.json").write_text(json.dumps(document | {"before": None}))
    status, out, _ = cpsim("judge", "worse")
    assert status == 2
    assert "Whether this run put 7 sums out of balance: nobody looked at the accounts before it" in " ".join(
        out.split()
    )


def test_quirks_are_those_of_a_target(here, cpsim):
    status, _, err = cpsim("run", "smoke", "--quirk", "reclaim")
    assert status == 64
    assert "--profile and --quirk go with --target" in err
