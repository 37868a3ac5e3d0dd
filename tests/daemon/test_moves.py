"""Commands that move from one daemon's spool to another's, and what a drain leaves to move."""

import json
import signal
import stat
import subprocess
import sys
import zlib
from contextlib import closing, contextmanager
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.daemon.client import BulkClient
from cpsim.daemon.courier import Courier
from cpsim.daemon.failed import DEAD_LETTER, REFUSED, FailedCommand
from cpsim.daemon.moves import export_to
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.store.log import Log
from cpsim.testing import ManualClock

SECRET = "hush-hush"
ALLOCS = [f"alloc,slot={name},credits=5" for name in "abc"]
KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from cpsim.daemon.export_file import read_export
from cpsim.daemon.moves import import_into
from cpsim.store.file import LogFile
from cpsim.store.log import Log

class Killed(LogFile):
    def execute(self, sql, parameters=()):
        if sys.argv[1] in sql:
            os.kill(os.getpid(), signal.SIGKILL)
        super().execute(sql, parameters)

export = read_export(Path("moved").open("rb"), "moved")
import_into(Path("new"), export, open_log=partial(Log, file=Killed))
"""


@contextmanager
def opened(path):
    with closing(Spool(Path(path), clock=ManualClock(1_000_000), open_log=partial(Log, threaded=False))) as spool:
        yield spool


def keep(spool, *frames):
    problems = []
    last = spool.put(frames, {}, problems.append)
    spool.wait()
    assert problems == [None]
    spool.release(last)


@pytest.fixture
def fill(here):
    """Return fill(path, *frames, project) -> None: a spool of these commands, in the current folder."""

    def make(path, *frames, project="p"):
        with opened(path) as spool:
            spool.set_project(project)
            keep(spool, *frames)

    return make


@pytest.fixture
def exported(fill, cpsim):
    """Return exported(*frames, project) -> the lines of the file `moved`, to which the spool `old` was exported."""

    def make(*frames, project="p"):
        fill("old", *frames, project=project)
        assert cpsim("daemon", "--spool", "old", "--export", "moved")[0] == 0
        return Path("moved").read_bytes().splitlines(keepends=True)

    return make


def moved_into(cpsim, spool, file="moved"):
    status, out, error = cpsim("daemon", "--spool", spool, "--import", file)
    assert (status, error) == (0, "")
    return out


def queued(path):
    """The commands that a daemon would send from a spool, in order."""
    with opened(path) as spool:
        found = []
        while batch := spool.take():
            found += [text for _, text in batch.commands]
            spool.settle(batch, [])
        return found


def test_the_books_agree_after_a_move_in_the_middle_of_a_batch(here, cpsim):
    with Fake({"p": SECRET}, http=ANY_PORT, faults=["server.lose-reply:slot=a,count=1"]) as fake:
        url = parse_endpoint(fake.addresses["http"])

        def deliver(path, *frames):
            with opened(path) as spool, closing(BulkClient(url, ("p", SECRET), 60.0)) as server:
                spool.set_project("p")
                keep(spool, *frames)
                Courier(spool, server, 0, clock=ManualClock()).step()
                return spool.pending, spool.failed

        claims = [f"claim,slot={name},machine=m" for name in "abc"]
        assert deliver("old", *ALLOCS, "claim,slot=never,machine=m") == (4, 0)
        assert [firing.action for firing in fake.faults.firings] == ["lose-reply"]
        with opened("old") as spool:  # what comes behind the batch whose outcome nobody knows
            keep(spool, *claims)
        assert cpsim("daemon", "--spool", "old", "--export", "moved")[0] == 0
        assert SECRET not in Path("moved").read_text()
        assert moved_into(cpsim, "new").startswith("imported 7 queued commands, 0 refused commands and dead letters")
        assert moved_into(cpsim, "new").endswith("before: nothing was changed\n")
        assert deliver("new") == (3, 1)
        assert deliver("new") == (0, 1)
        with fake.accounts.reading() as ledger:
            slots = {name: (slot.state, slot.granted) for name, slot in ledger.project("p").slots.items()}
            assert slots == dict.fromkeys("abc", ("claimed", 5))
            assert ledger.project("p").machines["m"].earned.credits == 15
        (row,) = read_failed(Path("new"))
        assert row.command == "claim,slot=never,machine=m"


def test_an_export_has_all_that_the_spool_holds_and_no_more(fill, cpsim):
    fill("old", *ALLOCS, 'meta,slot=a,note=é"\\')
    with opened("old") as spool:
        batch = spool.take(2)
        rows = [(REFUSED, "no"), (DEAD_LETTER, "who knows")]
        spool.settle(
            batch,
            [
                FailedCommand(at, at, why, text, error)
                for (at, text), (why, error) in zip(batch.commands, rows, strict=True)
            ],
        )
    before = read_failed(Path("old"))
    assert cpsim("daemon", "--spool", "old", "--export", "moved") == (
        0,
        "exported 2 queued commands, 2 refused commands and dead letters to moved\n",
        "",
    )
    assert stat.S_IMODE(Path("moved").stat().st_mode) == 0o600
    sum_, found = 0, []
    for line in Path("moved").read_bytes().splitlines(keepends=True):  # as anybody can check it
        fields = json.loads(line)
        checked = line[: -len(', "crc32": "01234567"}\n')]
        assert fields.pop("crc32") == f"{zlib.crc32(checked, sum_):08x}"
        sum_ = zlib.crc32(line, sum_)
        found.append(fields)
    header, *entries = found
    assert (header["format"], header["version"], header["project"], header["lines"]) == ("cpsim spool", 1, "p", 4)
    assert entries[:2] == [
        {"state": "refused", "at_us": 1, "command": ALLOCS[0], "error": "no"},
        {"state": "dead letter", "at_us": 2, "command": ALLOCS[1], "error": "who knows"},
    ]
    assert [(each["state"], each["at_us"]) for each in entries[2:]] == [("queued", 1_000_000)] * 2

    moved_into(cpsim, "new")
    assert [row[1:] for row in read_failed(Path("new"))] == [row[1:] for row in before]
    assert read_status(Path("new")).queued == 2
    assert queued("new") == [ALLOCS[2], 'meta,slot=a,note=é"\\']


def test_what_was_exported_is_delivered_nowhere_else(exported, cpsim):
    lines = exported(*ALLOCS)
    status, out, _ = cpsim("daemon", "--spool", "old", "--status")
    assert (status, out.splitlines()[-1]) == (0, f"exported      {json.loads(lines[0])['id']}")
    assert cpsim("daemon", "--spool", "old", "--requeue", "all")[2].startswith(
        "cpsim: old was exported, and is delivered"
    )
    with pytest.raises(CpsimError, match="old was exported"):
        Spool(Path("old"))
    assert cpsim("daemon", "--spool", "old", "--export", "moved") == (2, "", "cpsim: moved exists: name a new file\n")
    assert cpsim("daemon", "--spool", "old", "--export", "again")[0] == 0
    assert Path("again").read_bytes().splitlines(keepends=True) == lines


def test_an_export_can_be_taken_back(exported, cpsim):
    exported(*ALLOCS)
    assert "delivers again what it had exported, 3 queued commands" in moved_into(cpsim, "old")
    assert "nothing was changed" in moved_into(cpsim, "old")
    assert queued("old") == ALLOCS


def test_what_is_imported_keeps_its_own_numbers_and_times(exported, fill, cpsim):
    with opened("old") as spool:
        spool.set_project("p")
        keep(spool, "claim,slot=z,machine=m")
        spool.settle(spool.take(), [FailedCommand(1, 1, REFUSED, "claim,slot=z,machine=m", "no")])
    exported(*ALLOCS)
    fill("new", "alloc,slot=first")
    moved_into(cpsim, "new")
    assert read_status(Path("new")).queued == 4
    (row,) = read_failed(Path("new"))
    assert queued("new") == ["alloc,slot=first", *ALLOCS]
    with opened("new") as spool:
        assert spool.requeue({row.position}) == 1
    assert queued("new") == ["claim,slot=z,machine=m"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "moved is empty: expected what cpsim daemon --export writes"),
        (lambda lines: [b"alloc,slot=a\n"], "line 1: expected a JSON object, not b'alloc,slot=a\\n'"),
        (lambda lines: [b"{}\n"], 'line 1: format = null: expected "cpsim spool"'),
        (lambda lines: [lines[0].replace(b"1,", b"2,", 1)], "line 1: version = 2: written by a later version of cpsim"),
        (lambda lines: [lines[0], lines[1].replace(b"=5", b"=50"), *lines[2:]], 'line 2: crc32 = "'),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 'line 2: crc32 = "'),
        (lambda lines: lines[:-1], "moved is not whole: line 1: lines = 3, and 2 lines follow"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], 'line 4: crc32 = "'),
        (lambda lines: [*lines, lines[-1]], 'line 5: crc32 = "'),
        (lambda lines: sealed(lines, state="sent"), 'line 4: state = "sent": expected refused or dead letter or'),
        (lambda lines: sealed(lines, at_us=-1), "line 4: at_us = -1: expected microseconds since 1970"),
        (lambda lines: sealed(lines, command=""), 'line 4: command = "": expected text without NUL'),
        (lambda lines: sealed(lines, why="no"), "line 4: why: unknown key"),
        (lambda lines: sealed(lines, state="under way"), "line 1: under_way: expected a batch exactly if"),
    ],
)
def test_what_is_damaged_is_refused_as_a_whole(exported, cpsim, change, said):
    Path("moved").write_bytes(b"".join(change(exported(*ALLOCS))))
    status, _, error = cpsim("daemon", "--spool", "new", "--import", "moved")
    assert (status, said in error) == (2, True), error
    assert not Path("new").exists()


def sealed(lines, **changes):
    """Lines whose last one has other fields, and the right checksum."""
    fields = json.loads(lines[-1]) | changes
    del fields["crc32"]
    text = json.dumps(fields)[:-1].encode()
    return [*lines[:-1], text + f', "crc32": "{zlib.crc32(text, zlib.crc32(b"".join(lines[:-1]))):08x}"}}\n'.encode()]


def test_an_import_that_would_double_or_mix_is_refused(exported, fill, cpsim):
    fill("new", "alloc,slot=first", project="q")
    exported(*ALLOCS)
    assert refused(cpsim, "new") == "new holds 1 commands of project 'q', and the export is of 'p': name another spool"
    moved_into(cpsim, "third")
    assert cpsim("daemon", "--spool", "third", "--export", "further")[0] == 0
    moved_into(cpsim, "fourth")
    assert "is a part of export" in refused(cpsim, "fourth", "further")
    fill("fifth", "alloc,slot=other")
    assert cpsim("daemon", "--spool", "fifth", "--export", "others")[0] == 0
    assert "third was exported: name another spool" in refused(cpsim, "third", "others")
    assert queued("fourth") == ALLOCS


def test_a_batch_under_way_needs_an_empty_queue(fill, cpsim):
    fill("old", *ALLOCS)
    with opened("old") as spool:
        spool.take(2)
    assert cpsim("daemon", "--spool", "old", "--export", "moved")[0] == 0
    fill("new", "alloc,slot=first")
    assert "a batch of 2 under way, which has to be sent first: name a new spool" in refused(cpsim, "new")
    assert queued("new") == ["alloc,slot=first"]
    moved_into(cpsim, "new")
    with opened("new") as spool:
        assert [text for _, text in spool.take().commands] == ALLOCS[:2]
        assert spool.take().resumed


def test_a_spool_in_use_is_neither_exported_nor_imported_into(exported, fill, cpsim):
    exported(*ALLOCS)
    fill("new", "alloc,slot=first")
    with opened("new"):
        assert refused(cpsim, "new") == "new is in use by a daemon: stop the daemon, and run this command again"
        status, _, error = cpsim("daemon", "--spool", "new", "--export", "other")
        assert (status, "new is in use by a daemon" in error) == (2, True)
    assert not Path("other").exists()


@pytest.mark.parametrize("at", ["INTO imported", pytest.param("INTO log", marks=pytest.mark.thorough)])
def test_an_import_that_is_killed_has_all_or_nothing(exported, cpsim, at):
    exported(*ALLOCS)
    run = subprocess.run([sys.executable, "-c", KILLED, at], check=False, timeout=280)
    assert run.returncode == -signal.SIGKILL
    assert read_status(Path("new")).queued == 0
    assert moved_into(cpsim, "new").startswith("imported 3 queued commands")
    assert queued("new") == ALLOCS


def test_through_standard_output_and_input(fill, cpsim, monkeypatch):
    fill("old", *ALLOCS)
    status, out, error = cpsim("daemon", "--spool", "old", "--export", "-")
    assert (status, error) == (
        0,
        "exported 3 queued commands, 0 refused commands and dead letters to standard output\n",
    )
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(out.encode())))
    moved_into(cpsim, "new", "-")
    assert queued("new") == ALLOCS


def test_a_stream_that_cannot_be_written_does_not_hide_that_the_spool_is_out_of_delivery(fill, cpsim):
    fill("old", *ALLOCS)
    said = "old is taken out of delivery, .*: No space left on device: export it again"
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(CpsimError, match=said):
        export_to(Path("old"), full)
    assert cpsim("daemon", "--spool", "old", "--export", "moved")[0] == 0
    moved_into(cpsim, "new")
    assert queued("new") == ALLOCS


def refused(cpsim, spool, file="moved"):
    status, out, error = cpsim("daemon", "--spool", spool, "--import", file)
    assert (status, out) == (2, "")
    return error.removeprefix("cpsim: ").rstrip("\n")
