"""The contract of a view: types are cast, what does not fit is named, what is not shown is told."""

import json
import random
from dataclasses import replace

import pyarrow as pa
import pytest

from cpsim.accounts.view import ACCOUNTS, CONTRACTS, UnfitTable, View
from cpsim.fake import Fake
from cpsim.judge.books import judge_books
from cpsim.judge.model import Span, Step
from cpsim.judge.slots import judge_histories
from cpsim.judge.verdict import Verdict

CALLS = [
    *(("alloc", {"slot": f"s{n}", "min": 5, "max": 20}) for n in range(6)),
    *(("counters", {"slot": f"s{n}", "events": 100 + n, "cpu": -7}) for n in range(5)),
    *(("meta", {"slot": f"s{n}", "site": "here"}) for n in range(6)),
    ("claim", {"slot": "s0", "machine": "linked", "credits": 9}),
    ("claim", {"slot": "s1", "machine": "alone", "credits": 11}),
    ("claim", {"slot": "s2", "machine": "linked"}),
    ("discard", {"slot": "s4", "reason": "late"}),
]
OWNERS = {"linked": "ann"}


@pytest.fixture(scope="module")
def lines():
    """The lines of a ledger in which all is right, with a line for its project."""
    with Fake({"p": "hush"}) as fake:
        fake.accounts.link(list(OWNERS.items()))
        fake.accounts.apply("p", CALLS)
        lines = [json.loads(line) for line in fake.inspector.ledger_jsonl().splitlines()]
    machines = [line for line in lines if line["type"] == "machine"]
    counters = {name: sum(line["counters"][name] for line in machines) for name in ("events", "cpu")}
    credits = sum(line["credits"] for line in machines)
    return [*lines, {"type": "project", "project": "p", "credits": credits, "counters": counters}]


@pytest.fixture
def view(lines):
    return View.of_lines(enumerate(lines, 1))


def judged(view):
    """The verdict on what is shown, of slots and of books."""
    verdict = Verdict()
    histories = {}
    for kind, arguments in CALLS:
        histories.setdefault(arguments["slot"], []).append(Step(kind, arguments, Span(0, 0), applied=True))
    if view.slots is not None and "state" in view.slots.column_names:
        judge_histories(histories, view.slots, "p", Span(10, 20), verdict)
    judge_books(view, verdict, OWNERS)
    return verdict


def some_of(view, draw):
    """The view without some of its tables and columns."""
    tables = {}
    for name, contract in CONTRACTS.items():
        hidden = [c.name for c in contract.columns if not c.identifies and draw.random() < 0.2]
        tables[name] = getattr(view, name).drop_columns(hidden) if draw.random() < 0.9 else None
    return View(**tables)


def test_all_that_is_shown_is_checked(view):
    verdict = judged(view)
    assert (verdict.anomalies, list(view.missing())) == ([], [])
    assert verdict.checked == {"slots": 6, "machines": 2, "users": 1, "sums": 9}


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_hidden_nothing_right_is_found_wrong_and_all_that_is_hidden_is_told(view, seed):
    part = some_of(view, random.Random(seed))
    assert judged(part).anomalies == []
    sentences = list(part.missing())
    assert len(set(sentences)) == len(sentences)
    for name, contract in CONTRACTS.items():
        table = getattr(part, name)
        if table is None:
            assert any(f"no table of {name}." in each for each in sentences) == bool(contract.shows)
            continue
        for column in contract.columns:
            told = any(f"the server's table of {name} has no column `{column.name}`." in each for each in sentences)
            assert told == (bool(column.shows) and column.name not in table.column_names)


@pytest.mark.parametrize(
    ("table", "column", "row", "value"),
    [
        ("slots", "machine", 0, "alone"),
        ("slots", "granted", 0, 10),
        ("slots", "reason", 4, "early"),
        ("slots", "counters", 0, [("events", 1)]),
        ("slots", "meta", 0, []),
        ("slots", "state", 3, "expired"),
        ("machines", "user", 1, "bob"),
        ("machines", "credits", 0, 1),
        ("machines", "counters", 0, []),
        ("machines", "waiting_credits", 1, 0),
        ("machines", "waiting_counters", 1, []),
        ("users", "credits", 0, 1),
        ("users", "counters", 0, []),
        ("projects", "credits", 0, 1),
        ("projects", "counters", 0, []),
    ],
)
def test_what_is_wrong_in_a_column_is_found_if_and_only_if_it_is_shown(view, table, column, row, value):
    right = getattr(view, table)
    place = right.column_names.index(column)
    values = right[column].to_pylist()
    assert values[row] != value
    values[row] = value
    wrong = right.set_column(place, column, pa.array(values, right[column].type))
    tables = {name: getattr(view, name) for name in CONTRACTS}
    assert judged(View(**tables | {table: wrong})).counts
    assert not judged(View(**tables | {table: wrong.drop_columns(column)})).counts


def test_a_view_of_its_own_tables_is_the_same(view):
    assert view.accounts.schema == ACCOUNTS
    again = View.of_tables(view.slots, view.accounts)
    assert all(getattr(again, name).equals(getattr(view, name)) for name in CONTRACTS)


@pytest.mark.parametrize("seed", range(20))
def test_tables_of_a_part_show_the_same_part(view, seed):
    part = some_of(view, random.Random(seed))
    if part.users is None and part.machines is not None:  # who shows what waits shows users
        waits = {"waiting_credits", "waiting_counters"} & set(part.machines.column_names)
        part = replace(part, machines=part.machines.drop_columns([*waits]))
    again = View.of_tables(part.slots, part.accounts)
    assert list(again.missing()) == list(part.missing())


def test_other_widths_and_encodings_are_cast(view):
    slots = view.slots
    types = {"project": pa.dictionary(pa.int16(), pa.large_string()), "slot": pa.large_string()}
    types |= {"granted": pa.uint8(), "min": pa.int16(), "counters": pa.map_(pa.large_string(), pa.int32())}
    other = pa.table({name: slots[name].cast(types.get(name, slots[name].type)) for name in slots.column_names})
    assert other.schema != slots.schema
    assert View.of_tables(other, None).slots.equals(slots)


def test_columns_that_nobody_knows_are_ignored(view):
    more = view.slots.append_column("colour", pa.array([None] * len(view.slots)))
    assert View.of_tables(more, None).slots.equals(view.slots)


def changed(table, column, values):
    return table.set_column(table.column_names.index(column), column, values)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("granted", pa.array([1.5] * 6), "column `granted` of the table of slots has the type double, expected int64"),
        (
            "granted",
            pa.array([2**63] * 6, pa.uint64()),
            "column `granted` of the table of slots has values that are not",
        ),
        ("machine", pa.array([1] * 6), "column `machine` of the table of slots has the type int64, expected string"),
        (
            "counters",
            pa.array([[("a", "b")]] * 6, pa.map_(pa.string(), pa.string())),
            r"column `counters` of the table of slots has the type map<string, string.*>, expected map<string, int64",
        ),
        (
            "meta",
            pa.array(["x"] * 6),
            "column `meta` of the table of slots has the type string, expected map<string, str",
        ),
        (
            "state",
            pa.array([*["claimed"] * 5, None]),
            "column `state` of the table of slots is null in 1 of 6 rows, expected a value in each",
        ),
        (
            "slot",
            pa.array([None] * 6, pa.string()),
            "column `slot` of the table of slots is null in 6 of 6 rows, expected a value in each",
        ),
    ],
)
def test_a_column_that_does_not_fit_is_named(view, column, values, message):
    with pytest.raises(UnfitTable, match=message):
        View.of_tables(changed(view.slots, column, values), None)


def test_a_column_that_is_there_twice_is_named(view):
    with pytest.raises(UnfitTable, match="column `state` of the table of slots is there 2 times, expected once"):
        View.of_tables(view.slots.append_column("state", view.slots["state"]), None)
    with pytest.raises(UnfitTable, match="column `credits` of the table of machines is there 2 times, expected once"):
        View.of_tables(None, view.accounts.append_column("credits", view.accounts["credits"]))


@pytest.mark.parametrize("column", ["project", "kind", "id"])
def test_accounts_without_what_identifies_them_are_named(view, column):
    with pytest.raises(
        UnfitTable, match=f"column `{column}` of the table of .* is missing, expected string; the table has"
    ):
        View.of_tables(None, view.accounts.drop_columns(column))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granted": 1.5}, "column `granted` of the table of slots is 1.5, expected int64: a whole number"),
        ({"granted": True}, "column `granted` of the table of slots is True, expected int64: a whole number"),
        ({"granted": "5"}, "column `granted` of the table of slots is '5', expected int64: .* without quotes"),
        ({"granted": 2**64}, "column `granted` of the table of slots is 18446744073709551616, expected int64"),
        ({"machine": 5}, "column `machine` of the table of slots is 5, expected string: a text, in JSON within quotes"),
        ({"counters": {"a": 1.5}}, "column `counters` of the table of slots is {'a': 1.5}, expected map<string, int64"),
        ({"counters": {"a": 2**63}}, "column `counters` of the table of slots is {'a': 9.*}, expected map<"),
        ({"counters": [1]}, r"column `counters` of the table of slots is \[1\], expected map<string, int64"),
        ({"meta": {"a": 1}}, "column `meta` of the table of slots is {'a': 1}, expected map<string, string"),
        ({"type": "slots"}, "has the `type` 'slots', expected slot, machine, user, project"),
        ({"type": ["slot"]}, r"has the `type` \['slot'\], expected slot"),
    ],
)
def test_a_line_that_does_not_fit_is_named(lines, changes, message):
    first = next(place for place, line in enumerate(lines) if line["type"] == "slot")
    with pytest.raises(UnfitTable, match=f"^line {first + 1}:? {message}"):
        View.of_lines(enumerate([*lines[:first], lines[first] | changes, *lines[first + 1 :]], 1))


def test_a_column_of_nulls_is_shown_where_null_says_something(view):
    nulls = pa.nulls(6)
    slots = view.slots
    for column in ("state", "counters", "machine", "granted"):
        slots = changed(slots, column, nulls)
    shown = View.of_tables(slots, None).slots
    assert {"state", "counters"}.isdisjoint(shown.column_names)
    assert {"machine", "granted"} <= set(shown.column_names)


@pytest.mark.parametrize("state", ["claimed", "allocated"])
def test_no_row_says_that_there_is_none_only_where_none_is_needed(view, state):
    slots = changed(view.slots, "state", pa.array([state] * 6))
    shown = View.of_tables(slots, view.accounts.slice(0, 0))
    assert (shown.machines is None, shown.users is None) == (state == "claimed", state == "claimed")
