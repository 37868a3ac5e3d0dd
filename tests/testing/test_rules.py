"""Rules over a whole run: each finds the run that breaks it, and lets a good one pass."""

import socket
import sys
import threading
from urllib.request import Request, urlopen

import pytest

from cpdaemon import Alloc, Claim, Client
from cpdaemon.signing import token
from cpsim.fake import ANY_PORT, Fake
from cpsim.testing import CreditPiggy, ManualClock


def failure_of(assertion, *arguments):
    with pytest.raises(AssertionError) as failure:
        assertion(*arguments)
    return str(failure.value).splitlines()


@pytest.fixture
def good_run(client):
    for job in ("job-1", "job-2", "job-3"):
        client.alloc(job)
        client.counters(job, events=10)
    client.claim("job-1", "worker-7")
    client.claim("job-2", "worker-8")
    client.discard("job-3", "expired")


@pytest.mark.usefixtures("good_run")
def test_a_good_run_keeps_all_rules(creditpiggy):
    creditpiggy.assert_settled_once()
    creditpiggy.assert_settled_once("job-1", "job-2", "job-3")
    creditpiggy.assert_no_claim_before_alloc()
    creditpiggy.assert_no_slot_leaked()
    creditpiggy.assert_nothing_sent_twice()
    creditpiggy.assert_never_blocked(1.0)


@pytest.mark.usefixtures("good_run")
def test_a_machine_that_is_linked_over_http_is_no_slot(creditpiggy):
    assert len(creditpiggy.journal) == 9  # what the daemon has acknowledged may come after what the server is asked
    body = b'{"vmid":"worker-7","webid":"alice"}'
    headers = {"Authorization": token(creditpiggy.credentials, body)}
    urlopen(Request(f"{creditpiggy.url}/lib/claim", body, headers)).close()
    assert creditpiggy.journal[-1].arguments == {"vmid": "worker-7", "webid": "alice"}
    creditpiggy.assert_settled_once()
    creditpiggy.assert_no_slot_leaked()


@pytest.mark.usefixtures("good_run")
def test_settled_twice(creditpiggy, client):
    client.discard("job-1")
    lines = failure_of(creditpiggy.assert_settled_once)
    assert lines[:3] == [
        "slots not settled exactly once: 1:",
        "  job-1: claim, discard came, 1 accepted",
        "history of slot 'job-1':",
    ]
    assert lines[-1].endswith("discard,slot=job-1   refused: slot 'job-1' is settled: it was claimed")
    creditpiggy.assert_settled_once("job-2")


@pytest.mark.usefixtures("good_run")
def test_never_settled(creditpiggy, client):
    client.alloc("job-4")
    creditpiggy.assert_settled_once()  # nobody says that it is finished
    assert failure_of(creditpiggy.assert_settled_once, "job-4")[1] == (
        "  job-4: neither claim nor discard came, 0 accepted"
    )
    assert failure_of(creditpiggy.assert_settled_once, "job-5")[1].startswith("  job-5: neither")
    assert failure_of(creditpiggy.assert_no_slot_leaked)[:2] == [
        "slots allocated and never settled: 1:",
        "  job-4: allocated",
    ]
    creditpiggy.clock.advance(hours=25)
    assert failure_of(creditpiggy.assert_no_slot_leaked)[1] == "  job-4: expired"


@pytest.mark.usefixtures("good_run")
def test_claimed_before_allocation(creditpiggy, client):
    client.claim("job-4", "worker-7")
    client.alloc("job-4")
    lines = failure_of(creditpiggy.assert_no_claim_before_alloc)
    assert lines[1] == "  job-4: claimed before it was allocated"
    assert len(lines) == 5


@pytest.mark.usefixtures("good_run")
def test_sent_twice(creditpiggy, client):
    client.counters("job-1", events=10)  # refused, and sent twice all the same
    lines = failure_of(creditpiggy.assert_nothing_sent_twice)
    assert lines[1] == "  job-1: counters,slot=job-1,events=10 came 2 times"
    creditpiggy.assert_nothing_sent_twice("alloc", "claim", "discard")
    with pytest.raises(ValueError, match="no command 'claims'; there are alloc"):
        creditpiggy.assert_nothing_sent_twice("claims")


def test_many_slots_are_counted_and_the_last_shown(creditpiggy, client):
    for number in range(30):
        client.alloc(f"job-{number}")
    lines = failure_of(creditpiggy.assert_no_slot_leaked)
    assert lines[0] == "slots allocated and never settled: 30:"
    assert lines[1] == "  ... 10 before these ..."
    assert lines[21] == "  job-29: allocated"
    assert sum(line.startswith("history of") for line in lines) == 5


def waits_of(creditpiggy):
    """All waits that have been recorded, which is just after an answer."""
    try:
        creditpiggy.assert_never_blocked(-1)
    except AssertionError as failure:
        return str(failure).splitlines()[1:]
    return []


@pytest.fixture
def by_hand():
    """(clock, creditpiggy, client) with a clock that the test moves."""
    clock = ManualClock()
    with (
        Fake({"p": "s"}, http=ANY_PORT, clock=clock) as fake,
        CreditPiggy(project="q", fake=fake, allow_refusals=True) as creditpiggy,
        Client(creditpiggy.endpoint) as client,
    ):
        yield clock, creditpiggy, client


def test_kept_waiting_by_the_daemon(by_hand, wait_for):
    clock, creditpiggy, client = by_hand
    with creditpiggy.faults.late(0.5, kind="claim"):
        client.alloc("job-1")
        claim = threading.Thread(target=client.claim, args=("job-1", "worker-7"))
        claim.start()
        wait_for(lambda: creditpiggy.faults.firings)
        client.alloc("job-2")
        wait_for(lambda: len(waits_of(creditpiggy)) == 3)
        clock.advance(0.5)
        client.alloc("job-3")  # the daemon looks at its clock
        claim.join()
    wait_for(lambda: len(waits_of(creditpiggy)) == 4 and "still waiting" not in str(waits_of(creditpiggy)))
    creditpiggy.assert_never_blocked(0.5)
    lines = failure_of(creditpiggy.assert_never_blocked, 0.4)
    assert lines[0] == "callers that waited longer than 0.4 s:"
    assert lines[1].strip() == "0.500 s: claim,slot=job-1,machine=worker-7"
    assert len(lines) == 2


def test_kept_waiting_by_the_server(creditpiggy):
    with creditpiggy.faults.late(0.15), Client(creditpiggy.url, creditpiggy.credentials) as client:
        client.alloc("job-1")
    assert failure_of(creditpiggy.assert_never_blocked, 0.1)[1].endswith(" s: POST /api/batch/alloc")


def test_still_waiting(by_hand, wait_for):
    clock, creditpiggy, _ = by_hand
    with creditpiggy.faults.hang(kind="alloc"), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(creditpiggy.unix)
        sock.sendall(b"alloc,slot=job-1\n")
        wait_for(lambda: creditpiggy.faults.firings and waits_of(creditpiggy))
        clock.advance(2)
        creditpiggy.assert_never_blocked(2)
        (line,) = failure_of(creditpiggy.assert_never_blocked, 1)[1:]
        assert line.strip() == "2.000 s and still waiting: alloc,slot=job-1"
    wait_for(lambda: "still waiting" not in str(waits_of(creditpiggy)))
    (line,) = failure_of(creditpiggy.assert_never_blocked, 1)[1:]
    assert line.strip() == "2.000 s: alloc,slot=job-1"


def test_a_client_that_says_nothing_is_not_blocked(by_hand, wait_for):
    clock, creditpiggy, client = by_hand
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(creditpiggy.unix)
        client.alloc("job-1")
        wait_for(lambda: waits_of(creditpiggy))
        clock.advance(2)
        client.alloc("job-2")
        creditpiggy.assert_never_blocked(0)
        sock.sendall(b"alloc,slot=job-3\n")
        assert sock.recv(2) == b"OK"
    creditpiggy.assert_never_blocked(0)
    wait_for(lambda: creditpiggy.slots.keys() == {"job-1", "job-2", "job-3"})


@pytest.mark.usefixtures("good_run")
def test_outcomes_are_those_of_a_record(creditpiggy, client):
    record = {"job-1": "claimed", "job-2": "claimed", "job-3": "discarded"}
    creditpiggy.assert_outcomes(record)
    client.alloc("job-4")
    creditpiggy.assert_outcomes(record | {"job-4": "outstanding"})
    creditpiggy.clock.advance(hours=25)
    creditpiggy.assert_outcomes(record | {"job-4": "expired"})
    with pytest.raises(ValueError, match="slot 'job-9': no outcome 'done'; there are outstanding, claimed, discarded"):
        creditpiggy.assert_outcomes({"job-9": "done"})


@pytest.mark.usefixtures("good_run")
def test_outcomes_that_differ_from_a_record(creditpiggy, client):
    client.claim("job-9", "worker-7")
    lines = failure_of(creditpiggy.assert_outcomes, {"job-1": "claimed", "job-2": "discarded", "job-9": "claimed"})
    assert lines[:8] == [
        "slots missing: 1:",
        "  job-9: recorded as claimed",
        "slots not recorded: 1:",
        "  job-3: discarded",
        "slots different: 1:",
        "  job-2: is claimed, recorded as discarded",
        "history of slot 'job-9':",
        lines[7],
    ]
    assert lines[7].endswith("claim,slot=job-9,machine=worker-7   refused: slot 'job-9' was never allocated")
    assert [line for line in lines if line.startswith("history")] == [
        f"history of slot 'job-{number}':" for number in (9, 3, 2)
    ]


def test_outcomes_where_nothing_has_come(creditpiggy):
    creditpiggy.assert_outcomes({})
    lines = failure_of(creditpiggy.assert_outcomes, {"job-1": "claimed"})
    assert lines[:3] == [
        "slots missing: 1:",
        "  job-1: recorded as claimed",
        "nothing has come for it, nor for any other:",
    ]


def test_an_assertion_of_one_slot_looks_at_no_other(creditpiggy):
    """Functions are counted, of Python and of C, that each calls among few slots and among many."""
    asserted = [
        lambda: creditpiggy.assert_claimed("job-0", machine="worker-7"),
        lambda: creditpiggy.assert_settled_once("job-0"),
        lambda: failure_of(creditpiggy.assert_discarded, "job-0"),
        lambda: creditpiggy.wait_for_claim("job-0"),
    ]

    def count(call):
        called = []
        sys.setprofile(lambda _, event, argument: called.append(event))
        try:
            call()
        finally:
            sys.setprofile(None)
        return len(called)

    counts = []
    for numbers in (range(50), range(50, 1_000)):
        with Client(creditpiggy.url, creditpiggy.credentials) as client:
            commands = [(Alloc(f"job-{number}"), Claim(f"job-{number}", "worker-7")) for number in numbers]
            client.send_many(alloc for alloc, _ in commands)
            client.send_many(claim for _, claim in commands)
        for call in asserted:
            call()  # what is made once is made
        counts.append([count(call) for call in asserted])
    few, many = counts
    assert all(later < earlier + 50 for earlier, later in zip(few, many, strict=True)), counts
