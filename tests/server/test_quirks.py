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
from cpsim.quirks import PROFILES, QUIRKS, chosen

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
