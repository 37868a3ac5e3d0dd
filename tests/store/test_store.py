"""What the server knows after a restart."""

import asyncio
import json
import socket
import sqlite3
import threading
from contextlib import closing, contextmanager
from functools import partial
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import pytest

from cpdaemon.signing import token
from cpsim.errors import CpsimError
from cpsim.protocol.depth import TooDeep
from cpsim.protocol.slots import State
from cpsim.server import batches, store
from cpsim.server.accounts import ProjectAccounts
from cpsim.server.batches import BatchGivenUp, BatchSeen
from cpsim.server.control.access import Access
from cpsim.server.control.api import Control
from cpsim.server.control.inspection import Inspector
from cpsim.server.http import Api
from cpsim.server.journal import JournalFull
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer
from cpsim.server.store import Store
from cpsim.store.file import LogFile
from cpsim.store.log import Log


class Clock:
    def __init__(self):
        self.now_us = 1_000_000

    def __call__(self):
        self.now_us += 1
        return self.now_us


class Disk:
    """The disk of a store, as SQLite finds it whenever it writes."""

    read_only = False
    full = False

    def open_store(self, path):
        disk = self

        class File(LogFile):
            def execute(self, sql, parameters=()):
                super().execute(f"PRAGMA query_only = {int(disk.read_only)}")
                super().execute(f"PRAGMA max_page_count = {1 if disk.full else 2**20}")  # at least the pages it has
                super().execute(sql, parameters)

        return Store(path, partial(Log, file=File))

    @contextmanager
    def serving(self, path):
        """Serve the accounts of project p; yields (accounts, the server's address)."""
        with closing(self.open_store(path)) as store, socket.create_server(("127.0.0.1", 0)) as listening:
            accounts = AccountServer({"p": "s"}, store=store)
            address = "http://{}:{}".format(*listening.getsockname())
            control = Control(Inspector(accounts, lambda: 0), Access("127.0.0.1"))
            server = HttpServer(Api(accounts, control), [listening])
            server.start()
            yield accounts, address
            server.stop()


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def restarted(tmp_path, disk):
    """Return restarted(*quirks) -> AccountServer on one store, the one before it ended first."""
    clock = Clock()
    stores = []

    def restart(*quirks, **options):
        if stores:
            stores.pop().close()
        stores.append(disk.open_store(tmp_path / "store"))
        return AccountServer({"p": "s", "q": "t"}, clock, frozenset(quirks), store=stores[-1], **options)

    restart.clock = clock
    yield restart
    stores.pop().close()


def test_a_loop_that_has_ended_meanwhile_does_not_end_the_writing(restarted, tmp_path):
    accounts = restarted()
    with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # the writer has to wait
        accounts.apply("p", [("alloc", {"slot": "a"})])
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(accounts.store.durable(), 0.1))
        other.execute("ROLLBACK")
    accounts.apply("p", [("alloc", {"slot": "b"})])
    asyncio.run(asyncio.wait_for(accounts.store.durable(), 10))
    assert list(books(restarted())[0]["p"].slots) == ["a", "b"]


def books(accounts):
    with accounts.reading() as ledger:
        assert list(ledger.violations()) == []
        return ledger.projects, ledger.owners, accounts.refused


def fill(accounts):
    accounts.apply("p", [("alloc", {"slot": f"s{n}", "min": 1, "expire": n + 1}) for n in range(10)])
    accounts.apply("p", [("counters", {"slot": "s0", "job": "5"}), ("meta", {"slot": "s0", "site": "Zürich\0"})])
    accounts.apply("p", [("claim", {"slot": "s0", "machine": "m", "credits": 3}), ("claim", {"slot": "s0"})])
    accounts.apply("p", [("discard", {"slot": "s1"}), ("alloc", {"slot": "big", "credits": 10**40})])
    accounts.apply("q", [("alloc", {"slot": "s0"}), ("claim", {"slot": "s0", "machine": "n"})])
    accounts.link([("m", "u"), ("n", "v")])
    accounts.release(["n"])
    accounts.apply("q", [("alloc", {"slot": "gone"})])
    accounts.reset("q")
    accounts.housekeep()


def test_what_has_expired_after_a_jump_stays_so(restarted):
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "a", "expire": 10})])
    accounts.clock.advance(hours=1)
    latest_us = accounts.clock.latest_us
    accounts = restarted()
    assert accounts.clock.now_us() >= latest_us
    assert accounts.outstanding("p") == []


@pytest.mark.parametrize("end", ["stopped", "frozen", "slowed"])
def test_time_that_ran_faster_is_not_run_again(restarted, end):
    accounts = restarted()
    inspector = Inspector(accounts)
    inspector.run_clock(1000)
    restarted.clock.now_us += 10**9
    {"stopped": accounts.write_time, "frozen": inspector.freeze_clock, "slowed": inspector.run_clock}[end]()
    latest_us = accounts.clock.latest_us
    assert latest_us >= 10**12
    assert restarted().clock.now_us() >= latest_us


def test_what_was_seen_to_have_expired_stays_so(restarted):
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "a", "expire": 10})])
    accounts.clock.run(10**9)
    assert accounts.outstanding("p") == []
    assert restarted().outstanding("p") == []


def test_to_look_at_what_expired_before_the_last_change_writes_nothing(restarted, tmp_path):
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "a", "expire": 10})])
    restarted.clock.now_us += 10**9
    accounts.link([("m", "u")])
    accounts = restarted()
    restarted.clock.now_us = 0
    before = changes(tmp_path)
    assert books(accounts)[0]["p"].settled[State.EXPIRED] == 1
    accounts.store.wait()
    assert changes(tmp_path) == before


def changes(folder):
    with closing(sqlite3.connect(folder / "store")) as database:
        return database.execute("SELECT count(*) FROM log").fetchone()


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0, 300])
def test_a_restart_changes_nothing(restarted, monkeypatch, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    monkeypatch.setattr(store, "SLOTS_A_PART", 3)
    accounts = restarted()
    fill(accounts)
    expected = books(accounts)
    for _ in range(2):
        assert books(restarted()) == expected
    accounts = restarted()
    accounts.apply("p", [("claim", {"slot": "s2", "machine": "m"})])
    expected = books(accounts)
    assert books(restarted()) == expected
    assert books(restarted())[0]["p"].users["u"].credits == 4


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0, 300])
def test_the_journal_is_there_after_a_restart(restarted, monkeypatch, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    accounts = restarted()
    fill(accounts)
    expected = journal(accounts)
    assert len(expected) == 16
    assert [refusal for *_, refusal in expected if refusal]
    latest = accounts.journal.latest_refusals(20)
    for _ in range(2):
        accounts = restarted()
        assert journal(accounts) == expected
        assert list(accounts.journal.read("q")) == []
        assert accounts.journal.latest_refusals(20) == latest
    accounts.apply("q", [("alloc", {"slot": "a"})])
    accounts.apply("p", [("alloc", {"slot": "a"})])
    accounts = restarted()
    assert [entry[1:3] for entry in accounts.journal.read("q")] == [("alloc", {"slot": "a"})]
    assert journal(accounts)[:-1] == expected
    accounts.reset()
    accounts.apply("p", [("alloc", {"slot": "b"})])
    assert [entry[1:3] for entry in journal(restarted())] == [("alloc", {"slot": "b"})]
    assert list(restarted().journal.read("q")) == []


def journal(accounts):
    return list(accounts.journal.read("p"))


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0])
def test_a_full_journal_is_full_after_a_restart(restarted, monkeypatch, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    accounts = restarted(journal_limit=3)
    accounts.apply("p", [("alloc", {"slot": f"s{number}"}) for number in range(3)])
    accounts.apply("q", [("alloc", {"slot": "a"})])
    assert len(journal(restarted(journal_limit=3))) == 3
    restarted(journal_limit=3).apply("p", [("alloc", {"slot": "d"})])
    for _ in range(2):
        accounts = restarted(journal_limit=3)
        with pytest.raises(JournalFull, match="all 4 commands received"):
            journal(accounts)
        assert len(list(accounts.journal.read("q"))) == 1
    accounts.reset("p")
    accounts.apply("p", [("alloc", {"slot": "e"})])
    assert len(journal(restarted(journal_limit=3))) == 1


def test_what_is_kept_of_a_full_or_forgotten_journal_takes_no_room(restarted, monkeypatch):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", 1_000)
    accounts = restarted(journal_limit=10)
    for project_id in ("p", "q"):
        for number in range(100):
            accounts.apply(project_id, [("alloc", {"slot": f"s{number}"})])
    accounts.reset("q")
    accounts.apply("q", [("alloc", {"slot": "x" * 100_000})])
    log = restarted().store._log
    assert log.query("SELECT project, count(*) FROM received GROUP BY project") == [("q", 1)]


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0])
def test_what_a_quirk_let_through_stays(restarted, monkeypatch, least_log):
    """The log is read with the quirks that were in force when it was written."""
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    again = ("claim", {"slot": "a", "machine": "n"})
    accounts = restarted("reclaim")
    accounts.apply("p", [("alloc", {"slot": "a", "credits": 2}), ("claim", {"slot": "a", "machine": "m"}), again])
    assert restarted().apply("p", [again])
    accounts = restarted()
    assert not accounts.quirks
    with accounts.reading() as ledger:
        assert ledger.projects["p"].granted.credits == 4
    accounts.set_quirks(frozenset({"reclaim"}))
    assert not accounts.apply("p", [again])
    assert restarted().apply("p", [again])
    with restarted().reading() as ledger:
        assert ledger.projects["p"].granted.credits == 6


def test_slots_expire_when_they_would_have(restarted):
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "a", "expire": 1}), ("alloc", {"slot": "b", "expire": 2})])
    restarted.clock.now_us += 60_000_000
    (projects, _, _) = books(restarted())
    assert [slot.state for slot in projects["p"].slots.values()] == ["expired", "allocated"]
    restarted.clock.now_us += 60_000_000
    assert restarted().apply("p", [("claim", {"slot": "b", "machine": "m"})])


def test_time_does_not_run_backwards(restarted):
    restarted.clock.now_us = 10**12
    restarted().apply("p", [("alloc", {"slot": "a"})])
    restarted.clock.now_us = 5
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "b"})])
    a, b = books(accounts)[0]["p"].slots.values()
    assert b.allocated_us >= a.allocated_us


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0])
def test_a_batch_is_applied_once(restarted, monkeypatch, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    calls = [("alloc", {"slot": "a"}), ("counters", {"slot": "a", "x": 1}), ("claim", {"slot": "b", "machine": "m"})]
    accounts = restarted()
    answer = accounts.apply("p", calls, "id")
    assert [refusal.position for refusal in answer] == [2]
    for again in (accounts, restarted(), restarted()):
        assert again.apply("p", calls, "id") == answer
        assert books(again)[0]["p"].slots["a"].counters == {"x": 1}
        assert again.refused == 1
    assert len(restarted().apply("p", calls, "other")) == 2
    assert len(restarted().apply("q", calls, "id")) == 1


def test_so_many_answers_are_remembered(restarted, monkeypatch):
    monkeypatch.setattr(batches, "OTHERS_KEPT", 2)
    accounts = restarted()
    for number in range(3):
        accounts.apply("p", [("alloc", {"slot": f"s{number}"})], f"id{number}")
    assert [bool(accounts.apply("p", [("alloc", {"slot": f"s{n}"})], f"id{n}")) for n in (1, 2, 0)] == [
        False,
        False,
        True,
    ]


SENDER = "0123456789abcdef" * 2


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0])
def test_what_a_sender_has_sent_is_known_after_a_restart(restarted, monkeypatch, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    accounts = restarted()
    answer = accounts.apply("p", [("claim", {"slot": "a", "machine": "m"})], f"{SENDER}-1 digest")
    assert len(answer) == 1
    accounts = restarted()
    assert accounts.apply("p", [("claim", {"slot": "a", "machine": "m"})], f"{SENDER}-1 digest") == answer
    assert accounts.give_up("p", f"{SENDER}-2") is None
    accounts = restarted()
    with pytest.raises(BatchGivenUp):
        accounts.apply("p", [("alloc", {"slot": "late"})], f"{SENDER}-2 digest")
    accounts.apply("p", [("alloc", {"slot": "b"})], f"{SENDER}-3 digest")
    accounts = restarted()
    with pytest.raises(BatchSeen, match="gone on to number 3"):
        accounts.apply("p", [("alloc", {"slot": "late"})], f"{SENDER}-2 digest")
    assert list(books(accounts)[0]["p"].slots) == ["b"]


def test_the_answers_of_an_older_store_are_known(tmp_path):
    """It has them by their ids alone."""
    old = {
        "at_us": 5,
        "projects": {"p": {}},
        "answers": {"p": {"0123abcd 77": [[0, "slot 'b' was never allocated"]], "late ": []}},
    }
    with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as database:
        database.executescript(OLD_STORE)
        database.execute("INSERT INTO snapshot VALUES (0, ?)", (json.dumps(old),))
    for _ in range(2):
        with closing(Store(tmp_path / "store")) as kept:
            accounts = AccountServer({"p": "s"}, Clock(), store=kept)
            assert accounts.apply("p", [], "0123abcd 77") == [(0, "slot 'b' was never allocated")]
            with pytest.raises(BatchGivenUp):
                accounts.apply("p", [], "late 88")
            kept.replace(accounts._accounts(6))


def test_the_log_is_kept_short(restarted, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", 10_000)
    accounts = restarted()
    for number in range(1000):
        accounts.apply("p", [("alloc", {"slot": f"slot-{number}"})])
    log = restarted().store._log
    ((changes,),) = log.query("SELECT sum(length(record)) FROM log")
    ((snapshot,),) = log.query("SELECT sum(length(content)) FROM snapshot")
    assert changes <= max(10_000, snapshot) + 200
    assert len(books(restarted())[0]["p"].slots) == 1000


@pytest.mark.parametrize(("levels", "expected"), [(10, ["a"]), (32, ["a"]), (33, []), (900, []), (3_000, [])])
def test_what_is_taken_can_be_read_again(restarted, levels, expected):
    """However deeply its arguments are nested."""
    accounts = restarted()
    try:
        accounts.apply("p", [("alloc", {"slot": "a", "x": deep(levels)})])
    except TooDeep:
        assert not expected
    assert [entry[2]["slot"] for entry in journal(accounts)] == expected
    assert list(restarted().journal.read("p")) == journal(accounts)
    assert [*books(restarted())[0].get("p", ProjectAccounts()).slots] == expected


def deep(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


OLD_STORE = f"""
PRAGMA application_id = {int.from_bytes(b"stor")};
CREATE TABLE log (position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE cut (position INTEGER NOT NULL);
INSERT INTO cut VALUES (2);
CREATE TABLE snapshot (part INTEGER PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE received (position INTEGER PRIMARY KEY, project TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX received_by ON received (project, position);
"""


@pytest.mark.parametrize("levels", [33, 300, 900, 950, 3_000, 30_000])
@pytest.mark.parametrize("project", ["p", 'Zü"rich'])
def test_a_store_that_holds_what_is_nested_too_deeply_opens_and_goes_on(tmp_path, monkeypatch, levels, project):
    """An earlier version may have taken it, where Python let it."""
    path = tmp_path / "store"
    nest = f'{"[" * levels}"]"{"]" * levels}'
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(OLD_STORE)

        def record(*slots, refusals="[]"):
            calls = ",".join(f'["alloc",{{"slot":{slot},"x":{nest},"y":"[{{"}}]' for slot in slots)
            return f'[1000001,"apply",[{json.dumps(project)},[{calls}],null,{refusals}]]'

        database.execute("INSERT INTO received VALUES (1, ?, ?)", (project, record('"then"')))
        refused = record(nest, refusals='[[0,"slot must be text, not a list"]]')
        database.execute("INSERT INTO received VALUES (2, ?, ?)", (project, refused))
        database.execute("INSERT INTO log VALUES (3, 0, ?)", (record('"a"', '"b"'),))
        database.execute("INSERT INTO log VALUES (4, 0, ?)", (refused,))
    for least_log in (10**9, 0, 0):
        monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
        with closing(Store(path)) as kept:
            accounts = AccountServer({project: "s"}, Clock(), store=kept)
            accounts.link([("m", "u")])
            kept.wait()
            assert list(books(accounts)[0][project].slots) == ["a", "b"]
            assert accounts.refused == 1
            found = [(kind, arguments["slot"], why) for _, kind, arguments, why in accounts.journal.read(project)]
            assert found[0] == ("alloc", "then", None)
            assert found[2:4] == [("alloc", "a", None), ("alloc", "b", None)]
            assert found[1][2] == found[4][2] == "slot must be text, not a list"
            msgspec.json.encode(list(accounts.journal.read(project)))
    with closing(Store(path)) as kept:
        assert kept._log.query("SELECT count(*) FROM received") == [(4,)]
        assert len(list(AccountServer({project: "s"}, Clock(), store=kept).journal.read(project))) == 5


def test_the_clock_does_not_jump_where_that_cannot_be_kept(restarted, disk):
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "a", "expire": 10})])
    accounts.store.wait()
    accounts.clock.freeze()
    now_us = accounts.clock.now_us()
    disk.read_only = True
    for _ in range(2):
        with pytest.raises(CpsimError, match="readonly"):
            accounts.clock.advance(hours=1)
    with pytest.raises(CpsimError, match="readonly"):
        accounts.set_quirks(frozenset({"reclaim"}))
    disk.read_only = False
    assert accounts.outstanding("p") == ["a"]
    assert accounts.clock.now_us() == now_us
    assert not accounts.quirks
    accounts.clock.advance(hours=1)
    assert accounts.outstanding("p") == []


def test_a_store_that_cannot_be_written_takes_nothing_until_it_can(restarted, disk):
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "a"})])
    accounts.store.wait()
    disk.read_only = True
    accounts.apply("p", [("alloc", {"slot": "lost"})], "id")
    with pytest.raises(CpsimError, match="readonly database; until the store can be written, changes are refused"):
        accounts.store.wait()
    for change in (lambda: accounts.apply("p", [("alloc", {"slot": "b"})]), lambda: accounts.link([("m", "u")])):
        with pytest.raises(CpsimError, match="readonly"):
            change()
    disk.read_only = False
    with pytest.raises(CpsimError, match="readonly"):  # who asks only now learns what became of a change before
        accounts.store.wait()
    assert accounts.apply("p", [("alloc", {"slot": "c"})], "id") == []
    accounts.store.wait()
    assert list(books(accounts)[0]["p"].slots) == ["a", "c"]
    assert [entry[2]["slot"] for entry in journal(accounts)] == ["a", "c"]
    assert list(books(restarted())[0]["p"].slots) == ["a", "c"]


def test_every_request_finds_a_server_that_can_write_again(tmp_path, disk):
    with disk.serving(tmp_path / "store") as (accounts, address):
        for path in ("/api/heartbeat", "/__cpsim/clock", "/__cpsim/openapi.json"):
            disk.read_only = True
            accounts.apply("p", [("alloc", {"slot": "lost"})])
            with pytest.raises(HTTPError, match="503"):
                urlopen(address + path)
            disk.read_only = False
            assert urlopen(address + path).status == 200
        assert accounts.outstanding("p") == []


def test_what_comes_after_a_change_that_could_not_be_written_is_not_written_either(restarted, wait_for):
    """Or it would be there after a restart, though it was answered that it was not taken."""
    accounts = restarted()
    with closing(sqlite3.connect(accounts.store._log.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # the writer has to wait
        accounts.store._log.append([], ("INSERT INTO nowhere VALUES (1)", ()))
        wait_for(lambda: not accounts.store._log._commits)
        accounts.apply("p", [("alloc", {"slot": "a"})])
        other.execute("ROLLBACK")
    with pytest.raises(CpsimError, match="nowhere"):
        accounts.store.wait()
    assert books(restarted())[0] == {}


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0])
def test_what_was_undone_comes_back_from_the_store(restarted, monkeypatch, disk, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    accounts = restarted()
    fill(accounts)
    accounts.store.wait()
    expected, received = books(accounts), journal(accounts)
    disk.read_only = True
    accounts.reset()
    with pytest.raises(CpsimError):
        accounts.store.wait()
    disk.read_only = False
    assert books(accounts) == expected
    assert journal(accounts) == received


def test_a_snapshot_that_fails_fails_no_change(restarted, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", 300)
    accounts = restarted()
    with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as other:
        other.execute("ALTER TABLE snapshot RENAME TO elsewhere")
        for number in range(10):
            accounts.apply("p", [("alloc", {"slot": f"s{number}", "note": "x" * 200})])
            accounts.store.wait()
        other.execute("ALTER TABLE elsewhere RENAME TO snapshot")
    assert "a snapshot of the accounts could not be written" in caplog.text
    accounts.reset("q")
    assert len(books(restarted())[0]["p"].slots) == 10
    accounts = restarted()
    accounts.apply("p", [("alloc", {"slot": "last", "note": "x" * 3_000})])
    assert len(books(restarted())[0]["p"].slots) == 11
    assert changes(tmp_path) == (0,)


def test_a_change_is_answered_by_its_own_commit(restarted, disk):
    """Not by a later one that has failed meanwhile; and what rests on a change that was undone is not answered."""
    accounts = restarted()

    def fails():
        accounts.store.begin()
        accounts.apply("p", [("alloc", {"slot": "lost"})])
        with pytest.raises(CpsimError, match="readonly"):
            accounts.store.wait()

    accounts.store.begin()
    accounts.apply("p", [("alloc", {"slot": "kept"})])
    accounts.store._log.wait()
    disk.read_only = True
    in_a_thread(fails)
    accounts.store.wait()
    accounts.store.begin()
    disk.read_only = False
    in_a_thread(accounts.recover)
    with pytest.raises(CpsimError, match="readonly"):
        accounts.store.wait()
    accounts.store.begin()
    assert accounts.outstanding("p") == ["kept"]
    accounts.store.wait()
    assert list(books(restarted())[0]["p"].slots) == ["kept"]


def in_a_thread(target):
    errors = []

    def run():
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - it is raised in the test
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_all_that_a_request_changes_is_kept_or_none_of_it(restarted, disk):
    accounts = restarted()
    disk.read_only = True
    accounts.change_owner("p", ("lib/claim", {"vmid": "m", "webid": "u"}))
    with pytest.raises(CpsimError, match="readonly"):
        accounts.store.wait()
    disk.read_only = False
    assert books(accounts)[1] == {}
    accounts.change_owner("p", ("lib/claim", {"vmid": "m", "webid": "u"}))
    accounts = restarted()
    assert books(accounts)[1] == {"m": "u"}
    assert [kind for _, kind, _, _ in journal(accounts)] == ["lib/claim"]


def test_every_answer_of_a_disk_that_is_full_now_and_then_is_true(tmp_path, disk):
    """Many clients at once; SQLite has no room for more pages, and has some again as soon as that was answered."""
    with disk.serving(tmp_path / "store") as (_, address):
        answers: dict[str, int] = {}

        def send(client):
            for number in range(20):
                slot = f"{client}-{number}"
                body = json.dumps({"alloc": [{"slot": slot, "note": "x" * 2_000}]}).encode()
                request = Request(f"{address}/api/batch/bulk", body, {"Authorization": token(("p", "s"), body)})
                try:
                    answers[slot] = urlopen(request).status
                except HTTPError as error:
                    answers[slot] = error.code

        clients = [threading.Thread(target=send, args=(client,)) for client in range(12)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            failures = list(answers.values()).count(503)
            disk.full = True
            while any(client.is_alive() for client in clients) and list(answers.values()).count(503) == failures:
                clients[0].join(0.001)
            disk.full = False
            sent = len(answers)
            while any(client.is_alive() for client in clients) and len(answers) < sent + 20:
                clients[0].join(0.001)
    with closing(Store(tmp_path / "store")) as kept:
        slots = books(AccountServer({"p": "s"}, store=kept))[0]["p"].slots
    assert len(answers) == 240
    assert {200, 503} == set(answers.values())
    assert slots.keys() == {slot for slot, status in answers.items() if status == 200}


@pytest.mark.parametrize("least_log", [store.LEAST_LOG_CHARACTERS, 0])
def test_whose_credits_a_slot_granted_is_kept_and_so_is_what_waits(restarted, monkeypatch, least_log):
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", least_log)
    for number, user in enumerate(("u", "v", None)):
        accounts = restarted()
        accounts.apply("p", [("alloc", {"slot": f"s{number}"}), ("claim", {"slot": f"s{number}", "machine": "m"})])
        if user is not None:
            accounts = restarted()
            accounts.link([("m", user)])
            accounts.release(["m"])
    slots = books(restarted())[0]["p"].slots
    assert [slot.user for slot in slots.values()] == ["u", "v", None]


def test_slots_from_a_snapshot_have_one_text_for_their_machine_and_one_for_their_user(restarted, monkeypatch):
    """Each text of its own takes some 60 bytes."""
    accounts = restarted()
    accounts.link([("machine-1", "user-1")])
    for slot in "abc":
        accounts.apply("p", [("alloc", {"slot": slot}), ("claim", {"slot": slot, "machine": "machine-1"})])
    monkeypatch.setattr(store, "LEAST_LOG_CHARACTERS", 0)
    accounts.housekeep()
    slots = books(restarted())[0]["p"].slots.values()
    assert {(slot.machine, slot.user) for slot in slots} == {("machine-1", "user-1")}
    assert len({id(text) for slot in slots for text in (slot.machine, slot.user)}) == 2
