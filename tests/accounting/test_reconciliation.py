"""What a client's journal says, against what the ledger says: every kind of difference, and what is none."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpsim.accounting import Accounts, build
from cpsim.protocol import arguments

from .conftest import cells


class Run:
    """A run folder whose journal is written by hand, with typed arguments or as text, as earlier versions did."""

    def __init__(self, site, tmp_path, is_typed):
        self.site = site
        self.folder = tmp_path / "run"
        self.rows = []
        self.is_typed = is_typed

    def sent(self, slot, kind, arguments="", outcome="accepted"):
        row = {"id": len(self.rows), "slot": slot, "kind": kind, "arguments": arguments, "outcome": outcome}
        self.rows.append({**row, "error": "", "sent_us": 0, "answered_us": 1})

    def load(self, **options):
        self.folder.mkdir()
        export = self.site.export()
        (export / "slots.parquet").rename(self.folder / "ledger.parquet")
        (export / "accounts.parquet").rename(self.folder / "accounts.parquet")
        schema = pa.schema([("id", pa.int64()), ("slot", pa.string()), ("kind", pa.string())])
        for name in ("arguments", "outcome", "error"):
            schema = schema.append(pa.field(name, pa.string()))
        for name in ("sent_us", "answered_us"):
            schema = schema.append(pa.field(name, pa.int64()))
        table = pa.Table.from_pylist(self.rows, schema)
        pq.write_table(typed(table) if self.is_typed else table, self.folder / "journal.parquet")
        (self.folder / "run.json").write_text(json.dumps({"slot_prefix": "x", "project": "p"}))
        return Accounts.load(self.folder, **options)


def typed(table):
    """A journal with its arguments in columns."""
    texts = zip(table["kind"].to_pylist(), table["arguments"].to_pylist(), strict=True)
    rows = [(kind, dict(pair.split("=") for pair in text.split(",") if pair)) for kind, text in texts]
    table = table.drop_columns("arguments")
    for field, column in zip(arguments.fields(), arguments.of_rows(rows), strict=True):
        table = table.append_column(field, column)
    return table


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.thorough)], ids=["typed", "text"])
def run(request, site, tmp_path):
    return Run(site, tmp_path, request.param)


def allocated(run, **terms):
    run.site.alloc("x-1", **terms)
    run.sent("x-1", "alloc", ",".join(f"{name}={value}" for name, value in terms.items()))


def agreeing(run):
    allocated(run, min=5, max=20)
    run.site.count("x-1", a=1, b=2)
    run.sent("x-1", "counters", "a=1,b=2")
    run.site.claim("x-1", "m", credits=3)
    run.sent("x-1", "claim", "machine=m,credits=3")


def lost(run):
    run.sent("x-1", "alloc")


def lost_claim(run):
    allocated(run, credits=7)
    run.sent("x-1", "claim", "machine=m")


def lost_discard(run):
    allocated(run)
    run.sent("x-1", "discard", "reason=lost")


def twice(run):
    allocated(run)
    run.site.claim("x-1", "m")
    run.sent("x-1", "claim", "machine=m")
    run.sent("x-1", "claim", "machine=m")


def both(run):
    allocated(run)
    run.site.claim("x-1", "m")
    run.sent("x-1", "claim", "machine=m")
    run.sent("x-1", "discard", "reason=lost")


def another_machine(run):
    allocated(run)
    run.site.claim("x-1", "n")
    run.sent("x-1", "claim", "machine=m")


def other_credits(run):
    allocated(run, min=5, max=20)
    run.site.claim("x-1", "m", credits=6)
    run.sent("x-1", "claim", "credits=60,machine=m")


def never_claimed(run):
    allocated(run)
    run.site.claim("x-1", "m")


def never_discarded(run):
    allocated(run)
    run.site.apply(("discard", {"slot": "x-1"}))
    run.sent("x-1", "discard", outcome="refused")


def unsent(run):
    run.site.alloc("x-1")


def lost_counters(run):
    allocated(run)
    run.sent("x-1", "counters", "a=1")


def other_counters(run):
    allocated(run)
    run.site.count("x-1", a=1, b=2)
    run.sent("x-1", "counters", "a=2,b=1")


def unknown_counters_from_nowhere(run):
    allocated(run)
    run.site.count("x-1", a=1)


def added_counters(run):
    allocated(run)
    for _ in range(2):
        run.site.count("x-1", a=1, b=-2)
        run.sent("x-1", "counters", "b=-2,a=1")


def unknown_claim(run, *, applied=True):
    allocated(run, credits=4)
    run.sent("x-1", "claim", "machine=m", outcome="unknown")
    if applied:
        run.site.claim("x-1", "m")


def unknown_discard(run):
    allocated(run)
    run.sent("x-1", "discard", "reason=lost", outcome="unknown")


def refused(run):
    run.sent("x-1", "alloc", "min=5,max=1", outcome="refused")
    run.sent("x-1", "claim", "machine=m", outcome="refused")


@pytest.mark.parametrize(
    ("happen", "finding", "acknowledged", "granted"),
    [
        (agreeing, "agrees", 5, 5),
        (refused, "agrees", 0, 0),
        (added_counters, "agrees", 0, 0),
        (unknown_claim, "a reply was lost: the command was applied", 0, 4),
        (lambda run: unknown_claim(run, applied=False), "a reply was lost: the command was not applied", 0, 0),
        (unknown_discard, "a reply was lost: the command was not applied", 0, 0),
        (lost, "acknowledged, but the ledger has no such slot", 0, 0),
        (lost_claim, "claim acknowledged, but the slot is allocated", 7, 0),
        (lost_discard, "discard acknowledged, but the slot is allocated", 0, 0),
        (twice, "claims acknowledged more than once", 0, 1),
        (both, "both a claim and a discard acknowledged", 1, 1),
        (another_machine, "claimed by another machine", 1, 1),
        (other_credits, "granted other credits than were due", 20, 6),
        (never_claimed, "claimed, but the journal has no such claim", 0, 1),
        (never_discarded, "discarded, but the journal has no such discard", 0, 0),
        (unsent, "in the ledger, but the journal has no such slot", 0, 0),
        (lost_counters, "counters differ", 0, 0),
        (other_counters, "counters differ", 0, 0),
        (unknown_counters_from_nowhere, "counters differ", 0, 0),
    ],
)
def test_every_finding(run, happen, finding, acknowledged, granted):
    happen(run)
    run.site.alloc("somebody-elses", credits=3)
    run.site.alloc("x-1", project="q")
    with run.load() as accounts:
        found = accounts.reconciliation
        assert cells(found, "finding", "slots", "acknowledged_credits", "granted_credits") == [
            (finding, 1, acknowledged, granted)
        ]
        assert found["difference_credits"].tolist() == [granted - acknowledged]
        differing = accounts.differences()
        none = finding.startswith(("agrees", "a reply"))
        assert cells(differing, "slot", "finding") == ([] if none else [("x-1", finding)])


def test_a_difference_is_told_with_both_sides(run):
    another_machine(run)
    with run.load() as accounts:
        columns = ("claims_acknowledged", "claimed_for", "due_credits", "ledger_state", "ledger_machine")
        assert cells(accounts.differences(), *columns) == [(1, "m", 1, "claimed", "n")]


@pytest.mark.parametrize(
    ("terms", "asked", "granted", "rule"),
    [
        ({"credits": 7}, "credits=9", 7, "fixed at allocation"),
        ({"min": 5, "max": 20}, "credits=9", 9, "as asked"),
        ({"min": 5, "max": 20}, "credits=20", 20, "as asked"),
        ({"min": 5, "max": 20}, "credits=21", 20, "limited to the maximum"),
        ({"min": 5, "max": 20}, "credits=4", 5, "raised to the minimum"),
        ({"min": 5, "max": 20}, "", 5, "raised to the minimum"),
        ({"max": 20}, "", 1, "default of 1"),
        ({"max": 20}, "credits=9", 9, "as asked"),
        ({"max": 20}, "credits=30", 20, "limited to the maximum"),
        ({"min": 5}, "credits=30", 30, "as asked"),
        ({"min": 5}, "credits=3", 5, "raised to the minimum"),
        ({}, "credits=0", 0, "as asked"),
        ({"min": 6, "max": 6}, "credits=9", 6, "the only amount allowed"),
    ],
)
def test_the_rule_that_decided_a_grant(run, terms, asked, granted, rule):
    """In a statement, and in the sums of all."""
    allocated(run, **terms)
    given = {"credits": int(asked.removeprefix("credits="))} if asked else {}
    run.site.claim("x-1", "m", **given)
    run.sent("x-1", "claim", f"machine=m,{asked}".strip(","))
    with run.load() as accounts:
        assert cells(accounts.grants("machine", [("p", "m")]), "slot", "rule", "credits") == [("x-1", rule, granted)]
        assert cells(accounts.rules, "rule", "slots", "credits") == [(rule, 1, granted)]
        assert accounts.reconciliation["finding"].tolist() == ["agrees"]


def test_a_grant_that_the_terms_do_not_allow(run, make_site):
    run.site = make_site("float-credits")  # takes a minimum above the maximum
    allocated(run, min=9, max=5)
    run.site.claim("x-1", "m", credits=7)
    run.sent("x-1", "claim", "machine=m,credits=7")
    with run.load() as accounts:
        assert accounts.rules["rule"].tolist() == ["against the terms"]
        assert accounts.machines["against_terms"].tolist() == [1]


def test_without_a_journal_there_is_nothing_to_reconcile(site):
    with site.load() as accounts:
        assert accounts.reconciliation is None
        assert accounts.differences().empty


def test_the_rule_of_a_grant_to_others_follows_from_the_terms(run):
    """Of the same project, which the journal does not know, and of another one: sums of rules are those of all."""
    agreeing(run)
    run.site.alloc("of-others", min=2, max=9)
    run.site.claim("of-others", "m", credits=20)
    run.site.alloc("x-1", project="q", credits=30)
    run.site.claim("x-1", "m", project="q")
    with run.load() as accounts:
        assert cells(accounts.rules, "project", "rule", "slots", "credits") == [
            ("p", "at the maximum", 1, 9),
            ("p", "raised to the minimum", 1, 5),
            ("q", "fixed at allocation", 1, 30),
        ]
        assert cells(accounts.reconciliation, "finding", "slots", "granted_credits") == [("agrees", 1, 5)]
        (report,) = build(accounts, ["reconciliation"])
        note, by_finding = report.blocks
        assert note.text == "All 1 slots agree, and so do the credits."
        assert cells(by_finding.frame, "finding", "slots", "acknowledged_credits", "granted_credits") == [
            ("agrees", 1, 5, 5),
            ("not of this run: not compared", 2, None, 39),
        ]


def test_a_journal_is_not_compared_with_another_project(run):
    agreeing(run)
    run.site.alloc("x-1", project="q")
    with run.load(projects=["q"]) as accounts:
        assert accounts.reconciliation is None
        assert build(accounts, ["anomalies"])
