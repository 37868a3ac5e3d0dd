"""A daemon and a server that cpsim has never seen: nothing is falsely found, and what is wrong with them is."""

import pytest

from cpsim.conformance.clause import Need, catalogue

WRONG = {
    # the daemon
    "keeps-newline": "DELIVER-2",
    "strips-nothing": "WIRE-5",
    "reply-newline": "WIRE-10",
    "stays-open": "WIRE-11",
    "reply-twice": "WIRE-20",
    "case-sensitive": "WIRE-6",
    "lower-case-ids": "DELIVER-1",
    "reads-once": "WIRE-14",
    "knows-all-commands": "WIRE-7",
    "needs-no-slot": "WIRE-8",
    "needs-no-machine": "WIRE-9",
    "swallows-er": "WIRE-8",
    "waits-for-newline": "CONCUR-2",
    "one-at-a-time": "CONCUR-2",
    "short-frames": "WIRE-13",
    "checks-numbers": "WIRE-22",
    "drops-some": "DELIVER-2",
    "delivers-malformed": "DELIVER-3",
    # the server
    "one-project": "PROJECT-2",
    "lists-all-projects": "PROJECT-3",
    "lists-everything": "DISCARD-1",
    "slots-bare": "HTTP-6",
    "realloc": "ALLOC-4",
    "realloc-discarded": "ALLOC-7",
    "any-slot": "CLAIM-3",
    "reclaim-settled": "DISCARD-5",
    "min-above-max": "ALLOC-8",
    "negative": "ALLOC-9",
    "takes-any-number": "ALLOC-11",
    "bulk-in-document-order": "BULK-2",
    "bulk-stops": "BULK-5",
    "bulk-hides-errors": "BULK-5",
    "bulk-refuses-unknown": "BULK-6",
    "refuses-with-200": "HTTP-3",
    "refuses-with-400": "HTTP-3",
    "heartbeat-signed": "HTTP-1",
    "no-get": "HTTP-4",
    "no-text": "HTTP-8",
    "no-jsonp": "HTTP-11",
    "suffix-ignored": "HTTP-13",
    "ascii-only": "HTTP-14",
    "any-secret": "AUTH-11",
    "any-body": "AUTH-10",
    "reserialises": "AUTH-14",
    "one-algorithm": "AUTH-1",
    "case-sensitive-token": "AUTH-3",
    "unauthorised-is-400": "AUTH-10",
    "unsigned-is-401": "AUTH-4",
    "auth-anywhere": "AUTH-6",
    "applies-unsigned": "AUTH-13",
}


@pytest.mark.parametrize(
    ("tier", "profile"),
    [("pair", "documented"), ("daemon", "documented"), ("server", "documented"), ("pair", "deployed")],
)
def test_a_stranger_who_does_as_documented_is_found_right(examine_stranger, unseen_when_busy, tier, profile):
    there = {
        "pair": {Need.DAEMON, Need.SERVER, Need.OTHER},
        "daemon": {Need.DAEMON},
        "server": {Need.SERVER, Need.OTHER},
    }[tier]
    outcome = examine_stranger(tier=tier, profile=profile, timeout_s=10.0)
    assert outcome.deviant == {}
    results = {finding.clause.id: finding.result for finding in outcome.findings}
    expected = {
        id: "pass" if there.issuperset(clause.needs) else "not verifiable" for id, clause in catalogue().items()
    }
    for id in unseen_when_busy & expected.keys():
        assert results.pop(id) in {expected.pop(id), "not verifiable"}
    assert results == expected
    assert outcome.ruling == "valid"


@pytest.mark.parametrize("bug", WRONG)
def test_a_stranger_who_is_wrong_is_found_out(examine_stranger, bug):
    clause = WRONG[bug]
    theme = clause.partition("-")[0]
    chosen = clause if theme == "DELIVER" else f"{theme}-*"
    alone = theme in {"CONCUR", "WIRE"}
    outcome = examine_stranger(bug, [chosen], tier="daemon" if alone else "pair", timeout_s=1.0 if alone else 5.0)
    assert clause in outcome.deviant
    must = catalogue()[clause].level == "must"
    assert outcome.ruling == ("invalid" if must else "valid")


@pytest.mark.parametrize("bug", ["one-project", "lists-everything", "swallows-er", "bulk-stops"])
def test_who_shares_a_quirk_and_is_wrong_besides_is_not_excused(examine_stranger, bug):
    theme = f"{WRONG[bug].partition('-')[0]}-*"
    outcome = examine_stranger(bug, [theme], profile="deployed", timeout_s=5.0)
    assert outcome.ruling == "invalid"


def test_every_bug_of_the_stranger_is_there(stranger_bugs):
    assert set(stranger_bugs) == set(WRONG)
