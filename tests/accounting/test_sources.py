"""Where accounts come from: the same ledger from each, and what is wrong with what holds none."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpsim.accounting import Accounts
from cpsim.daemon.spool import Spool
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.server.store import Store

from .conftest import Site, cells

COLUMNS = ("project", "machine", "user", "claimed", "credits", "first_us", "last_us")


def books(accounts):
    assert accounts.balanced
    return cells(accounts.machines, *COLUMNS), cells(accounts.counters, "project", "counter", "total")


def fill(site):
    site.server.link([("m1", "ann")])
    site.alloc("a", credits=7)
    site.alloc("b", min=5)
    site.count("a", events=3)
    site.at(1).claim("a", "m1")
    site.claim("b", "m2", credits=6)
    site.alloc("c", project="q")


@pytest.fixture
def exported(site):
    fill(site)
    return site.export()


def test_an_export_is_its_folder_or_its_table(exported):
    with Accounts.load(exported) as folder, Accounts.load(str(exported / "slots.parquet")) as table:
        assert folder.source.kind == "export"
        assert books(folder) == books(table)
        assert cells(folder.machines, "machine", "user", "credits") == [("m1", "ann", 7), ("m2", None, 6)]


def test_an_export_as_json_lines_is_the_same(exported, site):
    (exported / "ledger.jsonl").write_bytes(site.inspector.ledger_jsonl())
    with Accounts.load(exported) as parquet, Accounts.load(exported / "ledger.jsonl") as lines:
        assert books(parquet) == books(lines)
        assert cells(parquet.slots, "slot", "state", "granted") == cells(lines.slots, "slot", "state", "granted")
        assert dict(lines.slots["counters"][0]) == {"events": 3}


def test_slots_alone_say_what_they_can(exported):
    (exported / "accounts.parquet").unlink()
    with Accounts.load(exported) as accounts:
        assert "owners and balances are unknown" in accounts.source.note
        assert cells(accounts.machines, "machine", "user", "credits") == [("m1", None, 7), ("m2", None, 6)]
        assert accounts.users.empty
        assert accounts.checks["law"].str.startswith("slots").all()


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_store_is_read_as_it_was_left_and_not_changed(tmp_path, snapshot):
    path = tmp_path / "store"
    store = Store(path)
    site = Site(tmp_path / "export", frozenset({"reclaim"}), store=store)
    fill(site)
    if snapshot:
        store.replace(site.server._accounts(site.now_us))
    site.at(2).claim("c", "m3", project="q", credits=2)
    store.close()
    export = site.export()
    logged = _log(path)
    with Accounts.load(path) as from_store, Accounts.load(export) as from_export:
        assert from_store.source.kind == "store"
        assert books(from_store) == books(from_export)
        assert from_store.books.until_us == site.now_us + 1
        assert from_store.source.totals["p"]["credits"] == 13
        assert len(from_store.checks) > len(from_export.checks)
    assert _log(path) == logged


def _log(path):
    store = Store(path)
    try:
        return list(store.changes())
    finally:
        store.close()


def test_a_store_in_use_is_told(tmp_path):
    store = Store(tmp_path / "store")
    try:
        with pytest.raises(CpsimError, match=r"store is in use by another process.*by its URL"):
            Accounts.load(tmp_path / "store")
    finally:
        store.close()


def test_a_running_fake_without_parquet_is_read_as_json(monkeypatch):
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        fake.accounts.link([("m1", "ann")])
        fake.accounts.apply("p", [("alloc", {"slot": "a", "min": 5, "max": 9}), ("counters", {"slot": "a", "n": 3})])
        fake.accounts.apply("p", [("claim", {"slot": "a", "machine": "m1", "credits": 7})])
        with Accounts.load(fake.addresses["http"]) as accounts:
            expected = accounts.source.kind, books(accounts)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with Accounts.load(fake.addresses["http"]) as accounts:
            assert (accounts.source.kind, books(accounts)) == expected


def test_a_running_fake_is_read_through_its_control_api(tmp_path):
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        fake.accounts.link([("m1", "ann")])
        fake.accounts.apply("p", [("alloc", {"slot": "a", "min": 5, "max": 9}), ("alloc", {"slot": "b", "min": 5})])
        fake.accounts.apply("p", [("claim", {"slot": "a", "machine": "m1", "credits": 50})])
        fake.accounts.apply("p", [("claim", {"slot": "b", "machine": "m1"}), ("claim", {"slot": "b", "machine": "m1"})])
        with Accounts.load(fake.addresses["http"]) as accounts:
            assert accounts.source.kind == "running server"
            assert cells(accounts.projects, "claimed", "credits", "refused") == [(2, 14, 1)]
            # what was asked for is in the server's journal
            assert set(cells(accounts.rules, "rule", "credits")) == {
                ("limited to the maximum", 9),
                ("raised to the minimum", 5),
            }
            assert accounts.balanced


def test_the_slots_of_a_running_fake_are_read_and_written_page_by_page(monkeypatch):
    with Fake({"p": "s", "q": "s"}, http=ANY_PORT) as fake:
        for project in ("p", "q"):
            fake.accounts.apply(project, [("alloc", {"slot": f"s{number}"}) for number in range(5)])
            fake.accounts.apply(project, [("claim", {"slot": "s1", "machine": "m1", "credits": 7})])
        with Accounts.load(fake.addresses["http"]) as accounts:
            whole, expected = pq.read_table(accounts.source.slots), books(accounts)
        monkeypatch.setattr("cpsim.accounts.pages.PAGE", 3)
        with Accounts.load(fake.addresses["http"]) as accounts:
            assert pq.read_metadata(accounts.source.slots).num_row_groups >= 4
            by_slot = [("project", "ascending"), ("slot", "ascending")]
            assert pq.read_table(accounts.source.slots).sort_by(by_slot).equals(whole.sort_by(by_slot))
            assert books(accounts) == expected


def test_what_a_claim_asks_for_is_not_made_up_where_it_is_no_whole_number():
    with Fake({"p": "s"}, http=ANY_PORT, quirks={"float-credits"}) as fake:
        fake.accounts.apply("p", [("alloc", {"slot": "a", "max": 20}), ("alloc", {"slot": "b", "max": 20})])
        fake.accounts.apply("p", [("claim", {"slot": "a", "machine": "m", "credits": 7.9})])
        fake.accounts.apply("p", [("claim", {"slot": "b", "machine": "m", "credits": "8"})])
        with Accounts.load(fake.addresses["http"]) as accounts:
            assert cells(accounts.rules, "rule", "credits") == [("as asked", 8), ("as asked, or default", 7)]


def test_a_journal_without_arguments_is_another_kind_of_table(tmp_path, site):
    site.export()
    (site.folder / "slots.parquet").rename(site.folder / "ledger.parquet")
    (site.folder / "run.json").write_text("{}")
    names = ("slot", "kind", "outcome", "sent_us", "answered_us")
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in names}), site.folder / "journal.parquet")
    with pytest.raises(CpsimError, match="another kind of table: it has no column of arguments"):
        Accounts.load(site.folder)


def test_a_journal_that_is_full_is_no_reason_not_to_report(tmp_path):
    with Fake({"p": "s"}, http=ANY_PORT, journal_limit=1) as fake:
        fake.accounts.apply("p", [("alloc", {"slot": "a"}), ("claim", {"slot": "a", "machine": "m"})])
        with Accounts.load(fake.addresses["http"]) as accounts:
            assert "journal cannot be read" in accounts.source.note
            assert accounts.projects["credits"].tolist() == [1]


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(CpsimError, match=r"cannot reach http://127.0.0.1:9/api.*is it running"):
        Accounts.load("http://127.0.0.1:9/api")


@pytest.mark.thorough
def test_a_run_folder(tmp_path):
    command = [sys.executable, "-m", "cpsim", "run", "smoke", "--output", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    with Accounts.load(tmp_path / "run") as accounts:
        assert accounts.source.kind == "run folder"
        document = json.loads((tmp_path / "run" / "run.json").read_text())
        assert accounts.projects["credits"].sum() == document["credits_granted"]
        assert accounts.balanced
        assert accounts.reconciliation["finding"].tolist() == ["agrees"]


def test_names_that_mean_something_to_a_shell_or_to_sql(exported, tmp_path):
    odd = tmp_path / "it's [1] * ?"
    shutil.copytree(exported, odd)
    with Accounts.load(odd) as accounts:
        assert accounts.projects["credits"].sum() == 13


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such file or folder"),
        (lambda folder: (folder / "slots.parquet").unlink(), "is not a run folder: it has no run.json"),
        (lambda folder: _cut(folder / "slots.parquet"), "slots.parquet is damaged or cut short"),
        (lambda folder: _cut(folder / "accounts.parquet"), "accounts.parquet is damaged or cut short"),
        (
            lambda folder: shutil.copy(folder / "accounts.parquet", folder / "slots.parquet"),
            "has no column slot, state",
        ),
        (lambda folder: (folder / "run.json").write_text("{}"), "has no ledger.parquet"),
        (lambda folder: (folder / "run.json").write_text('{"scen'), "run.json is damaged or cut short"),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json is not what cpsim run writes"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(exported, spoil, message):
    spoil(exported)
    with pytest.raises(CpsimError, match=message):
        Accounts.load(exported)


def _cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello", "holds no accounts"),
        ("empty", b"", "holds no accounts"),
        ("spool", b"SQLite format 3\0" + bytes(84), "spool"),
        ("ledger.jsonl", b'{"type": "slot", "proj', "not the ledger as JSON lines"),
        ("slots.parquet", b"PAR1", "damaged or cut short"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CpsimError, match=message):
        Accounts.load(tmp_path / name)


def test_a_table_whose_pages_are_damaged_is_told(tmp_path, site):
    """Its footer is whole, so this shows only when it is read."""
    for number in range(2_000):
        site.alloc(f"slot-{number}-{number * 7919 % 1000}", credits=number)
    export = site.export()
    content = bytearray((export / "slots.parquet").read_bytes())
    content[100:-6000] = bytes(len(content[100:-6000]))
    (export / "slots.parquet").write_bytes(content)
    with pytest.raises(CpsimError, match="damaged or cut short"), Accounts.load(export) as accounts:
        _ = accounts.slots


def test_a_fake_that_asks_for_its_token():
    with Fake({"p": "s"}, http=ANY_PORT, control_token="sesame") as fake:
        with pytest.raises(CpsimError, match="--control-token-file"):
            Accounts.load(fake.addresses["http"])
        with Accounts.load(fake.addresses["http"], token="sesame") as accounts:
            assert accounts.empty


def test_what_is_no_file_of_accounts(tmp_path):
    Spool(tmp_path / "spool").close()
    with pytest.raises(CpsimError, match="spool holds no accounts: expected a run folder, a store"):
        Accounts.load(tmp_path / "spool")
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "s"))
        with pytest.raises(CpsimError, match="is neither a file nor a folder; name the URL"):
            Accounts.load(tmp_path / "s")


def test_of_a_folder_of_runs_the_newest_is_reported_on_whose_accounts_were_seen(tmp_path):
    sample = Path(__file__).parent.parent / "samples/v0.3/run"
    for name, started, has_accounts in (
        ("b", "2026-03-02", True),
        ("a", "2026-03-01", True),
        ("c", "2026-03-03", False),
    ):
        shutil.copytree(sample, tmp_path / name)
        document = json.loads((sample / "run.json").read_text()) | {"started": f"{started}T12:00:00+00:00"}
        (tmp_path / name / "run.json").write_text(json.dumps(document))
        if not has_accounts:
            (tmp_path / name / "ledger.parquet").unlink()
    with Accounts.load(tmp_path) as accounts:
        assert accounts.source.name == str(tmp_path / "b")
        note = f"{tmp_path} holds 3 runs, and this is the newest whose accounts were seen: b."
        assert accounts.source.note.startswith(note)
        assert accounts.projects["credits"].sum() == document["credits_granted"]
    (tmp_path / "c" / "run.json").unlink()
    with Accounts.load(tmp_path) as accounts:
        assert f"{tmp_path} holds 2 runs, and this is the newest: b." in accounts.source.note
    for name in ("a", "b"):
        (tmp_path / name / "ledger.parquet").unlink()
    with pytest.raises(CpsimError, match="holds 2 runs, and none of them could see the server's slots"):
        Accounts.load(tmp_path)
