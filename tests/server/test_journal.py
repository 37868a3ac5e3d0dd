"""A journal that is longer than what is kept in one piece."""

import pytest

from cpsim.server.journal import SEGMENT_BYTES, CommandJournal
from cpsim.server.service import AccountServer

PADDING = "x" * 1_000
COUNT = 4 * SEGMENT_BYTES // len(PADDING)


@pytest.fixture(scope="module")
def accounts():
    """Batches of one command to three, every fifth of which is refused."""
    accounts = AccountServer({"p": "s"})
    slots = [str(number) if number % 5 else "again" for number in range(COUNT)]
    while slots:
        batch, slots = slots[: 1 + len(slots) % 3], slots[1 + len(slots) % 3 :]
        accounts.apply("p", [("alloc", {"slot": slot, "note": PADDING}) for slot in batch])
    return accounts


@pytest.fixture(scope="module")
def entries(accounts):
    return list(accounts.journal.read("p"))


def test_all_is_there_in_order(entries):
    assert [arguments["slot"] for _, _, arguments, _ in entries] == [
        str(number) if number % 5 else "again" for number in range(COUNT)
    ]
    refused = [number for number, (_, _, _, why) in enumerate(entries) if why]
    assert refused == list(range(5, COUNT, 5))


@pytest.mark.parametrize("start", [0, 1, 2, COUNT // 4, COUNT // 2, COUNT - 2, COUNT - 1, COUNT, COUNT + 1])
def test_it_is_read_from_any_place(accounts, entries, start):
    assert list(accounts.journal.read("p", start)) == entries[start:]


def test_every_place_is_found(accounts, entries):
    for start in range(0, COUNT, 37):
        assert next(accounts.journal.read("p", start)) == entries[start]


@pytest.mark.parametrize("number", [1, COUNT // 3, COUNT - 1])
def test_a_slot_is_found_wherever_it_is(accounts, number):
    number += number % 5 == 0
    found = [arguments["slot"] for _, _, arguments, _ in accounts.journal.about("p", str(number))]
    assert str(number) in found


def test_a_slot_that_is_everywhere(accounts):
    found = [entry for entry in accounts.journal.about("p", "again") if entry[2]["slot"] == "again"]
    assert len(found) == len(range(0, COUNT, 5))


def test_what_comes_later_is_not_read():
    journal = CommandJournal()
    journal.add("p", 1, [("alloc", {"slot": "a"})], b'[["alloc",{"slot":"a"}]]', ())
    read, about = journal.read("p"), journal.about("p", "a")
    journal.add("p", 2, [("claim", {"slot": "a"})], b'[["claim",{"slot":"a"}]]', ())
    assert [kind for _, kind, _, _ in read] == ["alloc"]
    assert [kind for _, kind, _, _ in about] == ["alloc"]
    journal.forget("p")
    assert list(journal.read("p")) == list(journal.about("p", "a")) == []
