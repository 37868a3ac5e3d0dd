"""The control API: what it shows of the accounts, what it changes, and whom it lets in."""

import http.client
import io
import json
import math
import socket
from pathlib import Path
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet
import pytest

from cpdaemon import Client, TcpEndpoint
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake, Site
from cpsim.net.http.messages import Request
from cpsim.quirks.policies.ledger import LARGEST_INTEGER
from cpsim.server.clock import LATEST_US, ServerClock
from cpsim.server.control.access import Access
from cpsim.server.control.api import Control
from cpsim.server.control.inspection import Inspector
from cpsim.server.http import Api
from cpsim.server.journal import MALFORMED_KEPT, JournalFull
from cpsim.server.ledger import LAST_US
from cpsim.server.service import AccountServer

HERE = {b"host": b"localhost"}
COUNTERS = pa.map_(pa.string(), pa.int64())
SLOT_COLUMNS = {
    "project": pa.string(),
    "slot": pa.string(),
    "state": pa.string(),
    "machine": pa.string(),
    "user": pa.string(),
    "reason": pa.string(),
    "credits": pa.int64(),
    "min": pa.int64(),
    "max": pa.int64(),
    "granted": pa.int64(),
    "allocated_us": pa.int64(),
    "expires_us": pa.int64(),
    "settled_us": pa.int64(),
    "counters": COUNTERS,
    "meta": pa.map_(pa.string(), pa.string()),
}
ACCOUNT_COLUMNS = {
    "project": pa.string(),
    "kind": pa.string(),
    "id": pa.string(),
    "user": pa.string(),
    "credits": pa.int64(),
    "counters": COUNTERS,
    "waiting_credits": pa.int64(),
    "waiting_counters": COUNTERS,
}
CALLS = [
    ("alloc", {"slot": "a", "min": 1, "max": 3}),
    ("alloc", {"slot": "b", "credits": 5}),
    ("alloc", {"slot": "c", "expire": LARGEST_INTEGER}),
    ("counters", {"slot": "a", "job/events": 7}),
    ("meta", {"slot": "a", "site": "Zürich"}),
    ("claim", {"slot": "a", "machine": "m", "credits": 9}),
    ("claim", {"slot": "b", "machine": "n"}),
    ("alloc", {"slot": "d"}),
    ("discard", {"slot": "d", "reason": "lost"}),
    ("discard", {"slot": "d"}),
]


@pytest.fixture
def filled(site):
    site.fake.accounts.apply("Physics", CALLS)
    return site


def ask(site, name, method="GET", body=b"", **headers):
    """Make a request that must be answered 200; returns the answer."""
    status, answer = site.request(method, f"/__cpsim/{name}", body, headers)
    assert status == 200, answer
    return json.loads(answer)


def refuse(site, name, method="GET", body=b"", **headers):
    """Make a request that must be refused; returns the status and the message."""
    status, answer = site.request(method, f"/__cpsim/{name}", body, headers)
    error = json.loads(answer)
    assert error.pop("result") == "error"
    return status, error["message"]


def table(site, name, query=""):
    status, body = site.request("GET", f"/__cpsim/{name}.parquet{query}")
    assert status == 200
    assert site.headers["Content-Type"] == "application/vnd.apache.parquet"
    return pyarrow.parquet.read_table(io.BytesIO(body))


def ids(page, name="slot"):
    return [item[name] for item in page["items"]]


# What there is


TOTALS = {
    "allocated": 4,
    "outstanding": 1,
    "claimed": 2,
    "discarded": 1,
    "expired": 0,
    "refused": 1,
    "credits": 8,
    "counters": {"job/events": 7},
    "reasons": {"lost": 1},
}
NOTHING = {name: type(figure)() for name, figure in TOTALS.items()}


def test_totals(filled):
    assert ask(filled, "totals") == {"pending": 0, "refused": 1, "projects": {"Physics": TOTALS, "q": NOTHING}}


def test_totals_of_nothing(site):
    assert ask(site, "totals") == {"pending": 0, "refused": 0, "projects": {"Physics": NOTHING, "q": NOTHING}}


def test_projects(site):
    assert ask(site, "projects") == ["Physics", "q"]


def test_balance(filled):
    assert ask(filled, "balance") == {"violations": [], "differences": []}
    with filled.fake.accounts.reading() as ledger:
        ledger.projects["Physics"].granted.credits += 1
    violations = ask(filled, "balance")["violations"]
    assert len(violations) == 3
    assert all("'Physics'" in law for law in violations)


def test_slots(filled):
    page = ask(filled, "slots?project=Physics")
    assert (ids(page), page["next"]) == (["a", "b", "c", "d"], None)
    a = page["items"][0]
    assert (a["type"], a["state"], a["machine"], a["min"], a["granted"]) == ("slot", "claimed", "m", 1, 3)
    assert (a["counters"], a["meta"], a["credits"]) == ({"job/events": 7}, {"site": "Zürich"}, None)
    assert ask(filled, "slots?project=q") == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("query", "found"),
    [("state=claimed", "ab"), ("state=expired", ""), ("machine=n", "b"), ("state=discarded&machine=m", "")],
)
def test_slots_are_filtered(filled, query, found):
    assert ids(ask(filled, f"slots?project=Physics&{query}")) == list(found)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_pages_hold_everything_once(filled, limit):
    found, cursor = [], 0
    while cursor is not None:
        page = ask(filled, f"slots?project=Physics&state=claimed&limit={limit}&cursor={cursor}")
        assert len(page["items"]) <= limit
        found += ids(page)
        cursor = page["next"]
    assert found == ["a", "b"]


def test_a_slot_and_its_history(filled):
    filled.fake.accounts.apply("Physics", [("claim", {"slot": "a", "machine": "n"})])
    answer = ask(filled, "slot?project=Physics&slot=a")
    assert answer["slot"]["machine"] == "m"
    assert [(command["kind"], command["refusal"]) for command in answer["history"]] == [
        ("alloc", None),
        ("counters", None),
        ("meta", None),
        ("claim", None),
        ("claim", "slot 'a' is settled: it was claimed"),
    ]
    assert answer["history"][0]["arguments"] == {"slot": "a", "min": 1, "max": 3}
    assert answer["history"][0]["at_us"] == answer["slot"]["allocated_us"]


def test_a_slot_that_was_only_refused(site):
    site.post("claim", {"slot": 5, "machine": "m"})
    answer = ask(site, "slot?project=Physics&slot=5")
    assert answer["slot"] is None
    assert answer["history"][0]["refusal"] == "slot '5' was never allocated"
    assert refuse(site, "slot?project=Physics&slot=6")[0] == 404


def test_the_journal_and_the_refusals(filled):
    filled.post("bulk", {"claim": [{"slot": "x", "machine": "m"}], "alloc": [{"slot": "e"}]})
    journal = ask(filled, "journal?project=Physics")["items"]
    assert [(item["kind"], item["arguments"]) for item in journal[: len(CALLS)]] == CALLS
    assert [(item["kind"], item["arguments"]["slot"]) for item in journal[len(CALLS) :]] == [
        ("alloc", "e"),
        ("claim", "x"),
    ]
    refusals = ask(filled, "refusals?project=Physics")["items"]
    assert refusals == [item for item in journal if item["refusal"] is not None]
    assert [item["arguments"]["slot"] for item in refusals] == ["d", "x"]
    page = ask(filled, "refusals?project=Physics&limit=1")
    assert ask(filled, f"refusals?project=Physics&cursor={page['next']}")["items"] == refusals[1:]
    for start in range(len(journal) + 2):
        assert ask(filled, f"journal?project=Physics&cursor={start}")["items"] == journal[start:]
    assert ask(filled, "journal?project=q")["items"] == []


def test_frames_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = [b"nonsense\n", b"alloc\n", b"claim,slot=\xff\n"]
    with Fake({"p": "s", "q": "t"}, unix=Path("cp.sock")) as fake:
        for frame in frames:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect("cp.sock")
                sock.sendall(frame)
                assert sock.recv(2) == b"ER"
        malformed = fake.inspector.malformed("p")
        assert malformed.count == 3
        assert [view.frame for view in malformed.first] == [frame.decode(errors="replace") for frame in frames]
        assert fake.inspector.malformed("q").count == 0
        assert fake.inspector.journal("p").items == []
        fake.accounts.reset("p")
        assert fake.inspector.malformed("p").count == 0


def test_only_the_first_malformed_frames_are_kept():
    accounts = AccountServer({"p": "s"})
    for number in range(MALFORMED_KEPT + 5):
        accounts.note_malformed("p", b"%d" % number)
    malformed = Inspector(accounts).malformed("p")
    assert (malformed.count, len(malformed.first), malformed.first[-1].frame) == (1005, 1000, "999")


def test_a_full_journal_says_so_until_it_is_reset(caplog):
    with Fake({"p": "s", "q": "t"}, journal_limit=2) as fake:
        fake.accounts.apply("q", [("alloc", {"slot": "a"})])
        fake.accounts.apply("p", [("alloc", {"slot": "a"})])
        fake.accounts.apply("p", [("alloc", {"slot": "b"})])
        assert len(fake.inspector.journal("p").items) == 2
        fake.accounts.apply("p", [("alloc", {"slot": "c"})])
        control = Control(fake.inspector, Access("127.0.0.1"))
        for query in ("journal?project=p", "refusals?project=p", "slot?project=p&slot=a"):
            name, _, arguments = query.partition("?")
            request = Request("GET", f"/__cpsim/{name}", arguments.encode(), HERE, b"")
            response = control.respond(request)
            assert response.status == 507
            assert b"no room for all 3 commands received; set a journal_limit above 2" in response.body
        (record,) = caplog.records
        assert "the journal of project 'p' is full with 2 commands, and can no longer be read" in record.getMessage()
        assert len(fake.inspector.journal("q").items) == 1
        assert len(fake.inspector.slots("p").items) == 3
        fake.inspector.reset("p")
        assert fake.inspector.journal("p").items == []


def test_a_batch_that_fills_the_journal_is_not_kept_in_part():
    accounts = AccountServer({"p": "s"}, journal_limit=len(CALLS) - 1)
    accounts.apply("p", CALLS)
    with pytest.raises(JournalFull):
        accounts.journal.read("p")


@pytest.mark.parametrize(("name", "columns"), [("slots", SLOT_COLUMNS), ("accounts", ACCOUNT_COLUMNS)])
def test_columns_are_the_same_with_and_without_rows(site, name, columns):
    for calls in ([], CALLS):
        site.fake.accounts.apply("Physics", calls)
        schema = table(site, name).schema
        assert dict(zip(schema.names, schema.types, strict=True)) == columns


def test_slots_as_parquet(filled):
    rows = {row["slot"]: row for row in table(filled, "slots").to_pylist()}
    assert list(rows) == ["a", "b", "c", "d"]
    a = rows["a"]
    assert (a["project"], a["state"], a["machine"], a["granted"]) == ("Physics", "claimed", "m", 3)
    assert (a["credits"], a["min"], a["max"], a["reason"]) == (None, 1, 3, None)
    assert (a["counters"], a["meta"]) == ([("job/events", 7)], [("site", "Zürich")])
    assert a["expires_us"] - a["allocated_us"] == 1440 * 60_000_000
    assert a["settled_us"] == a["allocated_us"]
    assert (rows["c"]["settled_us"], rows["c"]["expires_us"], rows["c"]["counters"]) == (None, LAST_US, [])
    assert (rows["d"]["state"], rows["d"]["reason"], rows["d"]["granted"]) == ("discarded", "lost", None)


@pytest.mark.parametrize("limit", [1, 3, 5, 6])
def test_pages_of_parquet_hold_every_slot_once(filled, limit):
    filled.fake.accounts.apply("Biology", [("alloc", {"slot": slot}) for slot in "ab"])
    whole = table(filled, "slots")
    assert whole.schema.metadata is None
    found, query = [], {}
    while query is not None:
        page = table(filled, "slots", f"?{urlencode({**query, 'limit': limit})}")
        following = (page.schema.metadata or {}).get(b"cpsim.next")
        assert len(page) == limit if following else len(page) < limit
        found.append(page.replace_schema_metadata())
        query = following and json.loads(following)
    assert pa.concat_tables(found) == whole
    assert len(found) == len(whole) // limit + 1


def test_pages_of_parquet_that_there_are_not(filled):
    assert refuse(filled, "slots.parquet?project=Chemistry") == (404, "there are no accounts of a project 'Chemistry'")
    assert refuse(filled, "slots.parquet?limit=10001")[0] == 400
    assert len(table(filled, "slots", "?project=Physics&cursor=9")) == 0


@pytest.mark.parametrize(
    ("slots", "counters", "told"),
    [
        (1, {"n": LARGEST_INTEGER}, {"slots": "slot '0': counters n", "accounts": "machine 'm': counters n"}),
        (1, {"n": -LARGEST_INTEGER}, {"slots": "slot '0': counters n", "accounts": "machine 'm': counters n"}),
        (1025, {}, {"accounts": "machine 'm': credits"}),
    ],
)
def test_a_sum_beyond_64_bits_is_told_and_is_in_the_json_lines(site, slots, counters, told):
    for slot in map(str, range(slots)):
        counted = [("counters", {"slot": slot, **counters})] * 1025 if counters else []
        calls = [
            ("alloc", {"slot": slot, "credits": LARGEST_INTEGER}),
            *counted,
            ("claim", {"slot": slot, "machine": "m"}),
        ]
        assert site.fake.accounts.apply("Physics", calls) == []
    number = 1025 * counters.get("n", LARGEST_INTEGER)
    for name, where in told.items():
        assert refuse(site, f"{name}.parquet") == (
            507,
            f"project 'Physics', {where} is {number}, beyond the 64 bits of a Parquet column; ledger.jsonl has it",
        )
    status, body = site.request("GET", "/__cpsim/ledger.jsonl")
    assert status == 200
    assert b":%d" % number in body


def test_credits_of_one_slot_beyond_64_bits_are_told():
    with Fake({"p": "s"}) as fake:
        assert fake.accounts.apply("p", [("alloc", {"slot": "a", "credits": 5})]) == []
        with fake.accounts.reading() as ledger:
            ledger.project("p").slots["a"].credits = 10**30
        with pytest.raises(CpsimError, match="project 'p', slot 'a': credits is 1000"):
            fake.inspector.slots_parquet()


def test_the_ledger_as_json_lines(filled):
    filled.fake.accounts.link([("m", "u")])
    status, body = filled.request("GET", "/__cpsim/ledger.jsonl")
    assert (status, filled.headers["Content-Type"]) == (200, "application/jsonl")
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["type"] for line in lines] == ["slot"] * 4 + ["machine"] * 2 + ["user", "link"]
    assert lines[:4] == ask(filled, "slots?project=Physics")["items"]
    assert lines[4:6] == ask(filled, "machines?project=Physics")["items"]
    assert lines[6:7] == ask(filled, "users?project=Physics")["items"]
    assert lines[7:] == ask(filled, "links")["items"] == [{"type": "link", "machine": "m", "user": "u"}]


# Users


def test_accounts_and_links(filled):
    assert ask(filled, "links", "POST", b'[["m","u"],["m","v"],["new","u"]]') == [
        {"position": 1, "message": "machine 'm' is linked to user 'u'; release it first"}
    ]
    rows = {(row["kind"], row["id"]): row for row in table(filled, "accounts").to_pylist()}
    assert list(rows) == [("machine", "m"), ("machine", "n"), ("user", "u")]
    m, n, u = rows.values()
    assert (m["user"], m["credits"], m["counters"]) == ("u", 3, [("job/events", 7)])
    assert (m["waiting_credits"], m["waiting_counters"]) == (0, [])
    assert (n["user"], n["credits"], n["waiting_credits"]) == (None, 5, 5)
    assert (u["user"], u["credits"], u["counters"]) == (None, 3, [("job/events", 7)])
    assert (u["waiting_credits"], u["waiting_counters"]) == (None, None)


def test_links_and_releases(filled):
    assert ask(filled, "links", "POST", b'[["m","u"]]') == []
    assert ask(filled, "releases", "POST", b'["m","n"]') == [
        {"position": 1, "message": "machine 'n' is linked to no user"}
    ]
    assert ask(filled, "links")["items"] == []
    (user,) = ask(filled, "users?project=Physics")["items"]
    assert (user["user"], user["credits"]) == ("u", 3)
    machine, _ = ask(filled, "machines?project=Physics")["items"]
    assert (machine["machine"], machine["user"], machine["credits"], machine["waiting_credits"]) == ("m", None, 3, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'[["m"]]',
        b'[["m","u","v"]]',
        b'[["m",5]]',
        b'[["","u"]]',
        b'["mu"]',
        b'[["\xff","u"]]',
        b"[" * 5000,
    ],
)
def test_links_that_cannot_be_read(filled, body):
    status, message = refuse(filled, "links", "POST", body)
    assert status == 400
    assert message.startswith("the body does not fit: ")
    with filled.fake.accounts.reading() as ledger:
        assert ledger.owners == {}


# Reset


def test_reset_of_one_project(filled):
    filled.fake.accounts.apply("q", CALLS)
    ask(filled, "links", "POST", b'[["m","u"]]')
    assert ask(filled, "reset?project=Physics", "POST")["projects"] == {"Physics": NOTHING, "q": TOTALS}
    assert ask(filled, "totals")["refused"] == 1
    assert ask(filled, "journal?project=Physics")["items"] == []
    assert len(ask(filled, "journal?project=q")["items"]) == len(CALLS)
    assert ids(ask(filled, "links"), "machine") == ["m"]
    filled.fake.accounts.apply("Physics", CALLS)
    assert ids(ask(filled, "users?project=Physics"), "user") == ["u"]
    assert ask(filled, "balance") == {"violations": [], "differences": []}


def test_reset_of_everything(filled):
    ask(filled, "links", "POST", b'[["m","u"]]')
    nothing = {"Physics": NOTHING, "q": NOTHING}
    assert ask(filled, "reset", "POST") == {"pending": 0, "refused": 0, "projects": nothing}
    assert ask(filled, "links")["items"] == []
    filled.fake.accounts.apply("Physics", CALLS)
    assert ask(filled, "totals")["projects"] == {"Physics": TOTALS, "q": NOTHING}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_reset_takes_what_daemons_have_acknowledged(here, visit, stored, whole):
    sites = [
        Site(project_id=project_id, unix=here / f"{project_id}.sock", flush_interval_s=3600)
        for project_id in ("p", "q")
    ]
    with Fake({"p": "s", "q": "t"}, http=ANY_PORT, sites=sites, store=here / "store" if stored else None) as fake:
        for site in sites:
            with Client(str(site.unix.absolute())) as client:
                client.alloc("a")
        assert fake.pending == 2
        ask(visit(fake), "reset" if whole else "reset?project=p", "POST")
        assert fake.pending == (0 if whole else 1)
        with fake.accounts.reading() as ledger:
            assert [dict(project.slots) for project in ledger.projects.values()] in ([], [{}])


@pytest.mark.parametrize("name", ["reset", "clock/run", "clock/freeze", "housekeep"])
def test_a_body_where_none_is_expected(filled, name):
    status, reply = filled.request("POST", f"/__cpsim/{name}", b'{"project":"Physics"}')
    assert status == 400
    assert f"/__cpsim/{name} takes no body: its arguments go into the query" in reply.decode()
    assert ask(filled, "totals")["projects"]["Physics"] == TOTALS


def test_what_was_reset_does_not_expire(site):
    site.post("alloc", {"slot": "a", "expire": 1})
    ask(site, "reset?project=Physics", "POST")
    site.post("alloc", {"slot": "a", "expire": 5})
    ask(site, "clock/advance?seconds=120", "POST")
    assert ids(ask(site, "slots?project=Physics&state=allocated")) == ["a"]


# The clock


def test_slots_expire_as_soon_as_the_clock_advances(site):
    site.post("alloc", {"slot": "a", "expire": 60})
    frozen = ask(site, "clock/freeze", "POST")
    assert frozen["rate"] == 0
    assert ask(site, "clock") == frozen
    site.post("alloc", {"slot": "b", "expire": 60})
    ask(site, "clock/advance?seconds=3599.999999", "POST")
    assert ask(site, "clock")["now_us"] == frozen["now_us"] + 3_599_999_999
    assert ids(ask(site, "slots?project=Physics&state=expired")) == ["a"]
    ask(site, "clock/advance?seconds=0.000001", "POST")
    expired = ask(site, "slots?project=Physics&state=expired")["items"]
    assert [slot["settled_us"] for slot in expired] == [slot["expires_us"] for slot in expired]
    assert len(expired) == 2
    site.fake.accounts.clock.advance(hours=25)
    assert ask(site, "clock")["now_us"] == frozen["now_us"] + 26 * 3_600_000_000


def test_the_clock_is_set_and_never_goes_back(site):
    now_us = ask(site, "clock/freeze", "POST")["now_us"]
    assert ask(site, f"clock/set?now_us={now_us + 5}", "POST") == {"now_us": now_us + 5, "rate": 0}
    status, message = refuse(site, f"clock/set?now_us={now_us}", "POST")
    assert (status, message) == (
        409,
        f"the clock cannot go back from {now_us + 5} to {now_us} microseconds since 1970",
    )
    assert refuse(site, "clock/advance?seconds=1e10", "POST")[0] == 409
    assert ask(site, "clock")["now_us"] == now_us + 5


def test_the_clock_runs_at_a_multiple():
    real_us = 1_000
    clock = ServerClock(lambda: real_us)
    clock.run(60)
    real_us += 10
    assert clock.now_us() == 1_600
    clock.freeze()
    real_us += 10
    assert clock.now_us() == 1_600
    clock.run()
    real_us += 10
    assert (clock.now_us(), clock.rate) == (1_610, 1)
    real_us -= 500
    assert clock.now_us() == 1_610
    clock.run(1e6)
    real_us += LATEST_US
    assert clock.now_us() == LATEST_US
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="cannot run at"):
            clock.run(wrong)


def test_a_clock_that_has_told_no_time_can_be_set_to_the_past():
    clock = ServerClock(lambda: 1_000)
    clock.set(10)
    assert clock.now_us() == 10
    with pytest.raises(ValueError, match="cannot go back from 10 to 9"):
        clock.set(9)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(seconds=-1)


def test_a_clock_that_goes_back_is_not_followed():
    times = iter([5, 3, 9])
    accounts = AccountServer({"p": "s"}, lambda: next(times))
    for slot in "abc":
        assert accounts.apply("p", [("alloc", {"slot": slot})]) == []
    with_times = accounts._ledger.projects["p"].slots.values()
    assert [slot.allocated_us for slot in with_times] == [5, 5, 9]


# Requests that are refused


@pytest.mark.parametrize("name", ["nothing", "", "slots/a", "clock/"])
def test_paths_that_do_not_exist(site, name):
    status, message = refuse(site, name)
    assert status == 404
    assert "/__cpsim/openapi.json describes" in message


@pytest.mark.parametrize(
    ("method", "name", "allowed"),
    [
        ("POST", "totals", "GET"),
        ("DELETE", "links", "GET, POST"),
        ("GET", "reset", "POST"),
        ("PUT", "openapi.json", "GET"),
    ],
)
def test_methods_that_do_not_exist(site, method, name, allowed):
    assert refuse(site, name, method) == (405, f"/__cpsim/{name} supports {allowed}")
    assert site.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("slots", "missing required field `project`"),
        ("slots?project=", "length >= 1"),
        ("slots?project=Physics&state=lost", "Invalid enum value 'lost'"),
        ("slots?project=Physics&limit=0", ">= 1"),
        ("slots?project=Physics&limit=10001", "<= 10000"),
        ("slots?project=Physics&cursor=-1", ">= 0"),
        ("slots?project=Physics&cursor=x", "Expected `int`"),
        ("slots?project=Physics&page=2", "unknown field `page`"),
        ("slots?project=Physics&project=q", "given twice"),
        ("totals?project=Physics", "unknown field `project`"),
    ],
)
def test_queries_that_do_not_fit(site, query, said):
    status, message = refuse(site, query)
    assert status == 400
    assert said in message


@pytest.mark.parametrize("name", ["slots", "machines", "users", "journal", "refusals"])
def test_projects_that_do_not_exist(site, name):
    assert refuse(site, f"{name}?project=physics") == (404, "there is no project 'physics'; there are 'Physics', 'q'")
    assert refuse(site, "reset?project=physics", "POST")[0] == 404


# Who is let in


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:80", "LOCALHOST", "[::1]:80", "127.1.2.3:80"])
def test_names_of_this_machine_are_let_in(site, host):
    assert ask(site, "projects", Host=host)
    assert ask(site, "projects", Host=host, Origin=f"http://{host}")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "", "[", "::1"])
def test_other_names_are_not(site, host):
    status, message = refuse(site, "projects", Host=host)
    assert status == 403
    assert "is not a name of this machine" in message


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_pages_of_other_sites_are_not(site, origin):
    status, message = refuse(site, "reset", "POST", Origin=origin)
    assert (status, message) == (403, f"pages of {origin!r} may not use the control API")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_token_is_asked_for(visit, host):
    with Fake({"p": "s"}, http=TcpEndpoint(host, 0), control_token="t0ken") as fake:
        site = visit(fake)
        for shown in ({}, {"Authorization": "t0ken"}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer "}):
            assert refuse(site, "openapi.json", **shown)[0] == 401
            assert site.headers["WWW-Authenticate"] == "Bearer"
        for shown in ("Bearer t0ken", "bearer  t0ken"):
            assert ask(site, "projects", Authorization=shown, Host="site.example") == ["p"]


def test_beyond_loopback_and_without_a_token_there_is_none(visit):
    with Fake({"p": "s"}, http=TcpEndpoint("0.0.0.0", 0)) as fake:
        site = visit(fake)
        assert site.request("GET", "/__cpsim/totals")[0] == 404
    with pytest.raises(ValueError, match=r"0\.0\.0\.0, which is not loopback, needs a token"):
        Access("0.0.0.0")


def test_without_control_there_is_none():
    accounts = AccountServer({"p": "s"})
    request = Request("GET", "/__cpsim/totals", b"", HERE, b"")
    assert Api(accounts).respond(request).status == 404
    control = Control(Inspector(accounts, lambda: 3), Access("localhost"))
    assert Api(accounts, control).respond(request).body.startswith(b'{"pending":3,')


@pytest.mark.parametrize(
    ("projects", "said"),
    [
        ({"a,b": "s"}, "without commas"),
        ({"": "s"}, "needs an id"),
        ({"p": ""}, "and a secret"),
        ({"p": "s", "P": "t"}, "'P' is given twice"),
    ],
)
def test_projects_that_cannot_be(projects, said):
    with pytest.raises(ValueError, match=said):
        AccountServer(projects)


# Faults and quirks


def lose(site, slot):
    """Claim a slot of the server itself; whether a reply came."""
    try:
        status, _ = site.post("claim", {"slot": slot, "machine": "m"})
    except http.client.RemoteDisconnected:
        site.connection.close()
        return None
    return status


def test_faults_are_set_and_what_comes_of_them_is_shown(filled):
    faults = ["server.lose-reply:kind=claim,slot=c", "hang:kind=meta"]
    answer = ask(filled, "faults", "POST", json.dumps(faults).encode())
    assert answer == [{"type": "fault", "fault": text, "selected": 0, "fired": 0} for text in faults]
    assert lose(filled, "c") is None
    assert [fault["fired"] for fault in ask(filled, "faults")] == [1, 0]
    firings = ask(filled, "firings")
    assert firings["next"] is None
    ((firing),) = firings["items"]
    assert 0 < firing.pop("time_s") < 60
    assert firing == {
        "type": "firing",
        "stage": "server",
        "action": "lose-reply",
        "kind": "claim",
        "slot": "c",
        "project": "Physics",
    }
    history = ask(filled, "slot?project=Physics&slot=c")
    assert history["slot"]["state"] == "claimed"
    assert [firing["action"] for firing in history["firings"]] == ["lose-reply"]
    assert ask(filled, "slot?project=Physics&slot=a")["firings"] == []
    assert refuse(filled, "slot?project=q&slot=c")[0] == 404
    ask(filled, "reset?project=q", "POST")
    assert len(ask(filled, "firings")["items"]) == 1
    ask(filled, "reset?project=Physics", "POST")
    assert ask(filled, "firings")["items"] == []
    assert [fault["fault"] for fault in ask(filled, "faults")] == faults


def test_faults_are_added_and_removed(site):
    ask(site, "faults/add", "POST", b'["down:from=60,until=90"]')
    assert len(ask(site, "faults/add", "POST", b'["hang", "hang"]')) == 3
    assert [fault["fault"] for fault in ask(site, "faults/remove", "POST", b'["hang"]')] == [
        "server.down:from=60,until=90",
        "hang",
    ]
    assert ask(site, "faults", "POST", b"[]") == []
    assert list(site.fake.faults) == []


def test_a_fault_without_an_end_that_was_set_elsewhere_is_kept(site):
    site.fake.faults.add("down:from=60")
    answer = ask(site, "faults", "POST", b'["server.down:from=60", "hang"]')
    assert [fault["fault"] for fault in answer] == ["server.down:from=60", "hang"]


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("faults", '["hangs"]', "did you mean 'hang'"),
        ("faults/add", '["crash-after-ok"]', "would end the process"),
        ("faults", '["down"]', "'server.down' would stop the control API for good: give it an until=SECONDS"),
        ("faults/add", '["hang", "server.down:from=60"]', "would stop the control API for good"),
        ("faults/remove", '["hang"]', "is not set; these are: none"),
        ("quirks", '["reclaims"]', "no quirk 'reclaims'"),
    ],
)
def test_no_such_fault_or_quirk(site, name, body, said):
    status, answer = site.request("POST", f"/__cpsim/{name}", body.encode())
    assert status == 409
    assert said in json.loads(answer)["message"]
    assert list(site.fake.faults) == []


def test_quirks_come_and_go(filled):
    on = ask(filled, "quirks", "POST", b'["reclaim", "single-read"]')
    assert [quirk["quirk"] for quirk in on if quirk["on"]] == ["reclaim", "single-read"]
    assert filled.post("claim", {"slot": "a", "machine": "n"})[0] == 200
    assert not any(quirk["on"] for quirk in ask(filled, "quirks", "POST", b"[]"))
    assert filled.post("claim", {"slot": "a", "machine": "n"})[0] == 500
    assert all(quirk["on"] for quirk in ask(filled, "quirks?profile=deployed", "POST", b"[]"))
    assert filled.slots()["b"].granted == 5


def test_slots_expire_after_a_change_of_quirks(filled):
    ask(filled, "quirks", "POST", b'["expire-live"]')
    ask(filled, "clock/advance?seconds=86400", "POST")
    assert filled.slots()["b"].state == "claimed"
    filled.fake.accounts.apply("Physics", [("alloc", {"slot": "short", "expire": 1})])
    ask(filled, "quirks", "POST", b"[]")
    ask(filled, "clock/advance?seconds=60", "POST")
    assert filled.slots()["short"].state == "expired"
