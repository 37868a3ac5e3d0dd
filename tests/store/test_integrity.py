"""Files that are not what they were left as: of earlier versions, incomplete, damaged, removed and replaced."""

import shutil
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from cpdaemon import Client
from cpdaemon.errors import Refused
from cpsim.clock import SystemClock
from cpsim.daemon.failed import DAMAGED, DEAD_LETTER, REFUSED, FailedCommand
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.errors import CpsimError
from cpsim.server.service import AccountServer
from cpsim.server.store import Store
from cpsim.store.log import LOOK_S, DamagedRecord, InDoubt, Log
from cpsim.store.schema import FORMAT
from cpsim.system.threads import ThreadFailed
from cpsim.testing import ManualClock

KIND = "TEST"
SCHEMAS = Path(__file__).parents[1] / "samples" / "schemas"
NOW_US = 1_700_000_100_000_000
FAILED = [
    FailedCommand(
        2, 1_700_000_000_000_000, REFUSED, "claim,slot=gone,machine=worker-1", "slot 'gone' was never allocated"
    ),
    FailedCommand(3, 1_700_000_000_000_001, DEAD_LETTER, "counters,slot=job-1,n=7", "the reply was lost"),
]
QUEUED = ["alloc,slot=job-2,credits=9", "meta,slot=job-2,site=Zürich", "claim,slot=job-2,machine=worker-2"]


def sample(kind, number, path):
    with closing(sqlite3.connect(path)) as database:
        database.executescript((SCHEMAS / f"{kind}-{number}.sql").read_text(encoding="utf-8"))
    return path


def frames(batch):
    return [frame for _, frame in batch.commands]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


# Files of earlier versions


@pytest.mark.parametrize("number", range(1, 6))
def test_a_spool_of_every_schema_keeps_what_waits_and_its_dead_letters(path, number):
    before = sample("spool", number, path).read_bytes()
    status = read_status(path)
    assert (status.queued, status.delivered, status.refused, status.dead_letters) == (3, 1, 1, 1)
    assert status.trouble == ("no route to the server" if number > 2 else "")
    assert read_failed(path) == FAILED
    assert path.read_bytes() == before, "to look changes nothing"
    for _ in range(2):
        with closing(Spool(path)) as spool:
            spool.set_project("physics")
            spool.release(6)
            batch = spool.take()
            assert (frames(batch), batch.resumed, batch.named) == (QUEUED[:2], True, True)
            assert (spool.pending, spool.failed) == (3, 2)
    assert read_failed(path) == FAILED
    with closing(Spool(path)) as spool:
        spool.release(6)
        spool.settle(spool.take(), [])
        assert frames(spool.take()) == QUEUED[2:]
        assert spool.requeue([3]) == 1
        spool.release(7)
        spool.settle(spool.take(), [])
        assert frames(spool.take()) == [FAILED[1].command]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_store_of_every_schema_keeps_the_accounts(path, number):
    """The first two kept no journal; what they have not yet in a snapshot is shown until it is."""
    sample("store", number, path)
    had_journal = number > 2
    for journal_length in (11 if had_journal else 6, 11 if had_journal else 0):
        with closing(Store(path)) as store:
            accounts = AccountServer({"physics": "demo"}, lambda: NOW_US, store=store)
            with accounts.reading() as ledger:
                slots = ledger.project("physics").slots
                assert {name: (slot.state.value, slot.granted) for name, slot in slots.items()} == {
                    "job-1": ("claimed", 5),
                    "job-2": ("claimed", 7),
                    "job-3": ("discarded", None),
                    "job-4": ("allocated", None),
                }
                assert slots["job-3"].meta == {"site": "Zürich"}
                assert ledger.owners == {"worker-1": "alice"}
            assert accounts.refused == 2
            assert len(list(accounts.journal.read("physics"))) == journal_length
            again = [("alloc", {"slot": "job-1"})]
            assert accounts.apply("physics", again, "first") == []  # as it was answered then, and not applied
            store.replace(accounts._accounts(NOW_US))


@pytest.mark.parametrize("open_file", [Spool, read_status])
def test_a_file_of_a_later_version_is_refused_and_left_as_it_is(path, open_file):
    sample("spool", 5, path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    before = path.read_bytes()
    said = f"{path} was written by a later version of cpsim, in format {FORMAT + 1}, and is left as it is"
    with pytest.raises(CpsimError, match=said):
        open_file(path)
    assert path.read_bytes() == before


# Files without their write-ahead log


def as_killed(log, folder):
    """Copy a log's files as they are if its process is killed now; return the path of the copy."""
    for name in (log.path.name, f"{log.path.name}-wal"):
        shutil.copy(log.path.with_name(name), folder / name)
    return folder / log.path.name


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder of a log that was killed after its write-ahead log had been begun anew."""
    folder = tmp_path_factory.mktemp("left")
    with closing(Log(tmp_path_factory.mktemp("log") / "log", KIND, threaded=False)) as log:
        for number in range(2):
            log.wait(records=[str(number) * 4_200_000])
        log.wait(records=["last"])
        as_killed(log, folder)
    return folder


@pytest.fixture
def killed(left, tmp_path):
    """The path of such a log, of the test's own."""
    for path in left.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "log"


def texts(log):
    return [record[:4] for _, record in log.read(0, log.last, 10)]


ALL = ["0000", "1111", "last"]


def test_what_was_killed_is_whole_with_its_write_ahead_log(killed):
    with closing(Log(killed, KIND)) as again:
        assert texts(again) == ALL


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "log-wal is missing or empty"),
        (lambda wal: wal.write_bytes(b""), "log-wal is missing or empty"),
        (lambda wal: wal.write_bytes(bytes(50_000)), "log-wal is damaged from its beginning on, and is now .*damaged"),
    ],
)
def test_what_was_killed_says_that_its_write_ahead_log_is_lost(killed, harm, said):
    path = killed
    wal = path.with_name("log-wal")
    kept = wal.read_bytes()
    harm(wal)
    before = path.read_bytes()
    for what in (said, "log-wal is missing or empty"):
        with pytest.raises(CpsimError, match=f"{path} was not closed in order, and .*{what}"):
            Log(path, KIND, reserve_bytes=1)
    assert path.read_bytes() == before
    if "damaged" in said:
        assert path.with_name("log-wal.damaged").read_bytes() == bytes(50_000)
    wal.write_bytes(kept)  # which was only elsewhere
    with closing(Log(path, KIND)) as again:
        assert texts(again) == ALL


def test_what_to_do_without_a_write_ahead_log_that_is_lost(killed):
    path = killed
    path.with_name("log-wal").unlink()
    with pytest.raises(CpsimError) as lost:
        Log(path, KIND)
    sql = str(lost.value).partition(f"sqlite3 {path} '")[2].removesuffix("'")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(sql)
    with closing(Log(path, KIND)) as again:
        assert texts(again) == ALL[:2]


def test_what_another_program_has_closed_last_is_whole(killed):
    """It has copied the write-ahead log into the file, and removed it."""
    path = killed
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM log").fetchone()
    assert not path.with_name("log-wal").exists()
    with closing(Log(path, KIND)) as again:
        assert texts(again) == ALL


def test_what_was_killed_in_the_middle_of_a_mark_is_whole_though_its_status_is_read_first(path, tmp_path):
    (tmp_path / "killed").mkdir()
    with closing(Spool(path)) as spool:
        spool.put(["alloc,slot=a"], {}, lambda _: None)
        spool.wait()
        with closing(sqlite3.connect(path, isolation_level=None)) as between_its_marks:
            between_its_marks.execute("UPDATE whole SET is_whole = 0")
            for name in ("log", "log-wal"):
                shutil.copy(tmp_path / name, tmp_path / "killed")
            between_its_marks.execute("UPDATE whole SET is_whole = 1")
    assert read_status(tmp_path / "killed/log").queued == 1
    Spool(tmp_path / "killed/log").close()


def test_a_spool_says_in_its_status_that_its_write_ahead_log_is_lost(path, tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    with closing(Spool(path)) as spool:
        spool.put(["alloc,slot=a"], {}, bool)
        spool.wait()
        assert read_status(path).queued == 1
        copy = as_killed(spool, folder)
    copy.with_name("log-wal").unlink()
    for look in (read_status, read_failed, Spool):
        with pytest.raises(CpsimError, match="log-wal is missing"):
            look(copy)


# Damaged records


def damage(path, sql, *parameters):
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(sql, parameters).rowcount == 1


def test_a_damaged_record_is_named(path):
    with closing(Log(path, KIND)) as log:
        log.wait(records=["credits=5", "credits=6", "", "é"])
        assert log.read(0, 4, 9) == [(1, "credits=5"), (2, "credits=6"), (3, ""), (4, "é")]
        damage(path, "UPDATE log SET record = 'credits=9' WHERE position = 2")
        with pytest.raises(DamagedRecord, match=f"{path}: record 2 is damaged") as damaged:
            log.read(0, 4, 9)
        assert damaged.value.position == 2
        assert log.read(2, 4, 9) == [(3, ""), (4, "é")]


def test_a_record_in_the_place_of_another_is_damaged(path):
    with closing(Log(path, KIND)) as log:
        log.wait(records=["a", "b"])
        damage(
            path,
            "UPDATE log SET (record, checksum) = (SELECT record, checksum FROM log WHERE position = 1) "
            "WHERE position = 2",
        )
        with pytest.raises(DamagedRecord):
            log.read(0, 2, 9)


def test_records_are_read_at_positions_of_more_than_32_bits(path):
    with closing(Log(path, KIND)) as log:
        log.wait(("UPDATE cut SET position = ?", (2**32 - 2,)))
    with closing(Log(path, KIND)) as log:
        log.wait(records=["a", "b", "c"])
        assert log.read(0, log.last, 9) == [(2**32 - 1, "a"), (2**32, "b"), (2**32 + 1, "c")]
        damage(path, f"UPDATE log SET record = 'd' WHERE position = {2**32 + 1}")
        with pytest.raises(DamagedRecord):
            log.read(0, log.last, 9)


def test_a_damaged_command_becomes_a_dead_letter_and_the_others_are_delivered(path):
    with closing(Spool(path)) as spool:
        spool.put([f"alloc,slot={slot},credits=5" for slot in "abc"], {}, bool)
        spool.put([], {3: "alloc,slot=c,credits=50"}, bool)  # it has grown
        spool.wait()
        spool.release(3)
        damage(path, "UPDATE log SET record = replace(record, 'credits=5', 'credits=7') WHERE position = 2")
        batch = spool.take()
        assert frames(batch) == ["alloc,slot=a,credits=5", "alloc,slot=c,credits=50"]
        spool.settle(batch, [])
        (row,) = read_failed(path)
        assert (row.position, row.why, row.command) == (2, DEAD_LETTER, f"{DAMAGED}alloc,slot=b,credits=7")
        assert "record 2 of the spool is damaged" in row.error
        assert spool.requeue(None) == 0
        with pytest.raises(CpsimError, match="2 is not what was received"):
            spool.requeue([2])
        assert spool.forget([2]) == 1


def test_a_damaged_dead_letter_says_so(path):
    with closing(Spool(path)) as spool:
        spool.put(["alloc,slot=a,credits=5", "alloc,slot=b"], {}, bool)
        spool.wait()
        spool.release(2)
        rows = [FailedCommand(at, 7, DEAD_LETTER, frame, "lost") for at, frame in spool.take().commands]
        spool.settle(spool.take(), rows)
        damage(path, "UPDATE failed SET command = 'alloc,slot=a,credits=6' WHERE position = 1")
        damaged, intact = read_failed(path)
        assert (damaged.command, intact) == (f"{DAMAGED}alloc,slot=a,credits=6", rows[1])
        assert damaged.error == "this entry of the spool is damaged; it says: lost"
        assert spool.requeue(None) == 1


HARM = {
    "UPDATE log SET record = replace(record, '5', '6') WHERE position = 2": "record 2 of the accounts' changes",
    "UPDATE log SET record = '[', checksum = NULL WHERE position = 2": "record 2 of the accounts' changes",
    "UPDATE received SET record = replace(record, '5', '6') WHERE position = 1": "record 1 of the journal",
    "UPDATE snapshot SET content = replace(content, '5', '6') WHERE part = 1": "record 1 of the accounts' snapshot",
    "UPDATE snapshot SET content = '}' WHERE part = 0": "record 0 of the accounts' snapshot",
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_store_names_the_record_and_says_what_to_do(path, cpsim, harm):
    with closing(Store(path)) as store:
        accounts = AccountServer({"demo": "demo"}, lambda: NOW_US, store=store)
        accounts.apply("demo", [("alloc", {"slot": "a", "credits": 5})])
        store.replace(accounts._accounts(NOW_US))
        accounts.apply("demo", [("alloc", {"slot": "b", "credits": 5})])
    damage(path, harm)
    status, out, err = cpsim("serve", "--store", path)
    assert (status, out) == (2, "")
    assert err.startswith(f"cpsim: {path}: {HARM[harm]} is damaged: ")
    assert "put back a copy of the file" in err
    remedy = err.partition(f"sqlite3 {path} '")[2].rpartition("'")[0]
    assert bool(remedy) == ("snapshot" not in harm)
    if remedy:
        damage(path, remedy)
        with closing(Store(path)) as store:
            AccountServer({"demo": "demo"}, lambda: NOW_US, store=store)


def test_a_store_whose_schema_is_no_text_is_damaged(path, cpsim):
    with closing(Store(path)):
        pass
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_schema SET name = CAST(x'a8' AS TEXT), sql = '?' WHERE name = 'log'")
    status, out, err = cpsim("serve", "--store", path)
    assert (status, out) == (2, "")
    assert err.startswith(f"cpsim: {path}: the file is damaged: ")


# Files that are removed and replaced


def remove(path):
    path.unlink()


def replace(path):
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


GONE = [
    ("log", remove, "log was removed", "log"),
    ("log", replace, "log was replaced by another file", "log.rescued"),
    ("log-wal", remove, "log-wal was removed", "log"),
    ("log-wal", replace, "log-wal was replaced by another file", "log"),
    ("log.lock", remove, "log.lock was removed", "log"),
]


@pytest.mark.parametrize(("name", "harm", "said", "found"), GONE)
def test_nothing_is_acknowledged_into_a_file_that_is_gone(path, name, harm, said, found):
    clock = ManualClock()
    log = Log(path, KIND, clock=clock, threaded=False)
    log.wait(records=["kept"])
    harm(path.with_name(name))
    clock.advance(LOOK_S)
    with pytest.raises(InDoubt, match=f"{said} while it was in use") as doubt:
        log.wait(records=["in doubt"])
    assert "unknown" in str(doubt.value)
    with pytest.raises(CpsimError, match=said) as refused:
        log.wait(records=["refused"])
    assert type(refused.value) is CpsimError
    log.wait(("UPDATE log SET record = 'in doubt, changed', checksum = NULL WHERE position = 2", ()))
    with pytest.raises(CpsimError, match=said):
        log.check()
    with pytest.raises(CpsimError, match=said):
        log.resume()
    log.close()
    place = path.with_name(found)
    assert place.stat().st_mode & 0o777 == 0o600
    with closing(Log(place, KIND)) as again:
        assert [record for _, record in again.read(0, 9, 9)] == ["kept", "in doubt, changed"]


class Noting(SystemClock):
    """Notes how long it is asked to wait."""

    def __init__(self):
        self.waits_s = set()

    def wait(self, condition, timeout_s):
        self.waits_s.add(timeout_s)
        return super().wait(condition, timeout_s)


def test_a_file_that_is_gone_is_noticed_within_a_second_though_nothing_is_written(path, wait_for):
    clock = Noting()
    with closing(Log(path, KIND, clock=clock)) as log:
        path.unlink()
        wait_for(lambda: log.is_gone)
        assert max(clock.waits_s) < 1
        with pytest.raises(CpsimError, match="was removed"):
            log.check()


def test_a_file_is_where_it_was_though_its_process_changes_its_folder(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    clock = ManualClock()
    with closing(Log(Path("log"), KIND, clock=clock, threaded=False)) as log:
        monkeypatch.chdir("other")
        clock.advance(2 * LOOK_S)
        for record in ("one", "two"):
            log.wait(records=[record])
        assert not log.is_gone
    assert [*Path().iterdir()] == []


def test_a_spool_that_is_gone_is_full_and_goes_on_delivering(path):
    outcomes, clock = [], ManualClock()
    with closing(Spool(path, clock=clock, open_log=partial(Log, threaded=False))) as spool:
        spool.put(["alloc,slot=a", "alloc,slot=b"], {}, outcomes.append)
        spool.wait()
        assert not spool.is_full
        path.unlink()
        clock.advance(LOOK_S)
        spool.put(["alloc,slot=c"], {}, outcomes.append)
        with pytest.raises(InDoubt):
            spool.wait()
        assert [type(outcome) for outcome in outcomes] == [type(None), InDoubt]
        assert spool.is_full
        spool.release(1)
        spool.settle(spool.take(), [])
    with closing(Spool(path)) as again:
        again.release(9)
        assert frames(again.take()) == ["alloc,slot=b", "alloc,slot=c"]


class Silent:
    """A server that answers nothing until the test ends."""

    def __init__(self):
        self.was_asked, self.ends = threading.Event(), threading.Event()

    def knows_batches(self):
        return True

    def post(self, batch_id, calls):
        self.was_asked.set()
        self.ends.wait()
        return [None] * len(calls)


def test_a_spool_that_is_gone_is_there_again_though_the_server_does_not_answer(here, wait_for, monkeypatch):
    monkeypatch.setattr("cpsim.daemon.site.STOP_TIMEOUT_S", 0.1)
    server, spool = Silent(), Spool(Path("spool"))
    daemon = Daemon(server, "p", unix=Path("cp.sock"), spool=spool)
    daemon.bind()
    daemon.start()
    with Client("./cp.sock") as client:
        client.alloc("a")
        server.was_asked.wait()
        Path("spool").unlink()
        wait_for(lambda: spool.is_gone)
        with pytest.raises(Refused, match="ER"):
            client.alloc("b")
    with pytest.raises(ThreadFailed, match="spool was removed while it was in use"):
        daemon.stop()
    server.ends.set()
    wait_for(lambda: not any(thread.name == "cpsim-courier" for thread in threading.enumerate()))
    with closing(Spool(Path("spool"))) as again:
        again.release(9)
        batch = again.take()
        assert (frames(batch), batch.resumed) == (["alloc,slot=a"], True)
