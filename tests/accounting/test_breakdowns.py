"""Every table that breaks a figure down adds up to it: of random ledgers, journals and periods, in every report."""

import json
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st

from cpsim.accounting import Accounts, Figure, Note, build
from cpsim.config import catalog
from cpsim.errors import CpsimError

from .conftest import DAY_US, START_US, Site

TERMS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"credits": st.integers(0, 50)}),
    st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: {"min": min(pair), "max": max(pair)}),
    st.fixed_dictionaries({"min": st.integers(0, 20)}),
)
DAYS = st.tuples(st.integers(0, 2), st.sampled_from([0, 5, 10])).map(lambda pair: pair[0] + pair[1] / 1440)
"""Within minutes of a few midnights, so that much lies close to where a period begins or ends, or just there."""
MACHINES = st.sampled_from(["m1", "m2", "m3", "-"])
SLOT = st.fixed_dictionaries(
    {
        "project": st.sampled_from(["p", "p", "q"]),
        "prefix": st.sampled_from(["x", "x", "y"]),  # x: of the run
        "journal": st.sampled_from(["whole", "whole", "none", "alloc", "unanswered", "invented"]),
        "terms": TERMS,
        "expire": st.sampled_from([60, 1440, 14400]),
        "at": DAYS,
        "took": DAYS,
        "end": st.sampled_from(["claim", "claim", "claim", "discard", "none"]),
        "machine": MACHINES,
        "asked": st.one_of(st.none(), st.integers(0, 60)),
        "reason": st.sampled_from(["lost", "failed", None]),
        "counters": st.dictionaries(st.sampled_from(["events", "job/cpuusage"]), st.integers(0, 99), max_size=2),
    }
)
"""The life of a slot, and which part of it the journal of a run has; what is invented is there alone."""
LAST = {
    "project": "p",
    "prefix": "x",
    "journal": "whole",
    "terms": {},
    "expire": 14400,
    "at": 0,
    "took": 6,
    "end": "none",
    "counters": {"a": 1},
}
"""It makes the whole so long that the shortest interval that sums tell apart is a quarter of an hour."""
LINK = st.tuples(DAYS, st.sampled_from(["link", "link", "release"]), MACHINES, st.sampled_from(["ann", "bob"]))
MOMENT = st.one_of(st.none(), *2 * [DAYS.map(lambda days: START_US + round(days * DAY_US))])
CUT = st.fixed_dictionaries(
    {
        "period": st.tuples(MOMENT, MOMENT).filter(lambda pair: None in pair or pair[0] <= pair[1]),
        "projects": st.sampled_from([(), (), ("p",), ("q",)]),
        "timezone": st.sampled_from(["UTC", "Africa/Cairo", "Australia/Lord_Howe"]),
        "top": st.integers(1, 4),
    }
)


COUNTED = ["allocated", "outstanding", "claimed", "discarded", "expired", "credits", "waiting_credits"]
COUNTED += [f"period_{name}" for name in ("allocated", "claimed", "discarded", "expired", "credits")]


def commands(number, slot):
    """A slot's commands: the time in days, name, kind, arguments, and whether the journal has it."""
    name = f"{slot['prefix']}-{number}"
    yield slot["at"], name, "alloc", {**slot["terms"], "expire": slot["expire"]}, slot["journal"] != "none"
    ended, seen = slot["at"] + slot["took"], slot["journal"] in {"whole", "unanswered", "invented"}
    if slot["counters"]:
        yield ended, name, "counters", slot["counters"], seen
    if slot["end"] == "claim":
        asked = {} if slot["asked"] is None else {"credits": slot["asked"]}
        yield ended, name, "claim", {"machine": slot["machine"], **asked}, seen
    elif slot["end"] == "discard":
        yield ended, name, "discard", {} if slot["reason"] is None else {"reason": slot["reason"]}, seen


def play(folder, slots, links):
    """Let a server apply it all in the order of time; the rows of the journal."""
    site = Site(folder)
    todo = [(at, 1, slot, command) for n, slot in enumerate(slots) for at, *command in commands(n, slot)]
    todo += [(at, 0, None, link) for at, *link in links]
    rows = []
    for at, _, slot, what in sorted(todo, key=lambda event: event[:2]):
        site.at(at)
        if slot is None:
            kind, machine, user = what
            site.server.link([(machine, user)]) if kind == "link" else site.server.release([machine])
            continue
        name, kind, arguments, is_seen = what
        errors = []
        if slot["journal"] != "invented":
            errors = site.apply((kind, {"slot": name, **arguments}), project=slot["project"])
        if is_seen and slot["project"] == "p":
            outcome = "unknown" if slot["journal"] == "unanswered" else "refused" if errors else "accepted"
            said = ",".join(f"{key}={value}" for key, value in arguments.items())
            rows.append({"slot": name, "kind": kind, "arguments": said, "outcome": outcome})
    site.export()
    return rows


def write_run(folder, rows, project):
    """Make a run folder of an export."""
    names = dict.fromkeys(("slot", "kind", "arguments", "outcome", "error"), pa.string())
    schema = pa.schema([*names.items(), ("sent_us", pa.int64()), ("answered_us", pa.int64())])
    (folder / "slots.parquet").rename(folder / "ledger.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "journal.parquet")
    (folder / "run.json").write_text(json.dumps({"slot_prefix": "x", "project": project}))


def load(folder, cut):
    since, until = (
        None if at is None else (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).isoformat()
        for at in cut["period"]
    )
    options = {name: cut[name] for name in ("projects", "timezone", "top")}
    try:
        return Accounts.load(folder, since=since, until=until, **options)
    except CpsimError:  # there is no such project, or the period ends before the ledger begins
        reject()


def headlines(accounts):
    """What each project's figures are, counted one by one from the rows of the ledger."""
    since_us, until_us = accounts.since_us, accounts.books.until_us
    found = {}
    for slot in pq.read_table(accounts.source.slots).to_pylist():
        if slot["project"] not in accounts.chosen or slot["allocated_us"] >= until_us:
            continue
        sums = found.setdefault(slot["project"], Counter())
        settled_us = slot["settled_us"]
        state = slot["state"] if settled_us is not None and settled_us < until_us else "outstanding"
        sums["allocated"] += 1
        sums["period_allocated"] += slot["allocated_us"] >= since_us
        sums[state] += 1
        if state == "outstanding":
            most = slot["max"] if slot["credits"] is None else slot["credits"]
            sums["Liability: least_credits"] += (slot["min"] or 0) if slot["credits"] is None else slot["credits"]
            sums["Liability: most_credits"] += most or 0
            sums["Liability: slots_without_limit"] += most is None
            continue
        sums[f"period_{state}"] += settled_us >= since_us
        if state == "claimed":
            sums["credits"] += slot["granted"]
            sums["period_credits"] += slot["granted"] if settled_us >= since_us else 0
            sums["waiting_credits"] += slot["granted"] if slot["user"] is None else 0
    return found


def total(accounts, report, name, projects):
    """What a column has to add up to; None where that is not known."""
    if name.startswith("against."):
        return total(accounts.against, report, name.removeprefix("against."), projects)
    if ": " in name:
        title, _, column = name.partition(": ")
        frame = next(block.frame for block in report.blocks if not isinstance(block, Note) and block.title == title)
    else:
        frame, column = accounts.projects, name
    known = frame.loc[frame["project"].isin(projects), column].dropna()
    return None if known.empty and len(frame) else known.sum()


def check_sums(accounts, report, block):
    assert set(block.sums) <= set(block.frame), (report.name, block.title)
    for column, name in block.sums.items():
        sides = [accounts.against if name.startswith("against.") else accounts]
        projects = list(sides[0].projects["project"])
        groups = [[project] for project in projects] if "project" in block.frame else [projects]
        for group in groups:
            rows = block.frame[block.frame["project"].isin(group)] if "project" in block.frame else block.frame
            expected = total(accounts, report, name, group)
            if expected is None:
                assert rows[column].isna().all(), (report.name, block.title, column)
            else:
                assert rows[column].sum() == expected, (report.name, block.title, column, group)


def check_declared(report, block):
    """Each column of whole numbers adds up to something, or the table says that it is no breakdown."""
    if block.sums is None:
        return
    counts = {name for name, kind in block.frame.dtypes.items() if pd.api.types.is_integer_dtype(kind)}
    counts -= {"rank"} | ({block.x} if isinstance(block, Figure) else set())
    counts = {name for name in counts if not name.startswith("cumulative_")}
    assert counts <= set(block.sums), f"{report.name}, {block.title}: what do {counts - set(block.sums)} add up to?"


def check_statement(accounts, holder, table):
    """It opens with what came before the period, and closes with that and all that came within."""
    of = table.title.partition(" ")[2]
    rows = [row for row in pq.read_table(accounts.source.slots).to_pylist() if row[holder] == of]
    rows = [row for row in rows if row["state"] == "claimed" and f"in project {row['project']}," in table.note]
    opening, *_, closing = table.frame["balance_credits"]
    until_us = accounts.books.until_us
    assert opening == sum(row["granted"] for row in rows if row["settled_us"] < accounts.since_us)
    assert closing == sum(row["granted"] for row in rows if row["settled_us"] < until_us)
    assert opening + table.frame["credits"].sum() == closing


def check_by_finding(accounts, table):
    """All that the ledger holds is there, whatever the period and whoever sent it."""
    rows = [row for row in pq.read_table(accounts.source.slots).to_pylist() if row["project"] in accounts.chosen]
    assert table.frame["granted_credits"].sum() == sum(row["granted"] or 0 for row in rows if row["state"] == "claimed")


@pytest.mark.timeout(600)
@settings(max_examples=6, deadline=None, phases=set(Phase) - {Phase.shrink, Phase.explain})  # these take minutes
@given(
    slots=st.lists(SLOT, min_size=4, max_size=14),
    links=st.lists(LINK, max_size=4),
    cut=CUT,
    project=st.sampled_from(["p", None]),
    has_journal=st.booleans(),
    has_accounts=st.booleans(),
)
def test_breakdowns_add_up(slots, links, cut, project, has_journal, has_accounts):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        rows = play(folder, [LAST, *slots], links)
        if has_journal:
            write_run(folder, rows, project)
        if not has_accounts:
            (folder / "accounts.parquet").unlink()
        whole = {"period": (None, None), "projects": (), "timezone": "UTC", "top": 10}
        with load(folder, cut) as accounts, load(folder, whole) as others:
            accounts.against = others
            assert accounts.balanced
            check_reports(accounts)
            accounts.against = None


def check_reports(accounts):
    counted = headlines(accounts)
    projects = {row["project"]: row for row in accounts.projects.to_dict("records")}
    assert projects.keys() == counted.keys()
    for project, sums in counted.items():
        for name in COUNTED:
            assert pd.isna(projects[project][name]) or projects[project][name] == sums[name], (project, name)
    for report in build(accounts, catalog.report_names()):
        for block in report.blocks:
            if isinstance(block, Note):
                continue
            check_declared(report, block)
            if block.sums is not None:
                check_sums(accounts, report, block)
            if report.name.endswith("-statement"):
                check_statement(accounts, report.name.removesuffix("-statement"), block)
            if block.title == "By finding":
                check_by_finding(accounts, block)
            if block.title == "Liability":
                for project, least, most, free in block.frame[
                    ["project", "least_credits", "most_credits", "slots_without_limit"]
                ].itertuples(index=False):
                    found = {"least_credits": least, "most_credits": most, "slots_without_limit": free}
                    assert found == {name: counted[project][f"Liability: {name}"] for name in found}
