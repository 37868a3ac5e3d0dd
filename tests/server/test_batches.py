"""Each batch is applied once, however often and however late it comes."""

import json

import pytest

from cpsim.server import batches
from cpsim.server.batches import LONGEST_ID, Batches, BatchGivenUp, BatchSeen
from cpsim.server.ledger import Refusal
from cpsim.server.service import AccountServer

A, B = "a" * 32, "b" * 32
REFUSAL = Refusal(0, "no")


@pytest.fixture
def accounts():
    return AccountServer({"p": "s", "q": "t"}, iter(range(1, 10**9)).__next__)


def count(accounts, batch_id, project="p"):
    """Send a batch that counts 1 on a slot."""
    return accounts.apply(project, [("counters", {"slot": "s", "x": 1})], batch_id)


def counted(accounts, project="p"):
    with accounts.reading() as ledger:
        return ledger.project(project).slots["s"].counters["x"]


def test_a_sender_may_have_sent_any_number_of_batches(accounts):
    accounts.apply("p", [("alloc", {"slot": "s"})])
    for number in range(1, 10_102):
        assert count(accounts, f"{A}-{number} digest") == []
    for number in (1, 2, 100, 10_100):
        with pytest.raises(BatchSeen, match=f"number 10101|-{number}"):
            count(accounts, f"{A}-{number} digest")
    assert count(accounts, f"{A}-10101 digest") == []
    with pytest.raises(BatchSeen, match="with other commands"):
        count(accounts, f"{A}-10101 other")
    assert counted(accounts) == 10_101


def test_what_was_given_up_stays_so_whatever_comes_after_it(accounts):
    accounts.apply("p", [("alloc", {"slot": "s"})])
    count(accounts, f"{A}-1 digest")
    assert accounts.give_up("p", f"{A}-2") is None
    with pytest.raises(BatchGivenUp):
        count(accounts, f"{A}-2 digest")
    assert accounts.give_up("p", f"{A}-2") is None
    for number in range(3, 10_110):
        count(accounts, f"{A}-{number} digest")
    with pytest.raises(BatchSeen, match="comes too late"):
        count(accounts, f"{A}-2 digest")
    with pytest.raises(BatchSeen, match="comes too late"):
        accounts.give_up("p", f"{A}-2")
    assert counted(accounts) == 10_108


def test_what_a_sender_has_passed_over_is_not_applied(accounts):
    accounts.apply("p", [("alloc", {"slot": "s"})])
    count(accounts, f"{A}-7")
    with pytest.raises(BatchSeen, match="gone on to number 7"):
        count(accounts, f"{A}-6")
    count(accounts, f"{B}-6")
    accounts.apply("q", [("alloc", {"slot": "s"})])
    count(accounts, f"{A}-6", project="q")
    assert (counted(accounts), counted(accounts, "q")) == (2, 1)


@pytest.mark.parametrize("name", [f"{A}-0", f"{A}-01", f"{A}-", "id-1", f"{A}-{'9' * 17}", A, f"{A.upper()}-1"])
def test_other_ids_have_no_number(accounts, name):
    accounts.apply("p", [("alloc", {"slot": "s"})])
    for again in (name, f"{A}-1", name):
        count(accounts, again)
    assert counted(accounts) == 2


def test_so_many_senders_are_known():
    known = Batches()
    for number in range(batches.SENDERS_KEPT + 5):
        known.add(f"{number:032x}-2 d", 1, [])
        known.add(f"{0:032x}-{number + 3} d", 1, [])  # who sends stays
    assert len(known.senders) == batches.SENDERS_KEPT
    assert known.answer(f"{1:032x}-1 d") is None
    for number in (0, 10, batches.SENDERS_KEPT):
        with pytest.raises(BatchSeen):
            known.answer(f"{number:032x}-1 d")


def test_so_many_other_ids_are_known_for_so_long():
    known = Batches()
    for number in range(batches.OTHERS_KEPT + 5):
        known.add(f"id {number}", number, [REFUSAL])
    assert len(known.others) == known.refused == batches.OTHERS_KEPT
    assert known.answer("id 4") is None
    assert known.answer("id 5") == [REFUSAL]
    known.add("late id", batches.OTHERS_KEPT_US + 100, [])
    assert known.answer("id 99") is None
    assert known.answer("id 100") == [REFUSAL]
    known.add("later id", 2 * batches.OTHERS_KEPT_US + 101, [])
    assert list(known.others) == ["later id"]
    assert known.refused == 0


def test_so_many_refusals_are_kept():
    known = Batches()
    known.add(f"{A}-1 d", 1, [REFUSAL] * 1_000)
    for number in range(300):
        known.add(f"id {number}", number, [REFUSAL] * 1_000)
        kept = sum(len(answer.refusals or ()) for answer in (*known.others.values(), *known.senders.values()))
        assert kept == known.refused <= batches.REFUSALS_KEPT
    with pytest.raises(BatchSeen, match="no longer kept"):
        known.answer("id 0")
    assert len(known.answer("id 299")) == len(known.answer(f"{A}-1 d")) == 1_000


def test_how_long_an_id_may_be(site):
    body = json.dumps({"alloc": [{"slot": "s"}]}).encode()

    def send(name):
        headers = {"Authorization": site.sign(body), "CreditPiggy-Batch": name}
        status, text = site.request("POST", "/api/batch/bulk", body, headers)[:2]
        return status, json.loads(text).get("message")

    said = "the id of the batch has 201 characters: at most 200 are accepted"
    assert send("x" * (LONGEST_ID + 1)) == (400, said)
    assert send("x" * 900_000)[0] == 400
    assert site.slots() == {}
    assert [send("x" * LONGEST_ID)[0] for _ in range(2)] == [200, 200]
    assert send(f"{A}-2") == (200, None)
    assert send(f"{A}-1") == (409, f"batch '{A}-1' comes too late: its sender has gone on to number 2")
    assert len(site.slots()) == 1
