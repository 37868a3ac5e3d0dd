"""Assertions about a slot: they hold or show the differences and the history."""

from unittest.mock import ANY

import pytest

from cpdaemon import Client
from cpsim.testing import CreditPiggy


def failure_of(assertion, *arguments, **keywords):
    with pytest.raises(AssertionError) as failure:
        assertion(*arguments, **keywords)
    return str(failure.value).splitlines()


@pytest.fixture
def job(client):
    client.alloc("job-1", min=2, max=10)
    client.counters("job-1", **{"job/events": 1000, "job/success": 1})
    client.meta("job-1", experiment="atlas")
    client.claim("job-1", "worker-7", credits=25)


@pytest.mark.usefixtures("job")
def test_a_claim_as_expected(creditpiggy):
    slot = creditpiggy.assert_claimed(
        "job-1",
        machine="worker-7",
        credits=10,
        counters={"job/events": 1000, "job/success": 1},
        meta={"experiment": "atlas"},
    )
    assert slot == creditpiggy.slots["job-1"]
    creditpiggy.assert_claimed("job-1")
    creditpiggy.assert_claimed("job-1", counters={"job/events": 1000})
    creditpiggy.assert_counters("job-1", {"job/events": 1000, "job/success": 1})
    creditpiggy.assert_counters("job-1", {"job/events": ANY, "job/success": 1})


@pytest.mark.usefixtures("job")
def test_counters_are_compared_whole_where_they_are_the_subject(creditpiggy):
    lines = failure_of(creditpiggy.assert_counters, "job-1", {"job/events": 1000, "job/failure": 1})
    assert lines[1:3] == [
        "  counters['job/failure']: expected 1, is missing",
        "  counters['job/success']: expected none, is 1",
    ]


@pytest.mark.usefixtures("job")
def test_differences_are_told_field_by_field(creditpiggy):
    lines = failure_of(
        creditpiggy.assert_claimed,
        "job-1",
        machine="worker-8",
        credits=25,
        counters={"job/events": 1, "job/cpuusage": 60},
        meta={"experiment": "cms"},
    )
    assert lines[:6] == [
        "slot 'job-1' is not as expected:",
        "  machine: expected 'worker-8', is 'worker-7'",
        "  counters['job/events']: expected 1, is 1000",
        "  counters['job/cpuusage']: expected 60, is missing",
        "  meta['experiment']: expected 'cms', is 'atlas'",
        "  credits: expected 25, is 10",
    ]
    assert lines[6] == "history of slot 'job-1':"
    assert [line.partition(" s  ")[2] for line in lines[7:]] == [
        "alloc,slot=job-1,min=2,max=10",
        "counters,slot=job-1,job/events=1000,job/success=1",
        "meta,slot=job-1,experiment=atlas",
        "claim,slot=job-1,machine=worker-7,credits=25",
    ]


def test_a_slot_that_is_not_there(creditpiggy, client):
    client.claim("job-1", "worker-7")
    client.alloc("job-2")
    lines = failure_of(creditpiggy.assert_claimed, "job-1")
    assert lines[0] == "there is no slot 'job-1'; there is 1 other; did you mean 'job-2'?"
    assert lines[2].endswith("claim,slot=job-1,machine=worker-7   refused: slot 'job-1' was never allocated")
    assert failure_of(creditpiggy.assert_claimed, "elsewhere")[1] == "nothing has come for it"


def test_a_malformed_frame_belongs_to_the_history(creditpiggy, client, say):
    client.alloc("job-1")
    creditpiggy.wait_for_alloc("job-1")
    say(creditpiggy.endpoint, "claim,slot=job-1")
    lines = failure_of(creditpiggy.assert_claimed, "job-1")
    assert lines[1] == "  state: expected 'claimed', is 'allocated'"
    assert lines[-1].endswith("'claim,slot=job-1'   malformed")


def test_discarded(creditpiggy, client):
    client.alloc("job-1")
    client.counters("job-1", failure=1)
    client.discard("job-1", "unknown-vmid")
    creditpiggy.assert_discarded("job-1")
    creditpiggy.assert_discarded("job-1", reason="unknown-vmid", counters={"failure": 1})
    lines = failure_of(creditpiggy.assert_discarded, "job-1", reason="expired")
    assert lines[1] == "  reason: expected 'expired', is 'unknown-vmid'"


def test_outstanding(creditpiggy, client):
    client.alloc("job-1", min=2, max=10)
    client.alloc("job-2", credits=5)
    creditpiggy.assert_outstanding("job-1", min=2, max=10)
    creditpiggy.assert_outstanding("job-2", credits=5)
    assert "  credits: expected 5, is missing" in failure_of(creditpiggy.assert_outstanding, "job-1", credits=5)
    client.discard("job-1")
    assert "  state: expected 'allocated', is 'discarded'" in failure_of(creditpiggy.assert_outstanding, "job-1")
    assert "  state: expected 'expired', is 'discarded'" in failure_of(creditpiggy.assert_expired, "job-1")


def test_no_refusals(creditpiggy, client, say):
    client.alloc("job-1")
    creditpiggy.assert_no_refusals()
    client.alloc("job-1")
    lines = failure_of(creditpiggy.assert_no_refusals)
    assert lines[0] == "1 refused by the accounts:"
    assert lines[1].endswith("alloc,slot=job-1   refused: slot 'job-1' was already allocated")
    say(creditpiggy.endpoint, "alloc")
    assert failure_of(creditpiggy.assert_no_refusals)[2] == "1 malformed, answered ER by the daemon:"


def test_what_the_daemon_still_keeps_is_told(creditpiggy, client):
    client.alloc("job-1")
    creditpiggy.wait_for_alloc("job-1")
    with creditpiggy.faults.down():
        client.claim("job-1", "worker-7")
        lines = failure_of(creditpiggy.assert_claimed, "job-1")
        assert lines[-1] == "1 acknowledged commands have not reached the accounts: the server is down, by a fault"
        assert "the server is down" in creditpiggy.report()
    creditpiggy.assert_claimed("job-1")


def test_a_flush_interval_is_waited_for():
    with CreditPiggy(flush_interval_s=0.05) as creditpiggy:
        with Client(creditpiggy.endpoint) as client:
            client.alloc("job-1")
            client.claim("job-1", "worker-7")
        creditpiggy.assert_claimed("job-1", machine="worker-7")


def test_the_deployed_system_deletes_what_is_claimed():
    with CreditPiggy(profile="deployed") as creditpiggy:
        creditpiggy.link("worker-7", "alice")
        with Client(creditpiggy.endpoint) as client:
            client.alloc("job-1")
            client.claim("job-1", "worker-7")
        assert "the quirk slots-vanish deletes what is claimed" in failure_of(creditpiggy.assert_claimed, "job-1")[0]
