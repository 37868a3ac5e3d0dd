"""Our own daemon and server keep every clause, whatever of them can be seen."""

from pathlib import Path

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.fake import ANY_PORT, Fake
from cpsim.quirks import PROFILES
from cpsim.verify.conformance.clause import Need, catalogue
from cpsim.verify.conformance.suite import examine
from cpsim.verify.conformance.target import Target

MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")

INVISIBLE = {"ack-before-delivery", "drop-on-error", "errors-ignored", "resend-duplicates", "busy-when-down"}


def test_every_clause_passes_on_the_pair(examine_fake):
    outcome = examine_fake()
    assert outcome.deviant == {}
    assert {finding.clause.id for finding in outcome.findings if finding.result == "pass"} == set(catalogue())
    assert outcome.ruling == "valid"


@pytest.mark.parametrize("options", [{"tcp": True}, {"flush_interval_s": 0.05}], ids=["tcp", "flushing"])
def test_and_on_other_kinds_of_pairs(examine_fake, options):
    outcome = examine_fake(**options)
    assert outcome.deviant == {}
    assert outcome.counts["not verifiable"] == 0


def test_and_on_one_that_keeps_what_it_is_told(examine_fake, tmp_path):
    outcome = examine_fake(store=tmp_path / "ledger.db")
    assert outcome.deviant == {}
    assert outcome.counts["not verifiable"] == 0


def test_a_daemon_alone_shows_its_answers_and_no_more(examine_fake):
    outcome = examine_fake(tier="daemon")
    assert outcome.deviant == {}
    results = {finding.clause.id: finding.result for finding in outcome.findings}
    assert results == {
        id: "pass" if clause.needs == (Need.DAEMON,) else "not verifiable" for id, clause in catalogue().items()
    }
    (claim,) = (finding for finding in outcome.findings if finding.clause.id == "CLAIM-6")
    assert "--server URL" in claim.detail


def test_a_server_alone_is_seen_whole_but_for_the_daemon(examine_fake):
    outcome = examine_fake(tier="server")
    assert outcome.deviant == {}
    results = {finding.clause.id: finding.result for finding in outcome.findings}
    assert results == {
        id: "not verifiable" if Need.DAEMON in clause.needs else "pass" for id, clause in catalogue().items()
    }


def test_deployed_shows_exactly_the_quirks_that_are_listed(examine_fake):
    outcome = examine_fake(PROFILES["deployed"], profile="deployed", flush_interval_s=0.1)
    assert set(outcome.quirks) == PROFILES["deployed"] - INVISIBLE
    assert outcome.counts["deviation"] == outcome.counts["error"] == outcome.counts["not verifiable"] == 0
    assert outcome.ruling == "valid"


def test_a_quirk_is_a_deviation_from_the_document(examine_fake):
    outcome = examine_fake({"reclaim"}, ["CLAIM-6"])
    assert outcome.ruling == "invalid"
    (finding,) = outcome.findings
    assert (finding.result, finding.quirk, finding.expected, finding.got) == (
        "deviation",
        "reclaim",
        "refused",
        "accepted",
    )
    assert any("/batch/claim" in line for line in finding.transcript)


def test_what_earlier_runs_left_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Fake(dict([MINE, OTHER]), unix=Path("cp.sock"), http=ANY_PORT) as fake:
        server = parse_endpoint(fake.addresses["http"])
        target = Target(daemon=parse_endpoint("./cp.sock"), server=server, credentials=MINE, other=OTHER)
        for _ in range(2):
            outcome = examine(target)
            assert outcome.deviant == {}
            assert outcome.counts["not verifiable"] == 0
