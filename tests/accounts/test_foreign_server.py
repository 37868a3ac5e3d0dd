"""A server of somebody else, which shows a part of its accounts: the verdict rests on that part, and says so."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from foreign import Accounts, parquet, serving, tables

SCENARIO = """
description = "everything, in small"
duration = "1d"
population = { machines = 6, users = 4 }
arrivals = { model = "constant", jobs = 30 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 0.7, never = 0.1, discard = { late = 0.2 } }
credits = { policy = "range", min = 5, max = 20, claim = { model = "uniform", low = 1, high = 30 } }
counters.claim = { events = { model = "poisson", mean = 100 }, success = 1 }
counters.discard = { failure = 1 }
metadata = { site = ["here", "there"] }
"""


def no(unverified, table, column):
    return f"{unverified}: the server's table of {table} has no column `{column}`."


HELD = "Whether users have, with what waits on machines, the"
NO_GRANTED = no("The credits that claims granted, and whether accounts have these credits", "slots", "granted")
NO_SLOTS = "Slots, and whether accounts have what claimed slots granted: the server shows no table of slots."
NO_MACHINES = "Whether machines have what their slots granted: the server shows no table of machines."
NO_USERS = "Whether users have what their machines earned: the server shows no table of users."
NO_WAITING = [
    no(f"{HELD} credits that claims granted", "machines", "waiting_credits"),
    no(f"{HELD} counters of claimed slots", "machines", "waiting_counters"),
]


def files(change):
    """What is shown once the tables of slots and accounts have been changed; None is not shown."""

    def shows(accounts):
        shown = zip(("slots.parquet", "accounts.parquet"), change(*tables(accounts)), strict=True)
        return {name: parquet(table) for name, table in shown if table is not None}

    return shows


def lines(kinds=("slot", "machine", "user", "project"), without=()):
    """All as lines: of some kinds, without some columns."""

    def shows(accounts):
        kept = [
            {"type": kind} | {name: value for name, value in row.items() if name not in without}
            for kind, rows in accounts.rows().items()
            if kind in kinds
            for row in rows
        ]
        return {"ledger.jsonl": "\n".join(map(json.dumps, kept)).encode()}

    return shows


@pytest.fixture
def judged(cpsim, tmp_path, monkeypatch):
    """judged(shows, harm=...): exit status and JSON, or summary, of `cpsim run` at a server that shows so much."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SCENARIO, encoding="utf-8")
    Path("secret").write_text("secret", encoding="utf-8")

    def judge(shows, harm=lambda accounts: None, *, as_json=True):
        def shows_harmed(accounts):
            harmed = Accounts()
            harmed.slots = {slot_id: dict(slot) for slot_id, slot in accounts.slots.items()}
            harm(harmed)
            return shows(harmed)

        with serving(Accounts(), shows_harmed) as url:
            named = ["--target", f"{url}/api", "--project", "p", "--secret-file", "secret", "--output", "out"]
            named += ["--json"] if as_json else []
            status, out, err = cpsim("run", "small.toml", *named)
        assert err == ""
        judged_again = cpsim("judge", "out", "--json")
        assert judged_again[:2] == (status, Path("out/verdict.json").read_text(encoding="utf-8"))
        return status, json.loads(out) if as_json else out

    return judge


def test_a_server_that_shows_all_is_valid(judged):
    status, document = judged(files(lambda slots, accounts: (slots, accounts)))
    assert (status, document["verdict"], document["not_verified"], document["anomalies"]) == (0, "valid", [], [])
    assert document["checked"] == {"slots": 30, "machines": 6, "sums": 12, "replies": document["operations"]}
    ledger = pq.read_table("out/ledger.parquet")
    assert "colour" not in ledger.column_names
    assert ledger.schema.field("state").type == pa.string()
    assert set(pq.read_table("out/accounts.parquet")["kind"].to_pylist()) == {"machine", "user", "project"}


def slots_without(*columns):
    return files(lambda slots, accounts: (slots.drop_columns(columns), accounts))


def accounts_without(*columns, kinds=("machine", "user", "project")):
    def change(slots, accounts):
        return slots, accounts.filter(pc.is_in(accounts["kind"], pa.array(kinds))).drop_columns(columns)

    return files(change)


CASES = {
    "no granted": (slots_without("granted"), {"slots": 30, "machines": 6, "sums": 9}, [NO_GRANTED]),
    "no counters of slots": (
        slots_without("counters"),
        {"slots": 30, "machines": 6, "sums": 3},
        [no("The counters of slots, and whether accounts have these counters", "slots", "counters")],
    ),
    "no machine of slots": (
        slots_without("machine"),
        {"slots": 30, "sums": 12},
        [
            no(
                "Which machines claimed slots, and whether each machine has what its own slots granted",
                "slots",
                "machine",
            )
        ],
    ),
    "no reason and no metadata": (
        slots_without("reason", "meta"),
        {"slots": 30, "machines": 6, "sums": 12},
        [no("The reasons of discards", "slots", "reason"), no("The metadata of slots", "slots", "meta")],
    ),
    "no state": (
        slots_without("state"),
        {},
        [no("The states of slots, and whether accounts have what claimed slots granted", "slots", "state")],
    ),
    "no slots": (files(lambda slots, accounts: (None, accounts)), {}, [NO_SLOTS]),
    "no accounts": (files(lambda slots, accounts: (slots, None)), {"slots": 30}, [NO_MACHINES, NO_USERS]),
    "no users": (
        accounts_without("waiting_credits", "waiting_counters", kinds=["machine"]),
        {"slots": 30, "machines": 6, "sums": 4},
        [*NO_WAITING, NO_USERS],
    ),
    "no machines": (
        accounts_without("waiting_credits", "waiting_counters", kinds=["user"]),
        {"slots": 30},
        [NO_MACHINES],
    ),
    "no counters of accounts": (
        accounts_without("counters", "waiting_counters"),
        {"slots": 30, "machines": 6, "sums": 3},
        [
            no("Whether machines have the counters of their slots", "machines", "counters"),
            NO_WAITING[1],
            no("Whether users have the counters that their machines earned", "users", "counters"),
        ],
    ),
    "nothing": (lambda _: {}, {}, [NO_SLOTS, NO_MACHINES, NO_USERS]),
    "lines without granted": (lines(without=["granted"]), {"slots": 30, "machines": 6, "sums": 9}, [NO_GRANTED]),
    "lines of slots alone": (lines(["slot"]), {"slots": 30}, [NO_MACHINES, NO_USERS]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_shown_is_not_verified(judged, case):
    shows, checked, sentences = CASES[case]
    status, document = judged(shows)
    assert (status, document["verdict"], document["anomalies"]) == (2, "unknown", [])
    assert document["not_verified"] == sentences
    assert document["checked"] == checked | {"replies": document["operations"]}


@pytest.mark.parametrize(
    ("shows", "said", "on_page"),
    [
        (files(lambda slots, accounts: (slots, accounts)), r"^credits +\d+ granted, conserved$", True),
        (files(lambda slots, accounts: (slots, None)), r"^credits +\d+ granted$", True),
        (accounts_without("waiting_credits"), r"^credits +\d+ granted$", True),
        (slots_without("granted"), None, False),
        (slots_without("state"), r"^credits +\d+ granted$", True),
    ],
)
def test_credits_are_said_to_be_conserved_only_where_it_shows(judged, shows, said, on_page):
    _, out = judged(shows, as_json=False)
    assert re.search(said or "^verdict", out, re.MULTILINE)
    assert ("conserved" in out) == ("conserved" in (said or ""))
    assert ("credits granted" in Path("out/report.html").read_text()) == on_page


def test_lines_show_as_much_as_tables(judged):
    status, document = judged(lines())
    assert (status, document["verdict"], document["not_verified"]) == (0, "valid", [])
    assert document["checked"] == {"slots": 30, "machines": 6, "sums": 12, "replies": document["operations"]}


def drop_a_claim(accounts):
    slot = next(slot for slot in accounts.slots.values() if slot["state"] == "claimed")
    slot.update(state="allocated")
    slot.pop("machine"), slot.pop("granted")


def grant_more(accounts):
    slot = next(slot for slot in accounts.slots.values() if slot["state"] == "claimed")
    slot["granted"] += 1


@pytest.mark.parametrize(
    ("harm", "hidden", "found"),
    [
        (drop_a_claim, [], {"lost": 1}),
        (drop_a_claim, ["granted", "counters", "meta", "machine", "reason"], {"lost": 1}),
        (grant_more, [], {"over-credited": 1}),
        (grant_more, ["counters"], {"over-credited": 1}),
        (grant_more, ["granted"], {}),
    ],
)
def test_what_is_shown_is_judged_all_the_same(judged, harm, hidden, found):
    shows = files(lambda slots, accounts: (slots.drop_columns(hidden), accounts))
    status, document = judged(shows, harm)
    assert (status, document["anomalies_by_name"]) == (1 if found else 2, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda slots, accounts: (
                slots.set_column(slots.column_names.index("granted"), "granted", slots["granted"].cast(pa.float64())),
                accounts,
            ),
            "column `granted` of the table of slots has the type double, expected int64",
        ),
        (
            lambda slots, accounts: (slots, accounts.rename_columns({"id": "identity"})),
            "column `id` of the table of accounts is missing, expected string; the table has kind, project, user, ",
        ),
        (
            lambda slots, accounts: (slots.drop_columns("slot"), accounts),
            "column `slot` of the table of slots is missing, expected string; the table has project, ",
        ),
    ],
)
def test_a_table_that_is_wrong_is_named(judged, change, message):
    status, document = judged(files(change))
    assert (status, document["verdict"], document["anomalies"]) == (2, "unknown", [])
    assert document["checked"] == {"replies": document["operations"]}
    (sentence,) = document["not_verified"]
    assert sentence.startswith("Whether commands were applied: the accounts of http://127.0.0.1:")
    assert message in sentence
