"""Copies of spools and stores that a process has open."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cpdaemon import Client
from cpsim.daemon.failed import REFUSED, FailedCommand
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed
from cpsim.fake import ANY_PORT, Fake

FRAMES = ["alloc,slot=a", "claim,slot=a,machine=m", "alloc,slot=é"]


@pytest.fixture
def spool(here):
    """The spool `spool`, open, with a failed command and two that wait, in its write-ahead log alone."""
    with closing(Spool(Path("spool"))) as spool:
        spool.release(spool.put(FRAMES, {}, lambda _: None))
        spool.wait()
        spool.settle(spool.take(1), [FailedCommand(1, 5, REFUSED, FRAMES[0], "no")])
        yield spool


def names():
    return {path.name for path in Path().iterdir()}


def test_a_copy_of_a_spool_in_use_opens_by_itself(spool, cpsim):
    before = names()
    assert cpsim("daemon", "--spool", "spool", "--backup", "copy") == (0, "copied spool to copy\n", "")
    assert names() == before | {"copy"}
    spool.release(spool.put(["alloc,slot=later"], {}, lambda _: None))
    spool.wait()
    with closing(Spool(Path("copy"))) as copy:
        assert [text for _, text in copy.take().commands] == FRAMES[1:]
    assert read_failed(Path("copy")) == read_failed(Path("spool"))


def test_a_copy_whose_original_was_between_two_marks_is_whole(spool, cpsim):
    with closing(sqlite3.connect("spool", isolation_level=None)) as database:
        database.execute("UPDATE whole SET is_whole = 0")
    assert cpsim("daemon", "--spool", "spool", "--backup", "copy")[0] == 0
    with closing(Spool(Path("copy"))) as copy:
        assert copy.pending == 2


@pytest.mark.parametrize(
    ("change", "record"),
    [
        ("UPDATE log SET record = record || 'x' WHERE position = 3", "record 3 of log"),
        ("UPDATE failed SET error = 'yes'", "record 1 of failed"),
    ],
)
def test_a_damaged_record_is_named(spool, cpsim, change, record):
    with closing(sqlite3.connect("spool", isolation_level=None)) as database:
        database.execute(change)
    status, out, _ = cpsim("daemon", "--spool", "spool", "--backup", "copy")
    assert (status, out) == (1, f"copied spool to copy\ndamaged: {record} is not what was received\n")


def test_what_cannot_be_copied(spool, cpsim):
    Path("there").write_text("a backup of last week")
    Path("text").write_text("no database")
    before = names()
    for arguments, said in (
        (("spool", "there"), "there exists: name a new file"),
        (("none", "copy"), "there is no spool none"),
        (("text", "copy"), "text: file is not a database"),
        (("spool", "none/copy"), "none/copy cannot be written: No such file or directory"),
    ):
        assert cpsim("daemon", "--spool", arguments[0], "--backup", arguments[1]) == (2, "", f"cpsim: {said}\n")
    assert names() == before
    assert Path("there").read_text() == "a backup of last week"
    assert cpsim("daemon", "--backup", "copy")[0] == cpsim("serve", "--backup", "copy")[0] == 64


def test_a_copy_of_a_running_server_has_its_books_and_its_queues(here, cpsim):
    with (
        Fake({"p": "s"}, unix=Path("socket"), http=ANY_PORT, store=Path("store")) as fake,
        Client(fake.addresses["http"], ("p", "s")) as direct,
        Client("./socket") as queued,
    ):
        direct.alloc("a", credits=5)
        with fake.faults.down():
            queued.claim("a", "m")
            status, out, error = cpsim("serve", "--store", "store", "--backup", "copy")
        assert (status, error) == (0, "")
        assert out == "copied to copy.p.spool\ncopied to copy\n"
        direct.alloc("later")
    with Fake({"p": "s"}, unix=Path("other"), store=Path("copy")) as fake:
        fake.wait_until_idle()
        with fake.accounts.reading() as ledger:
            assert list(ledger.project("p").slots) == ["a"]
            assert ledger.project("p").machines["m"].earned.credits == 5


def test_a_copy_of_a_server_is_all_or_nothing(here, cpsim):
    with Fake({"p": "s"}, unix=Path("socket"), store=Path("store")):
        Path("copy").touch()
        before = names()
        assert cpsim("serve", "--store", "store", "--backup", "copy")[0] == 2
        assert names() == before
