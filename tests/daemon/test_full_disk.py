"""A spool on a disk that is full: nothing more is taken, and what is there is delivered."""

import shutil
import subprocess
from contextlib import suppress
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_status
from cpsim.store.reserve import Reserve

RESERVE_BYTES = 64 * 1024


@pytest.fixture
def disk(monkeypatch):
    """Return disk(free), which says how many bytes of the disk are free."""
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", reserve_bytes=RESERVE_BYTES)
    yield spool
    spool.close()


def put(spool, *frames):
    """What kept the frames from being written, if anything did."""
    problems = SimpleQueue()
    last = spool.put(frames, {}, problems.put)
    problem = problems.get(timeout=5)
    if problem is None:
        spool.release(last)
    return problem


def test_what_takes_away_is_written_with_the_room_of_the_reserve(spool, tmp_path, disk, monkeypatch):
    """SQLite is told that there is no room for more pages; the room of the reserve makes it some."""
    assert put(spool, *(f"alloc,slot={number}" for number in range(100))) is None
    database = spool._log._writing
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    give_up = Reserve.give_up

    def make_room(reserve):
        database.execute(f"PRAGMA max_page_count = {pages + 2}")
        return give_up(reserve)

    monkeypatch.setattr(Reserve, "give_up", make_room)
    disk(RESERVE_BYTES)
    assert "disk is full" in str(put(spool, "alloc,slot=" + "x" * 100_000))
    assert (tmp_path / "spool.reserve").stat().st_size == 0
    assert spool.is_full
    assert read_status(tmp_path / "spool").full
    batch = spool.take()
    spool.settle(batch, [])
    assert read_status(tmp_path / "spool").delivered == 100
    disk(2 * RESERVE_BYTES)
    assert not spool.is_full
    assert not read_status(tmp_path / "spool").full
    assert (tmp_path / "spool.reserve").stat().st_size == RESERVE_BYTES


def test_what_was_delivered_leaves_room_in_the_spool_itself(spool, tmp_path, disk, monkeypatch):
    assert put(spool, *(f"alloc,slot={number}{'x' * 1000}" for number in range(200))) is None
    (tmp_path / "spool.reserve").write_bytes(b"")
    monkeypatch.setattr(spool._log._reserve, "_is_held", False)
    disk(RESERVE_BYTES)
    assert spool.is_full
    spool.settle(spool.take(), [])
    assert not spool.is_full
    assert put(spool, "alloc,slot=a") is None


def test_a_disk_that_is_nearly_full_from_the_start(tmp_path, disk, caplog):
    caplog.set_level("INFO")
    disk(RESERVE_BYTES)
    spool = Spool(tmp_path / "spool", reserve_bytes=RESERVE_BYTES)
    assert spool.is_full
    assert read_status(tmp_path / "spool").full
    disk(2 * RESERVE_BYTES)
    assert not spool.is_full
    spool.close()
    said = [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records]
    assert said == [
        "spool: the disk is full: commands are answered ER until it has room",
        "spool: the disk has room again",
    ]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte of its own, where this system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("only root can mount a disk; the same is tested above without one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_daemon_that_starts_on_a_full_disk_delivers_what_it_has(small_disk):
    path = small_disk / "spool"
    spool = Spool(path, reserve_bytes=256 * 1024)
    assert put(spool, "alloc,slot=a") is None
    spool.close()
    with (small_disk / "log").open("wb", buffering=0) as log, suppress(OSError):
        while log.write(bytes(4096)):
            pass
    spool = Spool(path, reserve_bytes=256 * 1024)
    assert spool.is_full
    batch = spool.take()
    assert batch.calls == [("alloc", {"slot": "a"})]
    spool.settle(batch, [])
    (small_disk / "log").unlink()
    assert not spool.is_full
    assert put(spool, "alloc,slot=b") is None
    spool.close()
