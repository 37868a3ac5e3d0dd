"""Verification with the accounts of `--accounts`: what is shown is verified, and nothing else is."""

from dataclasses import replace

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim import fake
from cpsim.accounts.lines import json_rows
from cpsim.accounts.observer import CannotObserve, NothingNew
from cpsim.accounts.view import View
from cpsim.conformance.exchange import Reply
from cpsim.conformance.findings import CannotRun, NotVerifiable
from cpsim.conformance.sources import SourceView
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target
from cpsim.net.control import ControlClient
from cpsim.net.http.client import fetch


class Shown:
    """A source that shows what the fake does, once it has been changed."""

    def __init__(self, site, change=lambda view: view):
        self._server = parse_endpoint(site.addresses["http"])
        self._change = change

    def __str__(self):
        return "a source"

    def read(self, pause_s):
        def ask(method, path, body, *, slowly):
            return fetch(self._server, method, path, body, connect_s=pause_s, timeout_s=pause_s)

        lines = ControlClient(ask, CannotObserve, "").ledger().splitlines()
        return self._change(View.of_lines(json_rows(lines)))


@pytest.fixture
def site():
    with fake.Fake({"P": "hush"}, http=fake.ANY_PORT) as started:
        yield started


def verified(site, source, *clauses):
    target = Target(server=parse_endpoint(site.addresses["http"]), credentials=("P", "hush"), accounts=source)
    found = examine(target, clauses)
    return {finding.clause.id: (finding.result, finding.detail) for finding in found.findings}


def without(*columns):
    return lambda view: replace(view, slots=view.slots.drop_columns(columns))


def test_what_a_source_shows_is_verified_and_what_it_hides_is_not(site):
    clauses = ("CLAIM-9", "CLAIM-10", "META-1")
    assert {result for result, _ in verified(site, Shown(site), *clauses).values()} == {"pass"}
    hiding = verified(site, Shown(site, without("granted")), *clauses)
    assert hiding["CLAIM-9"] == ("not verifiable", "needs the column `granted`, which a source does not show")
    no_machines = verified(site, Shown(site, lambda view: replace(view, machines=None)), *clauses)
    assert no_machines["CLAIM-9"] == ("not verifiable", "needs a table of machines, which a source does not show")


def test_what_is_wrong_in_a_source_is_a_deviation(site):
    lost = verified(site, Shown(site, lambda view: replace(view, slots=view.slots.slice(0, 0))), "CLAIM-9")
    assert lost["CLAIM-9"][0] == "deviation"


class Bare:
    def __str__(self):
        return "a source"

    def __init__(self, shown):
        self.shown = shown

    def read(self, _):
        if isinstance(self.shown, Exception):
            raise self.shown
        return self.shown


LINES = [
    {"type": "slot", "project": "P", "slot": "s", "state": "claimed", "counters": {"a": 1}},
    {"type": "machine", "project": "p", "machine": "m", "credits": 3},
    {"type": "user", "project": "p", "user": "u", "credits": 3},
    {"type": "user", "project": "other", "user": "v", "credits": 9},
]


def seen(shown):
    return SourceView(lambda _: Reply(404, "", b""), Bare(shown), 1.0)


def test_rows_are_those_of_the_project_whatever_the_case_of_its_id():
    view = seen(View.of_lines(enumerate(LINES, 1)))
    assert view.exists()
    assert view.slot("p", "s")["counters"] == {"a": 1}
    assert (view.slot("p", "t"), view.slot("q", "s")) == (None, None)
    assert (view.machine("P", "m")["credits"], view.user("P", "u")["credits"]) == (3, 3)
    assert [dict(held)["credits"] for held in view.holdings("P")] == [3, 3]


@pytest.mark.parametrize(
    "ask",
    [
        lambda view: view.link("m", "u"),
        lambda view: view.release("m"),
        lambda view: view.advance(5),
        lambda view: view.now_us(),
        lambda view: view.totals("p"),
    ],
)
def test_what_only_a_control_api_does_is_not_verifiable_without_one(ask):
    view = seen(View.of_lines(enumerate(LINES, 1)))
    assert view.exists()
    with pytest.raises(NotVerifiable, match="which a source does not give: only cpsim's control API does"):
        ask(view)


def test_a_source_that_fails_says_nothing_about_the_server():
    with pytest.raises(CannotRun, match="it is away"):
        seen(CannotObserve("it is away")).slot("p", "s")
    with pytest.raises(NotVerifiable, match="needs accounts as they are now: it is old"):
        seen(NothingNew("it is old")).slot("p", "s")
