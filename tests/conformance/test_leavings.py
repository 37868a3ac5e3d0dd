"""What `cpsim verify` leaves at its target: as little as may be, and it says what."""

import json
from pathlib import Path

import pytest

from cpsim.fake import ANY_PORT, Fake

CLAUSES = ["-k", "ALLOC-[1-4]", "-k", "CLAIM-1", "-k", "COUNTER-1", "-k", "BULK-3"]


@pytest.fixture
def verify(here, cpsim):
    """verify(*options, wire=..., quirks=...): exit status, output, and the fake's accounts of the project."""

    def run(*options, wire="http", quirks=()):
        Path("secret").write_text("hush")
        with Fake({"p": "hush"}, unix=here / "cp.sock", http=ANY_PORT, quirks=frozenset(quirks)) as fake:
            signed = ["--project", "p", "--secret-file", "secret"] if wire == "http" else []
            status, out, _ = cpsim("verify", fake.addresses[wire], *signed, "--max-rate", "100000", *options)
            with fake.accounts.reading() as ledger:
                return status, out, ledger.project("p")

    return run


def test_what_is_outstanding_at_the_end_is_discarded_and_the_rest_is_said(verify):
    status, out, accounts = verify(*CLAUSES, "--json", "--junit", "junit.xml")
    left = json.loads(out)["left"]
    assert status == 0
    assert {slot.state for slot in accounts.slots.values()} == {"claimed", "discarded"}
    assert accounts.reasons["verify"] == left["discarded"] > 10
    assert (left["outstanding"], left["unseen"]) == ([], None)
    assert (left["slots"], left["machines"]) == (len(accounts.slots), len(accounts.machines))
    assert (left["credits"], left["counters"]) == (accounts.granted.credits, accounts.granted.counters)
    _, out, accounts = verify(*CLAUSES)
    lines = out.splitlines()
    begin = lines.index("left there, by what was sent and accepted:")
    assert lines[begin + 1].endswith(f"{accounts.reasons['verify']:,} discarded at the end, 0 outstanding")
    assert lines[begin + 2].endswith(f"{len(accounts.machines):,}, with {accounts.granted.credits:,} credits")
    assert "0 outstanding" in Path("junit.xml").read_text()


def test_a_claimed_slot_that_is_still_listed_is_not_discarded(verify):
    quirks = {"slots-list-claimed", "discard-settled"}
    _, out, accounts = verify("-k", "CLAIM-1", "-k", "ALLOC-3", "--json", quirks=quirks)
    claimed = [slot_id for slot_id, slot in accounts.slots.items() if slot.state == "claimed"]
    assert json.loads(out)["left"]["outstanding"] == claimed != []


def test_random_sequences_leave_nothing_outstanding(verify):
    _, out, accounts = verify("--random", "5", "--json")
    assert "allocated" not in {slot.state for slot in accounts.slots.values()}
    left = json.loads(out)["left"]
    assert (left["outstanding"], left["credits"]) == ([], accounts.granted.credits)


def test_a_daemon_does_not_show_what_is_left(verify):
    _, out, _ = verify("-k", "WIRE-1", wire="unix")
    assert "may be outstanding: a daemon does not show it" in out


def test_a_dry_run_says_what_the_end_would_send(verify):
    _, out, accounts = verify("-k", "ALLOC-3", "--dry-run")
    assert "at the end\n  POST /batch/slots\n  POST /batch/bulk, with a discard of each slot" in out
    assert accounts.slots == {}
