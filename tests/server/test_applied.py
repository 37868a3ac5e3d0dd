"""The feed of the commands that accounts took, and slots by their ids."""

import json

import pytest

from cpsim.server.applied import AppliedFeed
from cpsim.server.control.inspection import Inspector
from cpsim.server.service import AccountServer


def calls(*slots):
    return [("alloc", {"slot": slot}) for slot in slots]


@pytest.fixture
def inspector():
    accounts = AccountServer({"p": "s", "q": "s"})
    accounts.apply("p", calls("before"))
    found = Inspector(accounts)
    found.apply = accounts.apply
    return found


def test_commands_are_followed_from_the_first_request_on(inspector):
    first = inspector.applied("p")
    assert (first.slots, first.missed) == ([], False)
    inspector.apply("p", calls("a", "b", "a"))  # the third is refused
    inspector.apply("q", calls("other"))
    inspector.apply("p", calls(7))
    page = inspector.applied("p", first.next, 3)
    assert (page.slots, page.missed) == (["a", "b", "a"], False)
    rest = inspector.applied("p", page.next)
    assert rest.slots == ["7"]
    assert inspector.applied("p", rest.next).slots == []
    assert inspector.applied("p", first.next).slots == ["a", "b", "a", "7"]  # whoever follows, and how often


def test_a_batch_that_is_sent_again_is_not_applied_again(inspector):
    cursor = inspector.applied("p").next
    for _ in range(2):
        inspector.apply("p", calls("a"), "batch")
    assert inspector.applied("p", cursor).slots == ["a"]


def test_who_falls_behind_is_told_so():
    feed = AppliedFeed(limit=4)
    _, begin, _ = feed.read("p", None, 10)
    feed.add("p", calls("a", "b", "c"))
    feed.read("p", begin, 1)
    feed.add("p", calls("d", "e"))
    assert feed.read("p", begin, 10) == ([], begin + 5, True)
    assert feed.read("p", begin + 1, 10) == (["b", "c", "d", "e"], begin + 5, False)


def test_what_nobody_asks_for_is_not_kept():
    feed = AppliedFeed(limit=4)
    feed.add("p", calls("a"))
    _, begin, _ = feed.read("p", None, 10)
    for _ in range(3):
        feed.add("p", calls("b", "c"))  # more than are kept, and nobody has asked
    _, following, missed = feed.read("p", begin, 10)
    assert missed
    assert following > begin + 4  # no cursor of before means another command now
    feed.add("p", calls("d"))
    assert feed.read("p", following, 10) == (["d"], following + 1, False)


@pytest.mark.parametrize("project", ["p", None])
def test_after_a_reset_an_old_cursor_has_missed_some(inspector, project):
    cursor = inspector.applied("p").next
    inspector.apply("p", calls("a"))
    inspector.reset(project)
    inspector.apply("p", calls("b"))
    page = inspector.applied("p", cursor)
    assert (page.slots, page.missed) == ([], True)


def test_over_http(site):
    site.fake.accounts.apply("Physics", calls("a", "b"))

    def ask(name, method="GET", body=b""):
        status, reply = site.request(method, f"/__cpsim/{name}", body)
        return status, json.loads(reply)

    status, page = ask("applied?project=Physics")
    assert (status, page["slots"]) == (200, [])
    site.fake.accounts.apply("Physics", calls("c"))
    assert ask(f"applied?project=Physics&cursor={page['next']}")[1]["slots"] == ["c"]
    assert ask("applied?project=none")[0] == 404
    status, slots = ask("slots?project=Physics", "POST", b'["c","none","a","a"]')
    assert (status, [slot["slot"] for slot in slots]) == (200, ["c", "a"])
    assert ask("slots?project=Physics", "POST", json.dumps(["x"] * 10_001).encode())[0] == 400
