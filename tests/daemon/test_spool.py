"""The spool on its own."""

import logging
import sqlite3
from contextlib import closing
from functools import partial

import pytest

from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.failed import DAMAGED, DEAD_LETTER, REFUSED, FailedCommand
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import Status, read_failed, read_status
from cpsim.errors import CpsimError
from cpsim.store.log import Log
from cpsim.testing import ManualClock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def clock():
    return ManualClock(SYSTEM_CLOCK.now_us())


@pytest.fixture
def opened(path, clock):
    """Return opened() -> Spool at one path, the one before it closed first; it writes when somebody waits for it."""
    spools = []

    def reopen(**options):
        if spools:
            spools.pop().close()
        spools.append(Spool(path, clock=clock, open_log=partial(Log, threaded=False), **options))
        return spools[-1]

    yield reopen
    if spools:
        spools.pop().close()


def put(spool, *frames, amended=None):
    problems = []
    last = spool.put(frames, amended or {}, problems.append)
    spool.wait()
    assert problems == [None]
    return last


def keep(spool, *frames):
    spool.release(put(spool, *frames))


def slots(batch):
    return [arguments["slot"] for _, arguments in batch.calls]


def test_what_is_put_is_taken_in_order(opened):
    spool = opened()
    assert spool.take() is None
    keep(spool, "alloc,slot=a", "CLAIM,slot=a,machine=m", "alloc,slot=b")
    batch = spool.take()
    assert batch.calls == [
        ("alloc", {"slot": "a"}),
        ("claim", {"slot": "a", "machine": "m"}),
        ("alloc", {"slot": "b"}),
    ]
    assert (spool.pending, batch.resumed) == (3, False)
    spool.settle(batch, [])
    assert spool.take() is None
    assert spool.pending == 0


def test_what_is_not_released_is_not_taken(opened):
    spool = opened()
    first = put(spool, "alloc,slot=a")
    put(spool, "alloc,slot=b")
    assert (spool.take(), spool.ready, spool.pending) == (None, 0, 2)
    spool.release(first)
    assert slots(spool.take()) == ["a"]


def test_a_frame_that_is_amended(opened):
    spool = opened()
    last = put(spool, "alloc,slot=a", "alloc,slot=b", "alloc,slot=c")
    put(spool, amended={last: "alloc,slot=c,credits=5", last - 1: ""})
    spool.release(last)
    assert spool.take().calls == [("alloc", {"slot": "a"}), ("alloc", {"slot": "c", "credits": "5"})]


def test_nothing_but_voided_frames(opened):
    spool = opened()
    last = put(spool, "alloc,slot=a")
    put(spool, amended={last: ""})
    spool.release(last)
    assert spool.take() is None
    assert spool.pending == 0
    keep(spool, "alloc,slot=b")
    assert slots(spool.take()) == ["b"]


def test_all_is_cleared(opened, path):
    spool = opened()
    keep(spool, "alloc,slot=a", "alloc,slot=b", "alloc,slot=c")
    batch = spool.take(1)
    spool.settle(batch, [FailedCommand(1, 0, REFUSED, "alloc,slot=a", "no")])
    spool.take(1)
    last = put(spool, "alloc,slot=d")
    spool.report_outage("away", 1)
    spool.clear()
    spool.release(last - 1)  # what was on its way
    for _ in range(2):
        assert (spool.pending, spool.ready, spool.failed, spool.take()) == (0, 0, 0, None)
        spool = opened()
    assert read_failed(path) == []
    status = read_status(path)
    assert (status.queued, status.delivered, status.refused, status.retries, status.trouble) == (0, 0, 0, 0, "")
    keep(spool, "alloc,slot=e")
    assert slots(spool.take()) == ["e"]


def test_a_batch_keeps_the_order_within_a_slot(opened):
    spool = opened()
    keep(spool, "counters,slot=a,x=1", "alloc,slot=b", "alloc,slot=a", "counters,slot=a,y=1")
    taken = []
    while batch := spool.take():
        taken.append(batch.calls)
        spool.settle(batch, [])
    assert [[kind for kind, _ in calls] for calls in taken] == [["counters", "alloc"], ["alloc", "counters"]]


def test_a_batch_has_at_most_so_many(opened):
    spool = opened()
    keep(spool, *(f"alloc,slot={number}" for number in range(5)))
    batch = spool.take(2)
    assert slots(batch) == ["0", "1"]
    spool.settle(batch, [])
    assert slots(spool.take(10)) == ["2", "3", "4"]


def test_a_batch_that_was_taken_is_found_again(opened):
    spool = opened()
    keep(spool, "alloc,slot=a", "alloc,slot=b")
    batch = spool.take(1)
    assert spool.take(2) == opened().take(2)
    again = opened().take(2)
    assert (again.id, again.calls, again.resumed) == (batch.id, batch.calls, True)


def test_a_batch_that_was_put_back_is_made_anew(opened, path):
    spool = opened()
    keep(spool, "alloc,slot=a", "alloc,slot=b")
    batch = spool.take(1)
    spool.put_back()
    again = opened().take(2)
    assert slots(again) == ["a", "b"]
    assert again.id != batch.id
    assert not again.resumed


def test_batches_are_numbered_for_good(opened, path):
    """Each has a number of its own, above those before it, also after a restart and where it could not be written."""
    spool = opened()
    keep(spool, *(f"alloc,slot={number}" for number in range(4)))
    ids = []
    for number in range(4):
        batch = spool.take(1)
        ids.append(batch.id)
        if number % 2:
            spool.put_back()
        else:
            spool.settle(batch, [])
        spool = opened()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("ALTER TABLE batch RENAME TO elsewhere")
        with pytest.raises(CpsimError, match="no such table"):
            spool.take()
        other.execute("ALTER TABLE elsewhere RENAME TO batch")
    ids.append(spool.take().id)
    senders, numbers = zip(*(id_.split("-") for id_ in ids), strict=True)
    assert len(set(senders)) == 1
    assert [int(number) for number in numbers] == [1, 2, 3, 4, 6]


def test_a_spool_of_an_older_version_is_delivered(opened, path):
    """It has no sender, and its open batch has an id without a number."""
    spool = opened()
    keep(spool, "alloc,slot=a", "alloc,slot=b")
    spool.take(1)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE batch SET id = 'f00d'")
        database.execute("DROP TABLE sender")
    spool = opened()
    batch = spool.take()
    assert (batch.id, slots(batch), batch.resumed) == ("f00d", ["a"], True)
    spool.settle(batch, [])
    assert spool.take().id.endswith("-1")


def test_a_full_spool(opened, path):
    spool = opened(max_commands=2)
    put(spool, "alloc,slot=a")
    assert not spool.is_full
    keep(spool, "alloc,slot=b")
    assert spool.is_full
    batch = spool.take(1)
    spool.settle(batch, [FailedCommand(batch.last, 1, DEAD_LETTER, "alloc,slot=a", "who knows")])
    assert spool.is_full
    spool.settle(spool.take(), [])
    assert not spool.is_full
    spool = opened(max_commands=1)
    assert spool.is_full


NO_COMMANDS = {
    "'nonsense'": "nonsense",
    "CAST(X'616C6C6F632C736C6F743DFF' AS TEXT)": repr(b"alloc,slot=\xff"),
    "'alloc,slot=a' || char(0)": repr(b"alloc,slot=a\0"),
    "'claim,slot=a'": "claim,slot=a",
    "'alloc,slot=' || hex(zeroblob(2000))": "alloc,slot=" + "0" * 4000,
}


def spoil(path, position, record):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE log SET record = {record}, checksum = NULL WHERE position = {position}")


@pytest.mark.parametrize("record", NO_COMMANDS)
def test_a_record_that_is_no_command_becomes_a_dead_letter(opened, path, record):
    spool = opened()
    keep(spool, *(f"alloc,slot={slot}" for slot in "abcd"))
    spoil(path, 2, record)
    batch = spool.take()
    assert slots(batch) == ["a", "c", "d"]
    spool.settle(batch, [])
    assert (spool.take(), spool.pending, spool.failed) == (None, 0, 1)
    (row,) = read_failed(path)
    assert (row.position, row.why, row.command) == (2, DEAD_LETTER, NO_COMMANDS[record])
    assert "the record is malformed: " in row.error
    assert read_status(path).delivered == 3
    spool = opened()
    assert spool.requeue(None) == 1
    spool = opened()
    assert (spool.take(), spool.failed) == (None, 1)  # it is none now, either


def test_a_record_without_a_checksum_that_is_no_text_is_damaged(opened, path):
    spool = opened()
    keep(spool, *(f"alloc,slot={slot}" for slot in "abcd"))
    spoil(path, 2, "X'616C6C6F632C736C6F743DFF'")
    batch = spool.take()
    assert slots(batch) == ["a", "c", "d"]
    spool.settle(batch, [])
    (row,) = read_failed(path)
    assert (row.position, row.why, row.command) == (2, DEAD_LETTER, rf"{DAMAGED}alloc,slot=\xff")


def test_nothing_but_records_that_are_no_commands(opened, path):
    spool = opened()
    keep(spool, "alloc,slot=a", "alloc,slot=b")
    spoil(path, 1, "'a'")
    spoil(path, 2, "'b'")
    assert (spool.take(), spool.ready) == (None, 0)
    assert [row.command for row in read_failed(path)] == ["a", "b"]


def test_a_batch_that_was_sent_with_what_is_no_command_becomes_dead_letters(opened, path):
    spool = opened()
    keep(spool, *(f"alloc,slot={slot}" for slot in "abc"))
    spool.take(2)
    spoil(path, 1, "'nonsense'")
    spool = opened()
    batch = spool.take()
    assert (slots(batch), batch.resumed) == (["c"], False)
    rows = read_failed(path)
    assert [(row.command, row.why) for row in rows] == [("nonsense", DEAD_LETTER), ("alloc,slot=b", DEAD_LETTER)]
    assert "whether it was applied is unknown" in rows[1].error
    assert read_status(path).delivered == 0


def test_the_status_of_a_spool(opened, path):
    spool = opened()
    keep(spool, *(f"alloc,slot={number}" for number in range(10)))
    rows = [
        FailedCommand(2, 20, REFUSED, "alloc,slot=1", "no"),
        FailedCommand(1, 10, DEAD_LETTER, "alloc,slot=0", "who knows"),
    ]
    spool.settle(spool.take(4), rows)
    spool.count_retry()
    put(spool)
    status = read_status(path)
    assert 0 < status.oldest_s < 60
    assert status == Status(
        running=True,
        queued=6,
        oldest_s=status.oldest_s,
        delivered=2,
        refused=1,
        dead_letters=1,
        retries=1,
        full=False,
        trouble="",
        trouble_s=0.0,
    )
    assert read_failed(path) == sorted(rows)
    spool.settle(spool.take(), [])
    opened()
    assert (read_status(path).queued, read_status(path).oldest_s) == (0, 0.0)


def test_the_status_says_which_part_has_failed(opened, path):
    spool = opened()
    keep(spool, "alloc,slot=a", "alloc,slot=b", "alloc,slot=c")
    assert read_status(path).failures == []
    long_ago_us = SYSTEM_CLOCK.now_us() - 121_000_000
    for since_us, said in ((SYSTEM_CLOCK.now_us(), []), (long_ago_us, ["for 2 min nothing was delivered, and 3 comm"])):
        spool.report_outage("away", since_us)
        spool.wait()
        assert [text[:43] for text in read_status(path).failures] == said
        assert read_status(path).trouble_s >= (121 if said else 0)
    spool.report_outage(None, 0)
    spool.settle(spool.take(1), [FailedCommand(1, 20, DEAD_LETTER, "alloc,slot=a", "who knows")])
    assert [text.partition(";")[0] for text in read_status(path).failures] == ["dead letters: 1"]


def test_a_spool_says_that_it_takes_no_more(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with closing(Spool(tmp_path / "small", max_commands=2)) as spool:
        assert not spool.is_full
        put(spool, "alloc,slot=a", "alloc,slot=b")
        spool.release(2)
        assert spool.is_full
        assert spool.is_full
        spool.settle(spool.take(), [])
        assert not spool.is_full
    said = [(record.levelname, record.message.partition(": ")[0]) for record in caplog.records]
    assert said == [
        ("ERROR", f"{tmp_path / 'small'} holds 2 commands, the most it takes"),
        ("INFO", f"{tmp_path / 'small'} takes commands again"),
    ]


def test_there_is_no_status_where_there_is_no_spool(path, tmp_path):
    with pytest.raises(CpsimError, match="there is no spool"):
        read_status(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("Dear diary," * 100)
    with pytest.raises(CpsimError, match="not a database"):
        read_status(path)
