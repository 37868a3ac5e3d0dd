"""Each quirk of the server alone: what it changes, and that nothing of it is there without it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cpdaemon import Client
from cpdaemon.errors import Refused
from cpdaemon.signing import token
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.net.http.client import fetch
from cpsim.quirks import NAMED, PROFILES, QUIRKS, chosen

DAY_MINUTES = 1440


class Site:
    """A server with some quirks, and clients of two of its projects."""

    def __init__(self, fake: Fake) -> None:
        url = fake.addresses["http"]
        self.fake = fake
        self.client = Client(url, ("one", "secret"))
        self.other = Client(url, ("two", "secret"))
        self.accounts = fake.accounts
        self.accounts.link([("owned", "ann")])

    def credits(self) -> int:
        with self.accounts.reading() as ledger:
            return ledger.project("one").granted.credits

    def refuses(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Refused:
            return True
        return False


@contextmanager
def site(*quirks: str) -> Iterator[Site]:
    with Fake({"one": "secret", "two": "secret"}, http=ANY_PORT, quirks=chosen("documented", quirks)) as fake:
        made = Site(fake)
        with made.client, made.other:
            yield made


@pytest.fixture(params=[True, False], ids=["with", "without"])
def on(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@contextmanager
def site_with(quirk: str, on: bool) -> Iterator[Site]:
    with site(*([quirk] if on else [])) as made:
        yield made


def test_reclaim(on: bool) -> None:
    with site_with("reclaim", on) as s:
        s.client.alloc("x", credits=5)
        s.client.claim("x", "free")
        assert s.refuses(lambda: s.client.claim("x", "another")) is not on
        assert s.credits() == (10 if on else 5)
        s.client.alloc("y", credits=5)
        s.client.claim("y", "owned")
        assert s.refuses(lambda: s.client.claim("y", "another"))


def test_claim_settled(on: bool) -> None:
    with site_with("claim-settled", on) as s:
        s.client.alloc("x", credits=5)
        s.client.discard("x")
        assert s.refuses(lambda: s.client.claim("x", "free")) is not on
        assert s.credits() == (5 if on else 0)


def test_discard_settled(on: bool) -> None:
    with site_with("discard-settled", on) as s:
        s.client.alloc("x", credits=5)
        s.client.claim("x", "free")
        assert s.refuses(lambda: s.client.discard("x")) is not on


def test_slots_list_claimed(on: bool) -> None:
    with site_with("slots-list-claimed", on) as s:
        for slot, machine in (("x", "free"), ("y", "owned")):
            s.client.alloc(slot)
            s.client.claim(slot, machine)
        assert s.accounts.outstanding("one") == (["x"] if on else [])


def test_global_slot_ids(on: bool) -> None:
    with site_with("global-slot-ids", on) as s:
        s.client.alloc("x")
        assert s.refuses(lambda: s.other.alloc("x")) is on


def test_counters_settled(on: bool) -> None:
    with site_with("counters-settled", on) as s:
        s.client.alloc("x")
        s.client.discard("x")
        assert s.refuses(lambda: s.client.counters("x", events=1)) is not on


def test_meta_dropped(on: bool) -> None:
    with site_with("meta-dropped", on) as s:
        s.client.alloc("x")
        s.client.meta("x", site="CERN")
        with s.accounts.reading() as ledger:
            assert ledger.project("one").slots["x"].meta == (None if on else {"site": "CERN"})


@pytest.mark.parametrize(
    ("arguments", "granted"),
    [({"credits": "7.9"}, 7), ({"credits": -3}, -3), ({"min": 9, "max": 4}, 4)],
)
def test_float_credits(on: bool, arguments: dict[str, object], granted: int) -> None:
    with site_with("float-credits", on) as s:
        refusals = s.accounts.apply("one", [("alloc", {"slot": "x", **arguments})])
        assert bool(refusals) is not on
        if on:
            s.client.claim("x", "free")
            assert s.credits() == granted


@pytest.mark.parametrize("credits", ["many", 10**400])
def test_bulk_abort(on: bool, credits: object) -> None:
    with site_with("bulk-abort", on) as s:
        calls = [{"slot": "a"}, {"slot": "b", "credits": credits}, {"slot": "c"}]
        body = json.dumps({"alloc": calls}).encode()
        headers = {"Authorization": token(("one", "secret"), body)}
        server = s.client._endpoint
        status, answer = fetch(server, "POST", "/api/batch/bulk", body, headers=headers, connect_s=60, timeout_s=60)
        assert (status, answer.startswith(b"<h1>")) == ((500, True) if on else (200, False))
        assert s.accounts.outstanding("one") == (["a"] if on else ["a", "c"])


def test_expire_live(on: bool) -> None:
    now_us = 0
    from cpsim.server.service import AccountServer

    accounts = AccountServer({"one": "secret"}, lambda: now_us, chosen("documented", ["expire-live"] if on else []))
    accounts.apply("one", [("alloc", {"slot": "x"})])
    now_us = (DAY_MINUTES + 1) * 60_000_000
    assert accounts.outstanding("one") == (["x"] if on else [])


def test_the_housekeeping_of_expire_live(on: bool) -> None:
    now_us = 0
    from cpsim.server.service import AccountServer

    accounts = AccountServer({"one": "secret"}, lambda: now_us, chosen("documented", ["expire-live"] if on else []))
    accounts.apply("one", [("alloc", {"slot": name, "expire": minutes}) for name, minutes in (("due", 1), ("live", 9))])
    now_us = 5 * 60_000_000
    accounts.housekeep()
    assert accounts.outstanding("one") == (["due"] if on else ["live"])
    with accounts.reading() as ledger:
        assert list(ledger.violations()) == []


def test_slots_vanish(on: bool) -> None:
    with site_with("slots-vanish", on) as s:
        s.client.alloc("x", credits=5)
        s.client.claim("x", "owned")
        assert s.refuses(lambda: s.client.alloc("x", credits=5)) is not on
        s.client.alloc("y", credits=5)
        s.client.claim("y", "free")
        assert s.refuses(lambda: s.client.alloc("y"))


def test_the_deployed_profile_has_every_quirk() -> None:
    assert chosen("deployed", []) == QUIRKS.keys()
    assert chosen("documented", []) == PROFILES["documented"] == frozenset()


@pytest.mark.parametrize(("profile", "names"), [("documented", ["reclam"]), ("depolyed", [])])
def test_an_unknown_name_is_a_problem(profile: str, names: list[str]) -> None:
    with pytest.raises(CpsimError, match="there are"):
        chosen(profile, names)


def test_a_quirk_is_a_file_and_its_docstring() -> None:
    assert QUIRKS["reclaim"].tier == "server"
    assert QUIRKS["reclaim"].effect.startswith("a slot on a machine without a user can be claimed again")
    assert {"int64-halfway", "races"} == NAMED.keys()
    assert not NAMED.keys() & QUIRKS.keys()


@contextmanager
def deployed() -> Iterator[Site]:
    with Fake(
        {"one": "secret", "two": "secret", "Loud": "secret"}, http=ANY_PORT, quirks=chosen("deployed", [])
    ) as fake:
        made = Site(fake)
        with made.client, made.other:
            yield made


def ask(
    s: Site, path: str, body: bytes | None = b"", query: str | None = None, method: str = "", key: str = "one"
) -> tuple[int, str]:
    """Send a signed request; returns the status, and the body as text."""
    signed = (query or "").encode() if body is None else body
    auth = token((key, "secret"), signed)
    target = f"/api{path}" + (f"?{query or ''}&auth={auth}" if body is None else f"?{query}" if query else "")
    headers = {} if body is None else {"Authorization": auth}
    method = method or ("GET" if body is None else "POST")
    status, answer = fetch(s.client._endpoint, method, target, body or b"", headers=headers, connect_s=60, timeout_s=60)
    return status, answer.decode()


def granted(s: Site) -> tuple[int, dict[str, int]]:
    with s.accounts.reading() as ledger:
        assert list(ledger.violations()) == []
        account = ledger.project("one").granted
        return account.credits, account.counters


def held(s: Site, user: str) -> tuple[int, dict[str, int]] | None:
    with s.accounts.reading() as ledger:
        account = ledger.project("one").users.get(user)
        return None if account is None else (account.credits, {k: v for k, v in account.counters.items() if v})


def totals(s: Site) -> tuple[int, int, int]:
    shown = s.fake.inspector.totals().projects["one"]
    return shown.allocated, shown.claimed, shown.discarded


def test_a_slot_claimed_again_moves_and_is_paid_once() -> None:
    """What the first claim grants stays on the slot; the project is credited each time."""
    with deployed() as s:
        s.client.alloc("x", min=3, max=8)
        s.client.counters("x", hits=2)
        s.client.claim("x", "first", credits=7)
        s.client.claim("x", "second", credits=4)
        assert granted(s) == (14, {"hits": 4})
        s.accounts.link([("first", "eve"), ("second", "bob")])
        assert held(s, "eve") == (0, {})
        assert held(s, "bob") == (7, {"hits": 2})
        assert totals(s) == (1, 2, 0)
        assert s.fake.inspector.balance().differences == [
            "project 'one': reclaim: 7 credits and counters {'hits': 2} granted beyond what slots and accounts hold"
        ]


def test_what_is_discarded_or_counted_after_its_claim_is_paid_at_the_link() -> None:
    with deployed() as s:
        s.client.alloc("x", credits=5)
        s.client.claim("x", "m")
        s.client.counters("x", hits=9)
        s.client.discard("x")
        s.client.discard("x", "again")
        assert s.accounts.outstanding("one") == []
        assert totals(s) == (1, 1, 2)
        s.accounts.link([("m", "bob")])
        assert held(s, "bob") == (5, {"hits": 9})
        assert granted(s) == (5, {})
        assert s.refuses(lambda: s.client.discard("x"))
        s.client.alloc("x")


@pytest.mark.parametrize(("bad", "claim"), [({"credits": 9, "expire": "x"}, {}), ({"min": 5, "max": []}, {})])
def test_a_half_made_slot_has_no_terms(bad: dict[str, object], claim: dict[str, int]) -> None:
    with deployed() as s:
        status, page = ask(s, "/batch/alloc", json.dumps({"slot": "x", **bad}).encode())
        assert (status, page.startswith("<h1>")) == (500, True)
        assert s.accounts.outstanding("one") == ["x"]
        assert s.refuses(lambda: s.client.alloc("x"))
        s.client.claim("x", "m", credits=2)
        assert granted(s) == (2, {})
        assert totals(s) == (0, 1, 0)


def test_housekeeping_in_production_takes_away_what_waits() -> None:
    with deployed() as s:
        s.client.alloc("x", credits=5)
        s.client.claim("x", "m")
        s.accounts.apply("one", [("alloc", {"slot": "late", "expire": -1})])
        s.accounts.housekeep()
        assert s.accounts.outstanding("one") == ["late"]
        s.accounts.link([("m", "bob")])
        assert held(s, "bob") == (0, {})
        assert granted(s) == (5, {})
        assert totals(s) == (2, 1, 1)


HTML = "<h1>"


@pytest.mark.parametrize(
    ("path", "body", "query", "method", "status", "begins"),
    [
        ("/batch/counters", b'{"slot": "a", "n": "912.0"}', None, "", 200, '{"result": "ok"}'),
        ("/batch/counters", b'{"slot": "a", "n": true}', None, "", 200, '{"result": "ok"}'),
        ("/batch/counters", b'{"slot": "a"}', None, "", 200, '{"result": "ok"}'),
        ("/batch/counters", b'{"slot": "a", "n": null}', None, "", 500, HTML),
        ("/batch/counters", b'{"slot": "a", "n": 1180591620717411303424}', None, "", 500, HTML),
        ("/batch/counters", b'{"slot": "none", "n": "x"}', None, "", 500, '{"result": "error"'),
        ("/batch/counters", None, "slot=a&n=1", "", 500, HTML),
        ("/batch/counters", None, "slot=none&n=1", "", 500, '{"result": "error"'),
        ("/batch/alloc", b'{"slot": ""}', None, "", 200, '{"result": "ok"}'),
        ("/batch/alloc", b'{"slot": [2]}', None, "", 200, '{"result": "ok"}'),
        ("/batch/alloc", b'{"slot": null}', None, "", 500, HTML),
        ("/batch/alloc", b"[]", None, "", 500, HTML),
        ("/batch/alloc", b"nothing", None, "", 400, '{"result": "error"'),
        ("/batch/alloc", '{"slot": "ü"}'.encode(), None, "", 500, HTML),
        ("/batch/alloc", b'{"slot": "\\u00fc"}', None, "", 200, '{"result": "ok"}'),
        ("/batch/discard", b'{"slot": "a", "reason": "\\u00fc"}', None, "", 500, HTML),
        ("/batch/discard", b'{"slot": "a"}', None, "PUT", 500, HTML),
        ("/batch/slots", b"", None, "PUT", 200, '{"result": "ok"'),
        ("/batch/meta", b"{}", None, "", 200, '{"result": "ok"}'),
        ("/heartbeat", b"", None, "", 403, HTML),
        ("/batch/alloc.text", b"slot=t,credits=3", None, "", 200, ""),
        ("/batch/alloc.text", b"slot=a", None, "", 500, "ERROR\nmessage: "),
        ("/batch/alloc.text", b"slot", None, "", 500, "ERROR\nmessage: "),
        ("/batch/bulk.text", b"claim=1", None, "", 500, HTML),
        ("/batch/slots.jsonp", b"", "callback=1%2B", "", 200, "1+({"),
        ("/batch/bulk", b'{"claim": "abc"}', None, "", 200, '{"result": "ok", "errors": [{'),
        ("/batch/bulk", b'{"discard": {"slot": "a"}}', None, "", 500, HTML),
        ("/batch/bulk", b'{"counters": null}', None, "", 500, HTML),
        ("/batch/bulk", b"[]", None, "", 200, '{"result": "ok"}'),
        ("/batch/bulk", b'{"discard": [{"slot": "\\u00fc"}]}', None, "", 500, HTML),
        ("/batch/bulk", None, "discard=", "", 200, '{"result": "ok", "errors": [{'),
    ],
)
def test_how_the_server_in_production_answers(
    path: str, body: bytes | None, query: str | None, method: str, status: int, begins: str
) -> None:
    with deployed() as s:
        s.client.alloc("a")
        got, text = ask(s, path, body, query, method)
        assert (got, text.startswith(begins), bool(text)) == (status, True, bool(begins)), text


def test_tokens_in_production() -> None:
    with deployed() as s:
        assert ask(s, "/batch/slots", b"", key="Loud")[0] == 401
        encoded = token(("one", "secret"), b"slot=q").replace(",", "%2C")
        for auth, status in ((encoded, 400), ("md5,nobody,0", 401), ("md5,one,0", 400)):
            got, _ = fetch(
                s.client._endpoint, "GET", f"/api/batch/alloc?slot=q&auth={auth}", connect_s=60, timeout_s=60
            )
            assert got == status


def test_a_whole_number_written_as_a_fraction_is_refused_with_advice() -> None:
    with site() as s:
        s.client.alloc("a")
        status, text = ask(s, "/batch/counters", b'{"slot": "a", "collision/energy": "912.0"}')
        assert status == 500
        assert "send collision/energy=912" in text
