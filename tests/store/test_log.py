"""The durable log on its own."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest

from cpsim.errors import CpsimError
from cpsim.store.file import InUse, in_use
from cpsim.store.log import NO_CHANGE, InDoubt, Log, cut
from cpsim.testing import ManualClock

KIND = "TEST"
PAGE = 4096


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def opened(path):
    """Return opened() -> Log at one path, the one before it closed first."""
    logs = []

    def reopen():
        if logs:
            logs.pop().close()
        logs.append(Log(path, KIND))
        return logs[-1]

    yield reopen
    if logs:
        logs.pop().close()


def everything(log):
    return log.read(0, log.last, 10_000)


def test_records_come_back_in_order(opened):
    log = opened()
    assert log.append(["a", "é'\"\\\n\x01", ""]) == 3
    assert log.append([]) == 3
    assert log.append(["b"]) == 4
    expected = [(1, "a"), (2, "é'\"\\\n\x01"), (3, ""), (4, "b")]
    log.wait()
    assert everything(log) == expected
    assert log.read(1, 3, 10) == expected[1:3]
    assert log.read(1, 4, 1) == expected[1:2]
    assert everything(opened()) == expected


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A log in a folder, and links to it from another, which is the current one."""
    for folder in ("real", "links"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "links")
    Path("folder").symlink_to("../real")
    Path("file").symlink_to(tmp_path / "real" / "log")
    Path("chain").symlink_to("file")
    return tmp_path / "real" / "log"


WAYS = ["folder/log", "file", "chain", "../real/log", "folder/../real/log"]


@pytest.mark.parametrize("way", WAYS)
def test_whatever_leads_to_a_log_is_one_log(real, way):
    before = names(Path())
    with closing(Log(real, KIND, reserve_bytes=1)) as log:
        log.wait(records=["a"])
        with pytest.raises(InUse, match=f"{real} is in use by another process|{way} is in use"):
            Log(Path(way), KIND)
        assert in_use(Path(way))
    assert not in_use(Path(way))
    with closing(Log(Path(way), KIND, reserve_bytes=1)) as log:
        with pytest.raises(InUse):
            Log(real, KIND)
        log.wait(records=["b"])
        assert [record for _, record in everything(log)] == ["a", "b"]
        beside = {"log", "log-shm", "log-wal", "log.lock", "log.reserve"}
        assert names(real.parent) == beside
    assert names(Path()) == before


def test_a_log_may_be_made_in_a_folder_that_a_link_leads_to(real):
    with closing(Log(Path("folder/log"), KIND)), pytest.raises(InUse):
        Log(real, KIND)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("nowhere"), "log is a link to nowhere, which does not exist"),
        (lambda path: path.symlink_to(path.name), "cannot open log: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere/log"), "is a link to nowhere/log, which does not exist"),
        (lambda path: path.mkdir(), "log is a folder or another thing"),
        (lambda path: path.symlink_to("."), "log is a folder or another thing"),
        (os.mkfifo, "log is a folder or another thing"),
        (lambda path: (Path("other").touch(), path.hardlink_to("other")), r"log has 2 names \(hard links\)"),
    ],
)
def test_a_path_that_leads_to_no_file_of_its_own(tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(tmp_path)
    make(Path("log"))
    before = names(Path())
    for look in (lambda path: Log(path, KIND), in_use):
        with pytest.raises(CpsimError, match=said):
            look(Path("log"))
    assert names(Path()) == before


def test_positions_are_never_used_again(opened):
    log = opened()
    log.append(["a", "b", "c"])
    log.append([], *cut(2))
    log.append([], *cut(1))
    log.wait()
    assert everything(log) == [(3, "c")]
    log.append([], *cut(3))
    assert opened().append(["d"]) == 4


def test_to_close_writes_what_was_appended(opened):
    opened().append(["a"])
    assert everything(opened()) == [(1, "a")]


@pytest.fixture
def clock():
    return ManualClock(now_us=1_000_000)


@pytest.fixture
def stepped(path, clock):
    """A log that a test steps."""
    with closing(Log(path, KIND, clock=clock, threaded=False)) as log:
        yield log


def test_one_commit_takes_all_or_nothing(stepped):
    outcomes = []
    stepped.append(["a"])
    assert stepped.step()
    stepped.append(["b"], ("INSERT INTO nowhere VALUES (1)", ()), then=outcomes.append)
    assert stepped.step()
    assert "nowhere" in str(outcomes[0])
    with pytest.raises(CpsimError, match="nowhere"):
        stepped.wait(("INSERT INTO nowhere VALUES (1)", ()))
    assert everything(stepped) == [(1, "a")]
    stepped.append(["c"])
    stepped.wait()
    assert everything(stepped) == [(1, "a"), (3, "c")]


def test_a_step_makes_one_commit_of_all_that_waits(stepped, clock):
    """What is appended while it is made is in the next one; each record has the time of its commit."""
    told = []

    def first(problem):
        told.append(("first", problem))
        stepped.append(["c"], then=lambda problem: told.append(("third", problem)))
        stepped.append([], then=lambda problem: told.append(("with the third", problem)))

    stepped.append(["a"], then=first)
    stepped.append(["b"], then=lambda problem: told.append(("second", problem)))
    assert (told, everything(stepped)) == ([], [])
    assert stepped.step()
    assert told == [("first", None), ("second", None)]
    assert everything(stepped) == [(1, "a"), (2, "b")]
    clock.advance(1)
    assert stepped.step()
    assert not stepped.step()
    assert told[2:] == [("third", None), ("with the third", None)]
    stepped.append([], then=told.append)
    assert told[4:] == [None]  # at once, for all is written
    rows = stepped.query("SELECT record, at_us FROM log")
    assert rows == [("a", 1_000_000), ("b", 1_000_000), ("c", 2_000_000)]


def test_to_close_makes_the_commits_that_are_due(stepped, path):
    stepped.append(["a"])
    stepped.append(["b"], alone=True)
    stepped.close()
    with closing(Log(path, KIND)) as log:
        assert everything(log) == [(1, "a"), (2, "b")]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 60 megabytes of its own, where this system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("only root can mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(("frames", "outcome"), [(4040, CpsimError), (4062, InDoubt)])
def test_a_commit_that_fails_when_it_is_written_is_not_there_after_a_restart(small_disk, tmp_path, frames, outcome):
    """SQLite writes it whole to the write-ahead log, and then finds no room to index what is beyond page 4,062."""
    path, copy = small_disk / "log", tmp_path / "log"
    with closing(Log(path, KIND)) as log, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        log.append(["kept"])
        log.wait()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM log").fetchall()  # the write-ahead log cannot begin anew

        def written():
            return ((small_disk / "log-wal").stat().st_size - 32) // (24 + PAGE)

        while written() < frames:
            log.wait(*NO_CHANGE)
        assert written() == frames
        with (small_disk / "others").open("wb", buffering=0) as others:
            for _ in range(shutil.disk_usage(small_disk).free // PAGE - 44):
                others.write(bytes(PAGE))
        problems = SimpleQueue()
        log.append(["x" * (35 * PAGE)], then=problems.put)
        assert type(problems.get(timeout=280)) is outcome
        for name in ("log", "log-wal"):
            shutil.copy(small_disk / name, copy.with_name(name))  # as they are if this process is killed now
        (small_disk / "others").unlink()
        with closing(Log(copy, KIND)) as again:
            assert everything(again) == [(1, "kept")]
        log.append(["after"])
        log.wait()
        assert everything(log) == [(1, "kept"), (3, "after")]


def test_what_fails_alone_fails_nothing_else(path):
    outcomes = SimpleQueue()
    bad = ("INSERT INTO nowhere VALUES (1)", ())
    with closing(Log(path, KIND, in_sequence=True)) as log:
        for records, statements, alone in ((["a"], (), False), ([], (bad,), True), (["b"], (), False)):
            log.append(records, *statements, then=outcomes.put, alone=alone)
        log.wait()
        assert [outcomes.get(timeout=280) is None for _ in range(3)] == [True, False, True]
        with pytest.raises(CpsimError, match="nowhere"):
            log.wait(bad)
        log.append([], *cut(1), then=outcomes.put, alone=True)  # what is cut is in what failed
        assert outcomes.get(timeout=280) is not None
        log.resume()
        assert everything(log) == [(1, "a"), (2, "b")]


def test_many_writers(opened):
    log = opened()
    kept = []

    def write(writer):
        for number in range(50):
            log.append([f"{writer}:{number}"])
            log.wait()
            kept.append(f"{writer}:{number}")

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = [record for _, record in everything(log)]
    assert sorted(records) == sorted(kept)
    assert len(records) == 1000
    for writer in range(20):
        own = [record for record in records if record.startswith(f"{writer}:")]
        assert own == [f"{writer}:{number}" for number in range(50)]


def test_whoever_writes_too_much_is_held_up(opened, monkeypatch):
    monkeypatch.setattr("cpsim.store.log.MAX_WAITING_CHARS", 10)
    log = opened()
    for _ in range(100):
        log.append(["x" * 20])
    log.wait()
    assert len(everything(log)) == 100


def test_a_file_in_use_is_not_opened(opened, path):
    assert not in_use(path)
    opened()
    assert in_use(path)
    with pytest.raises(CpsimError, match=f"{path} is in use"):
        Log(path, KIND)


def test_a_file_of_another_kind_is_not_opened(opened, path):
    with closing(Log(path, KIND)) as log:
        log.append(["a"])
    with pytest.raises(CpsimError, match="is not a MINE file"):
        Log(path, "MINE")
    assert everything(opened()) == [(1, "a")]


def test_what_is_no_log_is_not_touched(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("Dear diary,\n" * 200)
    database = tmp_path / "other.db"
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE log (position)")
    other.close()
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(CpsimError, match=path.name):
            Log(path, KIND)
        assert path.read_bytes() == before
        assert not in_use(path)


def test_a_damaged_file_is_told(opened, path):
    with closing(Log(path, KIND)) as log:
        log.append([f"{number:0100}" for number in range(2000)])
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(CpsimError, match="log"):
        Log(path, KIND)
    path.unlink()
    opened()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(CpsimError, match="No such file"):
        Log(tmp_path / "nowhere" / "log", KIND)


def test_what_was_durable_outlives_the_process(opened, path):
    code = f"""if True:
        import sys, pathlib
        from cpsim.store.log import Log
        log = Log(pathlib.Path({str(path)!r}), {KIND!r})
        for number in range(10**9):
            log.append([str(number)])
            log.wait()
            print(number, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        seen = [int(process.stdout.readline()) for _ in range(100)]
        process.send_signal(signal.SIGKILL)
        seen += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    records = [int(record) for _, record in everything(opened())]
    assert records[: len(seen)] == seen
    assert len(records) - len(seen) <= 1


def test_what_was_sent_is_read_by_nobody_else(opened, path):
    opened().append(["a"])
    opened()
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("log", "log-shm", "log-wal", "log.lock"), 0o600)
