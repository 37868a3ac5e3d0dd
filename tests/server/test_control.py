"""The control API: what it shows of the accounts, and whom it lets in."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

import cpsim.fake
from cpdaemon import TcpEndpoint
from cpsim.daemon.addresses import listen_tcp
from cpsim.fake import Fake
from cpsim.server.control import Control
from cpsim.server.http import Api, Request
from cpsim.server.ledger import LARGEST_INTEGER, LAST_US
from cpsim.server.service import AccountServer

COUNTERS = pa.map_(pa.string(), pa.int64())
SLOT_COLUMNS = {
    "project": pa.string(),
    "slot": pa.string(),
    "state": pa.string(),
    "machine": pa.string(),
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


def show(site, name):
    status, body = site.request("GET", f"/__cpsim/{name}")
    assert status == 200
    return json.loads(body)


def table(site, name):
    status, body = site.request("GET", f"/__cpsim/{name}")
    assert status == 200
    assert site.headers["Content-Type"] == "application/vnd.apache.parquet"
    return pyarrow.parquet.read_table(io.BytesIO(body))


def link(site, links):
    status, body = site.request("POST", "/__cpsim/links", json.dumps(links).encode())
    return status, json.loads(body)


def test_totals(filled):
    assert show(filled, "totals") == {
        "pending": 0,
        "refused": 1,
        "projects": {
            "Physics": {
                "allocated": 4,
                "outstanding": 1,
                "claimed": 2,
                "discarded": 1,
                "expired": 0,
                "credits": 8,
                "counters": {"job/events": 7},
                "reasons": {"lost": 1},
            }
        },
    }


def test_totals_of_nothing(site):
    assert show(site, "totals") == {"pending": 0, "refused": 0, "projects": {}}


def test_balance(filled):
    assert show(filled, "balance") == {"violations": []}
    with filled.fake.accounts.reading() as ledger:
        ledger.projects["Physics"].granted.credits += 1
    violations = show(filled, "balance")["violations"]
    assert len(violations) == 3
    assert all("'Physics'" in law for law in violations)


@pytest.mark.parametrize(("name", "columns"), [("slots", SLOT_COLUMNS), ("accounts", ACCOUNT_COLUMNS)])
def test_columns_are_the_same_with_and_without_rows(site, name, columns):
    for calls in ([], CALLS):
        site.fake.accounts.apply("Physics", calls)
        schema = table(site, name).schema
        assert dict(zip(schema.names, schema.types, strict=True)) == columns


def test_slots(filled):
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


def test_accounts_and_links(filled):
    assert link(filled, [["m", "u"], ["m", "v"], ["new", "u"]]) == (
        200,
        [{"position": 1, "message": "machine 'm' is linked to user 'u'; release it first"}],
    )
    rows = {(row["kind"], row["id"]): row for row in table(filled, "accounts").to_pylist()}
    assert list(rows) == [("machine", "m"), ("machine", "n"), ("user", "u")]
    m, n, u = rows.values()
    assert (m["user"], m["credits"], m["counters"]) == ("u", 3, [("job/events", 7)])
    assert (m["waiting_credits"], m["waiting_counters"]) == (0, [])
    assert (n["user"], n["credits"], n["waiting_credits"]) == (None, 5, 5)
    assert (u["user"], u["credits"], u["counters"]) == (None, 3, [("job/events", 7)])
    assert (u["waiting_credits"], u["waiting_counters"]) == (None, None)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'[["m"]]', b'[["m","u","v"]]', b'[["m",5]]', b'["mu"]', b'[["\xff","u"]]', b"[" * 5000]
)
def test_links_that_cannot_be_read(filled, body):
    status, answer = filled.request("POST", "/__cpsim/links", body)
    assert status == 400
    assert json.loads(answer)["message"].startswith("the body is not a list of [machine, user]")
    with filled.fake.accounts.reading() as ledger:
        assert ledger.owners == {}


@pytest.mark.parametrize(("method", "name"), [("GET", "nothing"), ("GET", "links"), ("POST", "totals"), ("GET", "")])
def test_requests_that_do_not_exist(site, method, name):
    status, body = site.request(method, f"/__cpsim/{name}")
    assert status == 404
    assert "GET /__cpsim/totals" in json.loads(body)["message"]


def test_without_control_there_is_none():
    accounts = AccountServer({"p": "s"})
    request = Request("GET", "/__cpsim/totals", b"", {}, b"")
    assert Api(accounts).respond(request).status == 404
    assert Api(accounts, Control(accounts, lambda: 3)).respond(request).body.startswith(b'{"pending":3,')


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost", 200), ("::1", 200), ("0.0.0.0", 404), ("::", 404), ("site", 404)],
)
def test_control_is_for_loopback_only(monkeypatch, host, status):
    """The host that was asked for decides; the socket is one of loopback here in any case."""
    monkeypatch.setattr(cpsim.fake, "listen_tcp", lambda _, port: listen_tcp("127.0.0.1", port))
    with Fake({"p": "s"}, http=TcpEndpoint(host, 0)) as fake:
        assert fake._server is not None
        app = fake._server._config.app
        assert app.respond(Request("GET", "/__cpsim/totals", b"", {}, b"")).status == status


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


def test_a_clock_that_goes_back_is_not_followed():
    times = iter([5, 3, 9])
    accounts = AccountServer({"p": "s"}, lambda: next(times))
    for slot in "abc":
        assert accounts.apply("p", [("alloc", {"slot": slot})]) == []
    with_times = accounts._ledger.projects["p"].slots.values()
    assert [slot.allocated_us for slot in with_times] == [5, 5, 9]
