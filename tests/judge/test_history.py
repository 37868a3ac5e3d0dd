"""Every kind of damage to a ledger is found, under its name; an undamaged one is valid."""

import importlib.util

import pyarrow as pa
import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.accounts.observer import CannotObserve, Observer
from cpsim.accounts.view import View
from cpsim.fake import ANY_PORT, Fake
from cpsim.judge.books import judge_books
from cpsim.judge.model import DAY_MINUTES, MINUTE_NS, Span, Step
from cpsim.judge.slots import judge_histories, judge_outstanding, judge_slots
from cpsim.judge.verdict import SHOWN_ANOMALIES, Ruling, Verdict
from cpsim.net.http.messages import Response
from cpsim.server.http import Api

SEEN = Span(10_000, 20_000)
CALLS = [
    *(("alloc", {"slot": f"s{n}", "min": 5, "max": 20}) for n in range(6)),
    *(("counters", {"slot": f"s{n}", "events": 100 + n, "cpu": -7, "none": 0}) for n in range(5)),
    *(("meta", {"slot": f"s{n}", "site": "here", "kind": "é"}) for n in range(6)),
    ("claim", {"slot": "s0", "machine": "linked", "credits": 9}),
    ("claim", {"slot": "s1", "machine": "alone", "credits": 11}),
    ("claim", {"slot": "s2", "machine": "linked"}),
    ("claim", {"slot": "s3", "machine": "alone"}),
    ("discard", {"slot": "s4", "reason": "late"}),
]


@pytest.fixture
def histories():
    steps = {}
    for kind, arguments in CALLS:
        steps.setdefault(arguments["slot"], []).append(Step(kind, arguments, Span(0, 0), applied=True))
    return steps


@pytest.fixture(scope="module")
def observer():
    """What looks at a server that has applied the calls, and something of another project."""
    with Fake({"p": "hush", "other": "hush"}, http=ANY_PORT) as fake:
        fake.accounts.link([("linked", "ann")])
        fake.accounts.apply("p", CALLS)
        elsewhere = {"slot": "s0"}
        fake.accounts.apply("other", [("alloc", elsewhere), ("claim", elsewhere | {"machine": "alone", "credits": 3})])
        yield Observer(parse_endpoint(fake.addresses["http"]), ("p", "hush"), 60.0)


@pytest.fixture(scope="module")
def tables(observer):
    """The slots and the accounts of that server."""
    view = observer.view()
    return view.slots, view.accounts


def test_a_server_that_cannot_write_parquet_shows_the_same(observer, tables, monkeypatch):
    slots, accounts = tables
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    view = observer.view()
    assert view.slots.equals(slots)
    order = [("project", "ascending"), ("kind", "ascending")]
    assert view.accounts.sort_by(order).equals(accounts.sort_by(order))


@pytest.mark.parametrize("body", [b'{"slot": "s"}', b"[]", b"not JSON"])
def test_lines_that_are_no_ledger_cannot_be_observed(observer, monkeypatch, body):
    answers = dict.fromkeys(("/__cpsim/slots.parquet", "/__cpsim/accounts.parquet"), Response(501, b""))
    answers["/__cpsim/ledger.jsonl"] = Response(200, body)
    monkeypatch.setattr(Api, "respond", lambda _, request: answers[request.path])
    with pytest.raises(CannotObserve, match=r"ledger.jsonl on .* is not the ledger as JSON lines"):
        observer.view()


def test_a_line_without_its_columns_cannot_be_observed(observer, monkeypatch):
    body = b'{"type": "slot"}'
    monkeypatch.setattr(
        Api, "respond", lambda _, request: Response(200, body) if ".jsonl" in request.path else Response(501, b"")
    )
    missing = "column `project` of the table of slots is missing, expected string; the table has none"
    with pytest.raises(CannotObserve, match=f"the accounts of http://.*: {missing}"):
        observer.view()


@pytest.fixture
def books(tables):
    """The tables of a server, to be tampered with."""
    return Books(tables)


class Books:
    """The tables of a server, as rows that can be tampered with."""

    def __init__(self, tables):
        self.schemas = [table.schema for table in tables]
        self.slots, self.accounts = (table.to_pylist() for table in tables)

    def slot(self, slot_id):
        return next(row for row in self.slots if (row["project"], row["slot"]) == ("p", slot_id))

    def account(self, kind, account_id):
        return next(row for row in self.accounts if (row["project"], row["kind"], row["id"]) == ("p", kind, account_id))

    def tables(self):
        return map(pa.Table.from_pylist, (self.slots, self.accounts), self.schemas)


def judged(histories, books, project_id="p"):
    verdict = Verdict()
    slots, accounts = books.tables()
    judge_histories(histories, slots, project_id, SEEN, verdict)
    judge_books(View.of_tables(slots, accounts), verdict)
    return verdict


def counters(row, **changes):
    row["counters"] = list((dict(row["counters"]) | changes).items())


@pytest.mark.parametrize("project_id", ["p", "P"])
def test_undamaged_books_are_valid(histories, books, project_id):
    verdict = judged(histories, books, project_id)
    assert verdict.anomalies == []
    assert verdict.ruling == Ruling.VALID
    assert verdict.checked == {"slots": 6, "sums": 16, "machines": 3}
    assert verdict.uncertain == 0


DAMAGE = {
    "slot missing": ("lost", "s5", lambda books: books.slots.remove(books.slot("s5"))),
    "slot not settled": (
        "lost",
        "s0",
        lambda books: books.slot("s0").update(state="allocated", machine=None, granted=None),
    ),
    "discard lost": ("lost", "s4", lambda books: books.slot("s4").update(state="allocated", reason=None)),
    "a credit more": ("over-credited", "s1", lambda books: books.slot("s1").update(granted=12)),
    "a credit less": ("under-credited", "s1", lambda books: books.slot("s1").update(granted=10)),
    "no credits": ("under-credited", "s1", lambda books: books.slot("s1").update(granted=None)),
    "counters doubled": ("duplicated", "s4", lambda books: counters(books.slot("s4"), events=208, cpu=-14)),
    "counters more than doubled": ("altered", "s4", lambda books: counters(books.slot("s4"), events=209, cpu=-14)),
    "a counter doubled": ("altered", "s4", lambda books: counters(books.slot("s4"), events=208)),
    "counters missing": ("lost", "s4", lambda books: books.slot("s4").update(counters=[])),
    "a counter missing": ("lost", "s4", lambda books: books.slot("s4")["counters"].pop()),
    "a counter invented": ("altered", "s4", lambda books: counters(books.slot("s4"), surprise=1)),
    "metadata lost": ("lost", "s4", lambda books: books.slot("s4").update(meta=[])),
    "metadata changed": ("altered", "s4", lambda books: books.slot("s4").update(meta=[("site", "x"), ("kind", "é")])),
    "another machine": ("altered", "s0", lambda books: books.slot("s0").update(machine="alone")),
    "another reason": ("altered", "s4", lambda books: books.slot("s4").update(reason="unspecified")),
    "expired early": ("early expiry", "s5", lambda books: books.slot("s5").update(state="expired")),
    "claimed after all": (
        "resurrected",
        "s4",
        lambda books: books.slot("s4").update(state="claimed", machine="alone", granted=0, reason=None),
    ),
    "a user's credits": (
        "not conserved",
        "credits of project p",
        lambda books: books.account("user", "ann").update(credits=99),
    ),
    "a user's counters": (
        "not conserved",
        "events of project p",
        lambda books: counters(books.account("user", "ann"), events=1),
    ),
    "a user missing": (
        "not conserved",
        "cpu of project p",
        lambda books: books.accounts.remove(books.account("user", "ann")),
    ),
    "what waits": (
        "not conserved",
        "credits of project p",
        lambda books: books.account("machine", "alone").update(waiting_credits=0),
    ),
    "a machine's credits": (
        "over-credited",
        "alone",
        lambda books: books.account("machine", "alone").update(credits=17),
    ),
    "a machine's counters": (
        "under-credited",
        "alone",
        lambda books: counters(books.account("machine", "alone"), events=203),
    ),
    "a machine missing": (
        "under-credited",
        "alone",
        lambda books: books.accounts.remove(books.account("machine", "alone")),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_under_its_name(histories, books, case):
    name, subject, harm = DAMAGE[case]
    harm(books)
    verdict = judged(histories, books)
    assert verdict.ruling == Ruling.INVALID
    assert (name, subject) in {(found.name, found.subject) for found in verdict.anomalies}
    about_slots = [found.name for found in verdict.anomalies if found.subject in histories]
    assert about_slots in ([], [name])


def test_credits_moved_from_machine_to_machine(histories, books):
    books.account("machine", "alone")["credits"] += 4
    books.account("machine", "linked")["credits"] -= 4
    verdict = judged(histories, books)
    assert [(found.name, found.subject, found.detail) for found in verdict.anomalies] == [
        ("over-credited", "alone", "in project p, its slots granted 16 credits, it has 20"),
        ("under-credited", "linked", "in project p, its slots granted 14 credits, it has 10"),
    ]


def test_the_slot_whose_grant_is_just_what_a_machine_has_too_much_shows_it(histories, books):
    books.account("machine", "alone")["credits"] += 11
    counters(books.account("machine", "linked"), events=99)
    found = {anomaly.subject: anomaly.slots for anomaly in judged(histories, books).anomalies}
    assert found["alone"] == ("s1",)
    assert set(found["linked"]) == {"s0", "s2"}  # none alone


def test_credits_that_show_in_another_project_have_leaked(histories, books):
    for project, more in (("p", -3), ("other", 3)):
        row = next(row for row in books.accounts if (row["project"], row["id"]) == (project, "alone"))
        row["credits"] += more
    found = [(anomaly.name, anomaly.subject) for anomaly in judged(histories, books).anomalies]
    assert sorted(found[:2]) == [("leaked", "alone"), ("under-credited", "alone")]


def test_what_waits_on_a_machine_that_has_a_user_is_found(histories, books):
    books.account("machine", "alone")["user"] = "bob"
    verdict = judged(histories, books)
    assert verdict.counts == {"not conserved": 3}  # credits, and two counters that are not 0
    assert verdict.anomalies[0].detail == "16 credits wait on it, though it belongs to a user"


@pytest.mark.parametrize(
    ("owners", "names"),
    [
        ({"linked": "ann"}, []),
        ({"linked": "bob"}, ["under-credited", "over-credited"]),
        ({}, ["over-credited", "under-credited"]),
    ],
)
def test_users_have_what_their_machines_earned(books, owners, names):
    verdict = Verdict()
    judge_books(View.of_tables(*books.tables()), verdict, owners)
    assert set(verdict.counts) == set(names)
    assert verdict.checked["users"] == 1


def test_slots_named_like_a_runs_own_are_strays(history_of, books):
    calls = [
        (kind, int(call["slot"][1:]) + 1, given) for kind, call in CALLS for given in [dict(call)] if given.pop("slot")
    ]
    calls = [(kind, number, given) for kind, number, given in calls if kind != "meta"]
    for row in books.slots:
        row.update(slot=f"w-{int(row['slot'][1:]) + 1}", meta=[])
    marks = [(op, 0, 0, 10 * op, 10 * op + 5) for op in range(len(calls))]
    history = history_of(calls, marks, direct=True, seen=SEEN)
    slots = next(books.tables())
    verdict = Verdict()
    judge_slots(history, slots, "p", verdict, fresh=True)
    assert [(anomaly.name, *anomaly.slots) for anomaly in verdict.anomalies] == [("leaked", "w-1")]
    books.slots.append(books.slots[0] | {"slot": "w-77", "project": "p"})
    books.slots = [row for row in books.slots if (row["project"], row["slot"]) != ("p", "w-1")]
    slots = next(books.tables())
    for fresh, names in ((True, {"leaked": 1, "phantom": 1}), (False, {"lost": 1})):
        verdict = Verdict()
        judge_slots(history, slots, "p", verdict, fresh=fresh)
        assert verdict.counts == names


def test_damage_is_described_field_by_field(histories, books):
    books.slot("s1").update(granted=12, machine="linked")
    found = judged(histories, books).anomalies[0]
    assert found.detail == "machine is 'linked', should be 'alone'; granted is 12, should be 11"
    books.slot("s1").update(granted=11, machine=None)
    found = judged(histories, books).anomalies[0]
    assert found.detail == "machine is none, should be 'alone'"


def test_slots_of_another_project_are_not_ours(histories, books):
    books.slots = [row for row in books.slots if row["project"] == "other"]
    verdict = Verdict()
    judge_histories(histories, next(books.tables()), "p", SEEN, verdict)
    assert verdict.counts == {"lost": 6}


def test_a_slot_that_cannot_be_there(histories, books):
    histories = {"s5": [Step("alloc", {"slot": "s5"}, Span(0, 0), applied=False)]}
    verdict = Verdict()
    judge_histories(histories, next(books.tables()), "p", SEEN, verdict)
    assert verdict.counts == {"phantom": 1}


def test_replies_that_contradict_the_protocol(histories, books):
    histories["s0"].append(Step("claim", {"slot": "s0", "machine": "m"}, Span(1, 1), applied=True, accepted=True))
    verdict = judged(histories, books)
    assert verdict.counts == {"resurrected": 1}
    assert verdict.anomalies[0].subject == "s0"


def test_an_unknown_outcome_allows_either_and_is_counted(histories, books):
    histories["s5"].append(Step("claim", {"slot": "s5", "machine": "m"}, Span(1, 1), applied=None))
    verdict = judged(histories, books)
    assert (verdict.ruling, verdict.uncertain) == (Ruling.VALID, 1)
    books.slot("s5").update(state="discarded")
    assert judged(histories, books).counts["phantom"] == 1  # nobody has discarded it


def test_what_was_not_seen_is_unknown_unless_something_is_wrong():
    verdict = Verdict()
    assert verdict.ruling == Ruling.VALID
    verdict.not_verified.append("The effect.")
    assert verdict.ruling == Ruling.UNKNOWN
    verdict.find("lost", "s", "gone")
    assert verdict.ruling == Ruling.INVALID


def test_anomalies_are_all_counted_and_some_are_kept():
    verdict = Verdict()
    for n in range(SHOWN_ANOMALIES + 5):
        verdict.find("lost", f"s{n}", "gone")
    document = verdict.document()
    assert document["verdict"] == "invalid"
    assert document["anomalies_by_name"] == {"lost": SHOWN_ANOMALIES + 5}
    assert len(document["anomalies"]) == SHOWN_ANOMALIES
    assert document["anomalies"][0] == {"name": "lost", "subject": "s0", "detail": "gone", "slots": []}


# Where only the outstanding slots are seen

LATER = Span(DAY_MINUTES * MINUTE_NS - 1, DAY_MINUTES * MINUTE_NS)
MUCH_LATER = Span(2 * DAY_MINUTES * MINUTE_NS, 2 * DAY_MINUTES * MINUTE_NS)
ACCEPTED, REFUSED, UNKNOWN = range(3)


@pytest.mark.parametrize(
    ("kinds", "last", "seen", "names"),
    [
        (["alloc"], ACCEPTED, SEEN, (None, "lost")),
        (["alloc", "claim"], ACCEPTED, SEEN, (None, None)),
        (["alloc", "discard"], ACCEPTED, SEEN, ("lost", None)),
        (["alloc", "claim"], UNKNOWN, SEEN, (None, None)),
        (["alloc"], UNKNOWN, SEEN, (None, None)),
        (["alloc"], ACCEPTED, LATER, (None, None)),
        (["alloc"], ACCEPTED, MUCH_LATER, ("late expiry", None)),
        (["alloc"], REFUSED, SEEN, ("wrongly refused", "wrongly refused")),
    ],
)
def test_outstanding_slots(history_of, kinds, last, seen, names):
    given = {"claim": {"machine": "m"}, "discard": {"reason": "r"}}
    calls = [(kind, 1, given.get(kind, {})) for kind in kinds]
    marks = [(op, ACCEPTED, 0, 10 * op, 10 * op + 5) for op in range(len(kinds))]
    marks[-1] = (len(kinds) - 1, last, last == REFUSED, *marks[-1][3:])
    history = history_of(calls, marks, direct=True, seen=seen)
    for outstanding, name in zip(({"w-1", "another's"}, {"another's"}), names, strict=True):
        verdict = Verdict()
        judge_outstanding(history, outstanding, verdict)
        assert list(verdict.counts) == ([] if name is None else [name])
        assert verdict.checked == {"slots": 1}


def test_a_claimed_slot_that_is_still_listed_is_not_lost(history_of):
    """Nobody can say that it was claimed; with the quirk `slots-list-claimed` it is listed as it should be."""
    calls = [("alloc", 1, {}), ("claim", 1, {"machine": "m"}), ("alloc", 2, {}), ("discard", 2, {"reason": "r"})]
    marks = [(op, ACCEPTED, 0, 10 * op, 10 * op + 5) for op in range(len(calls))]
    history = history_of(calls, marks, direct=True, seen=SEEN)
    for known, explained in ((frozenset(), {}), (frozenset({"slots-list-claimed"}), {"slots-list-claimed": 1})):
        verdict = Verdict()
        judge_outstanding(history, {"w-1", "w-2"}, verdict, known)
        assert verdict.counts == {"lost": 1}
        assert verdict.anomalies[0].subject == "w-2"
        assert verdict.explained == explained
        assert verdict.unknowns()[0].startswith("Whether 1 slots were claimed: they are still listed")
