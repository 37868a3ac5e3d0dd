"""A spool on a disk that is full: nothing more is taken, and what is there is delivered."""

import subprocess
from contextlib import suppress
from functools import partial

import pytest

from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_status
from cpsim.errors import CpsimError
from cpsim.store.file import LogFile, reserve_of
from cpsim.store.log import Log

RESERVE_BYTES = 64 * 1024


class Disk:
    """The disk of a spool: its free bytes, and the pages that the spool's file may have while the reserve is held."""

    free_bytes = 2**30
    pages = None

    def open_spool(self, path):
        """A spool on it, which writes when somebody waits for it."""
        disk = self

        class File(LogFile):
            def free_bytes(self):
                return disk.free_bytes

            def execute(self, sql, parameters=()):
                if sql.startswith("BEGIN") and disk.pages is not None:
                    room = 0 if reserve_of(path).stat().st_size else 2
                    super().execute(f"PRAGMA max_page_count = {disk.pages + room}")
                super().execute(sql, parameters)

        open_log = partial(Log, file=File, threaded=False)
        return Spool(path, reserve_bytes=RESERVE_BYTES, open_log=open_log)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def spool(tmp_path, disk):
    spool = disk.open_spool(tmp_path / "spool")
    yield spool
    spool.close()


def put(spool, *frames):
    """What kept the frames from being written, if anything did."""
    problems = []
    last = spool.put(frames, {}, problems.append)
    with suppress(CpsimError):
        spool.wait()
    (problem,) = problems
    if problem is None:
        spool.release(last)
    return problem


def test_what_takes_away_is_written_with_the_room_of_the_reserve(spool, tmp_path, disk):
    """SQLite is told that there is no room for more pages; the room of the reserve makes it some."""
    assert put(spool, *(f"alloc,slot={number}" for number in range(100))) is None
    disk.pages = (tmp_path / "spool").stat().st_size // 4096 + 1  # the log's table has grown by a page
    disk.free_bytes = RESERVE_BYTES
    assert "disk is full" in str(put(spool, "alloc,slot=" + "x" * 100_000))
    assert (tmp_path / "spool.reserve").stat().st_size == 0
    assert spool.is_full
    assert read_status(tmp_path / "spool").full
    batch = spool.take()
    spool.settle(batch, [])
    assert read_status(tmp_path / "spool").delivered == 100
    disk.free_bytes = 2 * RESERVE_BYTES
    assert not spool.is_full
    assert not read_status(tmp_path / "spool").full
    assert (tmp_path / "spool.reserve").stat().st_size == RESERVE_BYTES


def test_what_was_delivered_leaves_room_in_the_spool_itself(tmp_path, disk):
    disk.free_bytes = RESERVE_BYTES
    spool = disk.open_spool(tmp_path / "spool")
    assert put(spool, *(f"alloc,slot={number}{'x' * 1000}" for number in range(200))) is None
    assert spool.is_full
    spool.settle(spool.take(), [])
    assert not spool.is_full
    assert put(spool, "alloc,slot=a") is None
    spool.close()


def test_a_disk_that_is_nearly_full_from_the_start(tmp_path, disk, caplog):
    caplog.set_level("INFO")
    disk.free_bytes = RESERVE_BYTES
    spool = disk.open_spool(tmp_path / "spool")
    assert spool.is_full
    assert read_status(tmp_path / "spool").full
    disk.free_bytes = 2 * RESERVE_BYTES
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
