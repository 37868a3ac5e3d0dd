"""What the pages show, whom they are shown to, and what their forms do."""

import base64
import re
from html import unescape
from urllib.parse import quote

import pytest

from cpdaemon import TcpEndpoint
from cpsim.protocol.exchange import Exchange
from cpsim.protocol.slots import State
from cpsim.server.dashboard.finding import ITEMS_SCANNED, ROWS, Finder
from cpsim.server.dashboard.pages import HISTORY
from cpsim.testing import ManualClock

from .conftest import EVIL, POSTED, shown

PAGES = [
    "",
    "slots",
    "slots?state=claimed&machine=worker-3",
    "machines",
    "users",
    f"slot?id={quote(EVIL)}",
    f"machine?id={quote(EVIL)}",
    f"user?id={quote(EVIL)}",
    f"search?q={quote(EVIL[:4])}",
    f"search?q={quote('<b>nobody')}",
    f"slot?id={quote('<b>nobody')}",
    f"slots?project={quote('<b>nobody')}",
    f"slots?state={quote('<b>nobody')}",
]


def basic(password, name="anybody"):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_the_overview_has_the_totals(visitor):
    text = shown(visitor.text())
    totals = visitor.fake.inspector.totals()
    physics = totals.projects["physics"]
    for figure, what in (
        (physics.credits, "credits granted"),
        (0, "pending in daemons"),
        (physics.outstanding, "slots outstanding"),
        (physics.claimed, "slots claimed"),
        (totals.refused, "commands refused"),
    ):
        assert f"{figure:,} {what}" in text
    row = (
        physics.outstanding,
        physics.claimed,
        physics.discarded,
        0,
        physics.allocated,
        physics.refused,
        physics.credits,
    )
    assert f"physics {' '.join(f'{figure:,}' for figure in row)} chemistry 0 0 0 0 0 0 0" in text


def test_the_latest_refusals_are_there_when_the_journal_is_full(start):
    visitor = start(journal_limit=2)
    visitor.fake.accounts.apply("physics", [("claim", {"slot": f"s{number}", "machine": "m"}) for number in range(30)])
    refusals = visitor.text().partition("Latest refusals")[2].partition("</table>")[0]
    assert re.findall(r">s(\d+)<", refusals) == [str(number) for number in range(29, 19, -1)]
    assert "slot 's29' was never allocated" in shown(refusals)
    visitor.fake.inspector.reset("physics")
    assert "s29" not in visitor.text()


def test_faults_are_listed_with_what_they_did(visitor):
    fake = visitor.fake
    fake.faults.add("daemon.close:kind=alloc,slot=x*", "server.status=503:nth=9")
    fake.faults.intercept(Exchange("daemon", [("alloc", "x-1")]))
    text = shown(visitor.text())
    assert "daemon.close:kind=alloc,slot=x* fired 1 of 1 Remove" in text
    assert "server.status=503:nth=9 fired 0 of 0 Remove" in text
    assert re.search(r"\d\.\d{3} s daemon\.close alloc x-1", text)


def test_a_slot_has_its_terms_and_its_history(visitor):
    text = shown(visitor.text("slot", project="physics", id="job-3"))
    assert "State claimed Terms what the claim asks for, at least 1, at most 20 Granted 3 credits" in text
    assert "Machine worker-3" in text
    assert "job/events = 3" in text
    order = [text.index(part) for part in ("alloc min = 1 max = 20 accepted", "counters job/events", "claim machine =")]
    assert order == sorted(order)
    text = shown(visitor.text("slot", project="physics", id="job-1"))
    assert f"State discarded , reason: {EVIL}" in text
    assert "refused slot 'job-1' is settled: it was discarded" in text


def test_a_slot_has_a_waterfall_of_what_was_applied_when(start):
    clock = ManualClock()
    visitor = start(clock=clock)
    slot = {"slot": "a"}
    for kind, more, wait_s in (("alloc", {}, 1), ("counters", {"n": 1}, 2), ("claim", {"machine": "m"}, 1)):
        visitor.fake.accounts.apply("physics", [(kind, slot | more)])
        clock.advance(wait_s)
    visitor.fake.accounts.apply("physics", [("discard", slot)])
    text = visitor.text("slot", project="physics", id="a")
    rows = re.findall(
        r'<span class="said">(\w+)</span>.*?class="(\w+)" x="([\d.]+)" width="([\d.]+)".*?when">(.*?)<', text
    )
    assert rows == [
        ("alloc", "accepted", "0.0", "6.0", "+0.000 s"),
        ("counters", "accepted", "0.0", "250.0", "+1.000 s, 1.000 s after the one before"),
        ("claim", "accepted", "250.0", "500.0", "+3.000 s, 2.000 s after the one before"),
        ("discard", "refused", "750.0", "250.0", "+4.000 s, 1.000 s after the one before"),
    ]
    assert "2001-09-09 01:46:43.000+00:00" in text


def test_a_slot_that_was_never_allocated_has_a_history_of_refusals(visitor):
    visitor.fake.accounts.apply("physics", [("claim", {"slot": "ghost", "machine": "m"})])
    text = shown(visitor.text("slot", project="physics", id="ghost"))
    assert "Never allocated: its commands were refused." in text
    assert "slot 'ghost' was never allocated" in text


def test_of_a_long_history_the_last_is_shown(visitor):
    calls = [("counters", {"slot": "job-2", "n": number}) for number in range(HISTORY + 5)]
    visitor.fake.accounts.apply("physics", calls)
    text = visitor.text("slot", project="physics", id="job-2")
    assert text.count('<td class="time">') == HISTORY
    assert text.count("<rect ") == HISTORY
    assert f"The last {HISTORY} commands; 7 earlier ones are not shown." in shown(text)


def test_a_full_journal_leaves_the_slot(start):
    visitor = start(journal_limit=1)
    visitor.fake.accounts.apply("physics", [("alloc", {"slot": "a", "credits": 1}), ("meta", {"slot": "a", "x": "y"})])
    text = shown(visitor.text("slot", project="physics", id="a"))
    assert "exactly 1 credits" in text
    assert "the journal of project 'physics' is full" in text


def test_a_machine_and_a_user(visitor):
    machine = visitor.fake.inspector.machines("physics").items[0]
    text = visitor.text("machine", project="physics", id=machine.machine)
    assert f"User {machine.user} Credits {machine.credits:,} Waiting for a user 0" in shown(text)
    claimed = visitor.fake.inspector.slots("physics", machine=machine.machine).items
    assert re.findall(r"id=(job-\d+)", text) == [slot.slot for slot in reversed(claimed)]
    user = next(user for user in visitor.fake.inspector.users("physics").items if user.user == machine.user)
    text = visitor.text("user", project="physics", id=user.user)
    assert f"Credits {user.credits:,}" in shown(text)
    linked = [link.machine for link in visitor.fake.inspector.links().items if link.user == user.user]
    assert re.findall(r"id=(worker-\d+)", text) == linked[::-1]


def walk(visitor, page):
    """All ids of a list, page by page, and how many a page has."""
    found, sizes = [], []
    while page is not None:
        status, text = visitor.request("GET", page)
        assert status == 200
        ids = [unescape(each) for each in re.findall(r'<th scope="row" class="id"><a [^>]*>([^<]*)', text)]
        found += ids
        sizes.append(len(ids))
        older = re.search(r'<a rel="next" href="([^"]*)"', text)
        page = unescape(older[1]) if older else None
    return found, sizes


def test_lists_are_paged_from_the_newest_and_whole(visitor):
    found, sizes = walk(visitor, "/slots?project=physics")
    assert found == [slot.slot for slot in reversed(visitor.fake.inspector.slots("physics").items)]
    assert sizes == [ROWS, ROWS, ROWS, ROWS, 1]
    found, _ = walk(visitor, "/machines?project=physics&order=newest")
    assert found == [each.machine for each in reversed(visitor.fake.inspector.machines("physics").items)]
    found, _ = walk(visitor, "/slots?project=physics&state=discarded")
    assert found == [
        slot.slot for slot in reversed(visitor.fake.inspector.slots("physics", state=State.DISCARDED).items)
    ]


@pytest.mark.parametrize(("page", "what"), [("machines", "machine"), ("users", "user")])
def test_those_with_most_credits_come_first_and_all_come(start, page, what):
    visitor = start()
    number = 2 * ROWS + 3
    visitor.fake.accounts.link([(f"m-{each}", f"u-{each}") for each in range(number)])
    for each in range(number):
        slot = {"slot": f"s-{each}"}
        claim = {**slot, "machine": f"m-{each}", "credits": each * 37 % number // 2}
        visitor.fake.accounts.apply("physics", [("alloc", slot), ("claim", claim)])
    items = getattr(visitor.fake.inspector, page)("physics").items
    expected = sorted(items, key=lambda each: (-each.credits, getattr(each, what)))
    found, sizes = walk(visitor, f"/{page}?project=physics")
    assert (found, sizes) == ([getattr(each, what) for each in expected], [ROWS, ROWS, 3])
    assert f"{number} {page} with" in visitor.text(page)
    assert "most credits first" in visitor.text(page)


def test_a_ranking_and_a_search_read_no_more_than_they_may(visitor):
    finder = Finder(visitor.fake.accounts, searched=90, ranked=4)
    newest = [each.machine for each in visitor.fake.inspector.machines("physics").items[-4:]]
    part = finder.machines("physics", None, ranked=True)
    assert {each.machine for each in part.rows} == set(newest)
    assert part.next is None
    with visitor.fake.accounts.reading() as ledger:
        slots = ledger.projects["physics"].slots = Counted(ledger.projects["physics"].slots)
    assert finder.search("JOB-19").slots == [("physics", f"job-{each}") for each in range(199, 189, -1)]
    assert slots.looked <= 90
    hits = finder.search("job-1")
    assert ("physics", "job-1") in hits.slots
    assert ("physics", "job-10") not in hits.slots
    assert (hits.searched, hits.total) == (90, 201 + 11 + 4)


def test_new_slots_do_not_shift_the_page_after(visitor):
    text = visitor.text("slots", project="physics")
    visitor.fake.accounts.apply("physics", [("alloc", {"slot": f"new-{number}"}) for number in range(7)])
    before = int(re.search(r"before=(\d+)", text)[1])
    following = visitor.text("slots", project="physics", before=before)
    last = re.findall(r"id=(job-\d+)", text)[-1]
    assert re.findall(r"id=(job-\d+)", following)[0] == f"job-{int(last[4:]) - 1}"


def test_a_rare_slot_is_looked_for_on_several_pages(start):
    visitor = start()
    visitor.fake.accounts.apply("physics", [("alloc", {"slot": f"s{n}"}) for n in range(ITEMS_SCANNED * 2 + 10)])
    visitor.fake.accounts.apply("physics", [("claim", {"slot": "s3", "machine": "m"})])
    found, sizes = walk(visitor, "/slots?project=physics&state=claimed")
    assert (found, sizes) == (["s3"], [0, 0, 1])


def test_search(visitor):
    status, _ = visitor.get("search", q="job-17")
    assert status == 200
    status, _ = visitor.get("search", q=" job-199 ")
    assert (status, visitor.headers["Location"]) == (303, "/slot?project=physics&id=job-199")
    text = visitor.text("search", q="job-17")
    assert re.findall(r"id=(job-\d+)", text) == ["job-17", *(f"job-{number}" for number in range(179, 169, -1))]
    text = visitor.text("search", q="user-")
    assert set(re.findall(r"/user\?project=physics&amp;id=(user-\d)", text)) == {"user-0", "user-1", "user-2"}
    assert re.findall(r"id=(job-\d+)", visitor.text("search", q="OB-18"))[:2] == ["job-189", "job-188"]
    assert re.findall(r"id=(worker-\d+)", visitor.text("search", q="er-7")) == ["worker-7"]
    assert "Not found." in visitor.text("search", q="nobody")


@pytest.mark.parametrize("page", PAGES)
def test_ids_and_reasons_are_text_and_headers_are_strict(visitor, page):
    _, text = visitor.request("GET", f"/{page}")
    assert "<img" not in text
    assert "<b>nobody" not in text
    assert not re.search(r"\sstyle=|<style|\son\w+=[\"']|javascript:", text.replace(EVIL, ""))
    policy = visitor.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert visitor.headers["X-Content-Type-Options"] == "nosniff"
    assert visitor.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/slot", 400),
        ("/slot?id=nobody", 404),
        ("/machine?id=nobody", 404),
        ("/user?id=nobody", 404),
        ("/slots?project=nobody", 404),
        ("/slots?state=lost", 400),
        ("/machines?order=size", 400),
        ("/users?before=999999999999", 200),
        ("/slots?before=-1", 400),
        ("/slots?before=" + "9" * 400, 400),
        ("/slots?before=999999999999", 200),
        ("/slots?" + "&".join(f"a{n}=1" for n in range(60)), 400),
        ("/do/nothing", 404),
        ("/do/reset", 405),
        ("/?done=%3Cb%3E", 200),
    ],
)
def test_what_cannot_be_shown(visitor, path, status):
    answered, text = visitor.request("GET", path)
    assert answered == status
    assert text.startswith("<!doctype html>")
    assert "<b>" not in text.partition("<main")[2].replace('<b class="time">', "").replace("<b>", "", 6)


def test_ids_of_any_length_are_shown_in_part(visitor):
    visitor.fake.accounts.apply("physics", [("alloc", {"slot": "long" * 100_000}), ("alloc", {"slot": "€" * 1_500})])
    assert len(visitor.text("slots", project="physics")) < 30_000


def test_forms_change_what_they_say(visitor):
    fake = visitor.fake
    token = visitor.token

    def do(what, **fields):
        status, text = visitor.send(what, token=token, **fields)
        assert status == 303, text
        return shown(visitor.request("GET", visitor.headers["Location"])[1])

    assert "The clock is frozen." in do("clock/freeze")
    now_us = fake.accounts.clock.now_us()
    do("clock/advance", seconds="90")
    assert fake.accounts.clock.now_us() == now_us + 90_000_000
    assert "running at 60 times real time" in do("clock/run", rate="60")
    do("faults/add", faults="daemon.hang:kind=claim\r\n\r\n server.status=503:nth=2 ")
    do("faults/add", faults="daemon.late=0.1")
    assert [str(fault) for fault in fake.faults] == [
        "daemon.hang:kind=claim",
        "server.status=503:nth=2",
        "daemon.late=0.1",
    ]
    do("faults/remove", faults="daemon.hang:kind=claim")
    assert len(list(fake.faults)) == 2
    parts = {"kind": "claim", "slot": "job-*", "project": "physics", "nth": "3", "probability": "0.5", "until": "60"}
    do("faults/add", action="daemon.pieces", value="0.2", count="", **parts)
    do("faults/add", action="server.status", value="503")
    do("faults/add", action="daemon.refuse", value="")
    assert [str(fault) for fault in fake.faults][2:] == [
        "daemon.pieces=0.2:kind=claim,slot=job-*,project=physics,nth=3,probability=0.5,until=60",
        "server.status=503",
        "daemon.refuse",
    ]
    do("faults")
    assert list(fake.faults) == []
    do("reset", project="chemistry")
    assert fake.inspector.totals().projects["physics"].allocated
    assert "The reset is done." in do("reset", project="")
    assert not any(totals.allocated for totals in fake.inspector.totals().projects.values())


@pytest.mark.parametrize(
    ("what", "fields", "status", "said"),
    [
        ("clock/advance", {"seconds": "soon"}, 400, "Expected `float`, got `str` - at `$.seconds`"),
        ("clock/advance", {"seconds": "-1"}, 400, "Expected `float` >= 0.0 - at `$.seconds`"),
        ("clock/advance", {}, 400, "missing required field `seconds`"),
        ("clock/freeze", {"other": "1"}, 400, "unknown field `other`"),
        ("faults/add", {"faults": "daemon.hangs"}, 409, "did you mean"),
        ("faults/add", {"action": "server.status"}, 409, "status needs a value"),
        ("faults/add", {"action": "daemon.hang", "slot": "a,b"}, 409, "no key 'b'"),
        ("faults/remove", {"faults": "daemon.hang"}, 409, "is not set"),
        ("reset", {"project": "nobody"}, 404, "there is no project 'nobody'"),
        ("faults/add", {"faults": "x" * 70_000}, 413, "the form is over"),
    ],
)
def test_a_form_that_does_not_fit_says_so(visitor, what, fields, status, said):
    answered, text = visitor.send(what, token=visitor.token, **fields)
    assert answered == status
    assert said in shown(text)
    assert 'role="alert"' in text


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, ""),
        ({}, "another"),
        ({}, "é"),
        ({"Origin": "http://evil.example"}, None),
        ({"Origin": "null"}, None),
        ({"Host": "evil.example"}, None),
    ],
)
def test_forms_of_other_sites_change_nothing(visitor, headers, token):
    token = visitor.token if token is None else token
    before = visitor.fake.inspector.totals()
    status, _ = visitor.send("reset", headers, token=token)
    assert status == 403
    assert visitor.fake.inspector.totals() == before
    assert visitor.send("reset", {"Origin": visitor.address}, token=visitor.token)[0] == 303


def test_another_server_has_another_form_token(start):
    assert start().token != start().token


def test_where_a_token_is_needed_the_browser_asks_for_it(start):
    visitor = start(http=TcpEndpoint("0.0.0.0", 0), control_token="t0kén")
    for shown_, status in (({}, 401), (basic("x"), 401), (basic(""), 401), ({"Authorization": "Basic ?"}, 401)):
        assert visitor.get(headers=shown_)[0] == status
        assert visitor.headers["WWW-Authenticate"].startswith('Basic realm="cpsim"')
    for path in ("dashboard.css", "slots"):
        assert visitor.get(path)[0] == 401
    status, text = visitor.get(headers=basic("t0kén") | {"Host": "site.example"})
    assert status == 200
    token = re.search(r'name="token" value="([^"]+)"', text)[1]
    for origin, status in (("http://evil.example", 403), (visitor.address, 303)):
        headers = basic("t0kén") | {"Origin": origin}
        assert visitor.send("clock/freeze", headers, token=token)[0] == status


def test_what_a_browser_was_told_is_no_way_into_the_control_api(start):
    visitor = start(control_token="t0ken")
    assert visitor.request("POST", "/__cpsim/reset", b"", basic("t0ken") | POSTED)[0] == 401


def test_beyond_loopback_and_without_a_token_there_is_none(start):
    visitor = start(http=TcpEndpoint("0.0.0.0", 0))
    for path in ("", "slots", "dashboard.css"):
        assert visitor.get(path)[0] == 404


def test_commands_over_http_meet_no_page(visitor):
    assert visitor.request("GET", "/api/heartbeat") == (200, "OK")
    assert visitor.request("POST", "/slots", b"")[0] == 405


class Counted(dict):
    """Slots that count how many of them are looked at, one after the other."""

    looked = 0

    def count(self, found):
        for each in found:
            self.looked += 1
            yield each

    def __iter__(self):
        return self.count(super().__iter__())

    def __reversed__(self):
        return self.count(super().__reversed__())

    def items(self):
        return CountedItems(self, super().items())

    def values(self):
        return CountedItems(self, super().values())


class CountedItems:
    def __init__(self, counted, view):
        self.counted, self.view = counted, view

    def __iter__(self):
        return self.counted.count(iter(self.view))

    def __reversed__(self):
        return self.counted.count(reversed(self.view))


@pytest.mark.parametrize(
    ("page", "query", "most"),
    [
        ("", {}, 0),
        ("slots", {"project": "physics"}, ROWS + 1),
        ("slots", {"project": "physics", "state": "claimed"}, ITEMS_SCANNED + 1),
        ("slot", {"project": "physics", "id": "slot-500"}, 0),
    ],
)
def test_many_slots_cost_no_more_than_a_page_shows(start, page, query, most):
    visitor = start(journal_limit=0)
    calls = [("alloc", {"slot": f"slot-{number}"}) for number in range(3 * ITEMS_SCANNED)]
    visitor.fake.accounts.apply("physics", calls)
    with visitor.fake.accounts.reading() as ledger:
        slots = ledger.projects["physics"].slots = Counted(ledger.projects["physics"].slots)
    text = visitor.text(page, **query)
    assert slots.looked <= most
    assert len(text) < 60_000


@pytest.mark.parametrize("slot", ["7", "-7", "007", 'ü"\\\u2028/,=', "\x00", "<&>"])
def test_the_history_of_a_slot_is_found_by_any_id(start, slot):
    visitor = start()
    others = [("alloc", {"slot": f"{slot}x"}), ("alloc", {"slot": "other"}), ("meta", {"slot": "other", "of": slot})]
    visitor.fake.accounts.apply("physics", [*others, ("alloc", {"slot": slot})])
    visitor.fake.accounts.apply("physics", [("claim", {"slot": slot, "machine": "m"})])
    history = visitor.fake.inspector.slot("physics", slot).history
    assert [each.kind for each in history] == ["alloc", "claim"]
    assert visitor.text("slot", project="physics", id=slot).count('<th scope="row">') == 2


def test_a_slot_may_have_come_as_a_number(start):
    visitor = start()
    visitor.fake.accounts.apply("physics", [("alloc", {"slot": 7}), ("claim", {"slot": "7", "machine": "m"})])
    assert [each.kind for each in visitor.fake.inspector.slot("physics", "7").history] == ["alloc", "claim"]


def test_a_full_record_of_faults_is_said_to_be_full(start, monkeypatch):
    monkeypatch.setattr("cpsim.faults.plan.MAX_FIRINGS", 2)
    visitor = start(faults=["daemon.close"])
    visitor.fake.accounts.apply("physics", [("alloc", {"slot": "a"})])
    for _ in range(3):
        visitor.fake.faults.intercept(Exchange("daemon", [("alloc", "a")]))
    status, text = visitor.request("GET", "/__cpsim/firings")
    assert status == 507
    assert "the record of faults is full" in text
    assert "the record of faults is full" in visitor.text("slot", project="physics", id="a")
    assert visitor.text().count("daemon.close") > 1
