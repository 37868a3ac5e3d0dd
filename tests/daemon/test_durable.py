"""The daemon's sockets in front of a spool."""

import socket
import sqlite3
from functools import partial

import pytest

from cpsim.daemon.durable import DurableListener
from cpsim.daemon.link import Link
from cpsim.daemon.spool import Spool
from cpsim.store.file import LogFile
from cpsim.store.log import Log

LONG_S = 60


class BrokenFile(LogFile):
    """A file that fails at the statements named, by their first words."""

    failing = ()

    def execute(self, sql, parameters=()):
        if sql.startswith(self.failing):
            raise sqlite3.OperationalError("disk I/O error")
        super().execute(sql, parameters)


@pytest.fixture
def files():
    return []


@pytest.fixture
def open_log(files):
    """Opens a log that a test steps, on a file that can be broken."""

    def open_file(path, kind):
        files.append(BrokenFile(path, kind))
        return files[-1]

    return partial(Log, file=open_file, threaded=False)


@pytest.fixture
def disk(files):
    """Return disk(*statements), which has those of the spool fail from now on."""

    def fail(*statements):
        files[-1].failing = statements

    return fail


class Site:
    """A spool, and a listener in front of it, both stepped by hand."""

    def __init__(self, path, open_log, stepped_with, **options):
        self.logs = []

        def opened(*arguments, **options):
            self.logs.append(open_log(*arguments, **options))
            return self.logs[-1]

        self.spool = Spool(path, open_log=opened, **options)
        self.stepped = stepped_with(lambda sockets, clock: DurableListener(sockets, self.spool, clock))
        self.connect, self.send, self.answer = self.stepped.connect, self.stepped.send, self.stepped.answer

    def write(self):
        """Make the commits that are due, and let the listener know."""
        commits = 0
        while self.logs[0].step():
            commits += 1
            self.stepped.step()
        return commits

    def say(self, frame):
        sock = self.connect(frame)
        self.write()
        return self.answer(sock)

    def written(self):
        return [record for (record,) in self.logs[0].query("SELECT record FROM log")]

    def delivered(self):
        """What may be delivered, once those who are quiet have had their time."""
        self.stepped.end_quiet()
        self.write()
        batch = self.spool.take()
        return [] if batch is None else [frame for _, frame in batch.commands]


@pytest.fixture
def site_of(tmp_path, open_log, stepped_with):
    sites = []

    def make(**options):
        sites.append(Site(tmp_path / "spool", open_log, stepped_with, **options))
        return sites[-1]

    yield make
    for site in sites:
        site.stepped.stop()
        site.spool.close()


@pytest.fixture
def site(site_of):
    return site_of()


def test_ok_waits_until_it_is_on_disk(site):
    sock = site.connect(b"alloc,slot=a")
    assert (site.answer(sock), site.written()) == (None, [])
    assert site.write() == 1
    assert (site.answer(sock), site.written()) == (b"OK", ["alloc,slot=a"])
    assert site.delivered() == ["alloc,slot=a"]


def test_malformed_frames_are_refused_at_once(site):
    assert site.answer(site.connect(b"pay,slot=a\n")) == b"ER"
    assert site.spool.pending == 0


@pytest.mark.parametrize("ending", [b"", b"\n", b" \r\n"])
def test_a_frame_that_grows_before_it_is_answered(site, ending):
    sock = site.connect(b"alloc,slot=a")
    sock.sendall(b"bc,credits=5" + ending)
    assert site.write() == 2
    assert site.answer(sock) == b"OK"
    assert site.written() == ["alloc,slot=abc,credits=5"]
    assert site.delivered() == ["alloc,slot=abc,credits=5"]


@pytest.mark.parametrize(("more", "frames"), [(b"b,credits=5\n", ["alloc,slot=ab,credits=5"]), (b",", [])])
def test_a_frame_that_grows_after_it_is_answered(site, more, frames):
    sock = site.connect(b"alloc,slot=a")
    site.write()
    assert (site.answer(sock), site.spool.ready) == (b"OK", 0)
    site.send(sock, more)
    assert site.delivered() == frames


def test_what_cannot_be_written_is_refused(site, disk):
    disk("BEGIN")
    assert site.say(b"alloc,slot=a\n") == b"ER"
    disk()
    assert site.say(b"alloc,slot=b\n") == b"OK"
    assert site.delivered() == ["alloc,slot=b"]


def test_what_may_have_been_written_is_not_answered(site, disk):
    """Neither OK nor ER may be true; after a restart, it would be known."""
    disk("COMMIT")
    assert site.say(b"alloc,slot=a\n") == b""
    disk()
    assert site.say(b"alloc,slot=b\n") == b"OK"
    assert site.delivered() == ["alloc,slot=b"]


def test_a_full_spool_takes_no_more(site_of):
    site = site_of(max_commands=1)
    assert [site.say(b"alloc,slot=%d" % number) for number in range(3)] == [b"OK", b"ER", b"ER"]
    assert site.delivered() == ["alloc,slot=0"]


def test_many_clients_share_a_commit(site):
    clients = [site.connect() for _ in range(50)]
    for number, sock in enumerate(clients):
        sock.sendall(b"alloc,slot=%d" % number)
    site.stepped.step()
    assert site.write() == 1
    assert {site.answer(sock) for sock in clients} == {b"OK"}
    assert sorted(site.delivered()) == sorted(f"alloc,slot={number}" for number in range(50))


def test_to_stop_answers_what_has_arrived(site):
    sock = site.connect(b"alloc,slot=a")
    assert site.answer(sock) is None
    site.stepped.stop()
    assert site.answer(sock) == b"OK"
    assert [frame for _, frame in site.spool.take().commands] == ["alloc,slot=a"]


def test_what_has_grown_and_could_not_be_written_before_is_written_when_the_daemon_stops(site, disk):
    sock = site.connect(b"alloc,slot=a")
    site.write()
    assert site.answer(sock) == b"OK"
    disk("BEGIN")
    site.send(sock, b"b\n")
    site.write()
    disk()
    site.stepped.stop()
    assert site.written() == ["alloc,slot=ab"]
    assert [frame for _, frame in site.spool.take().commands] == ["alloc,slot=ab"]


def test_a_disk_that_cannot_be_written_is_tried_again_after_a_while_and_in_order(site, disk):
    """What has grown is delivered as it ended, and nothing behind it before that is written."""
    sock = site.connect(b"alloc,slot=a")
    site.write()
    disk("BEGIN")
    site.send(sock, b"b\n")
    assert (site.write(), site.write()) == (1, 0)  # and no more, without time
    site.stepped.end_quiet()
    assert (site.write(), site.spool.ready) == (1, 0)
    other = site.connect(b"alloc,slot=c\n")
    site.stepped.step()
    disk()
    site.write()
    assert site.answer(other) == b"OK"
    assert site.delivered() == ["alloc,slot=ab", "alloc,slot=c"]


def test_where_the_longer_frame_is_not_written_the_shorter_on_disk_is_neither_answered_nor_delivered(site, disk):
    sock = site.connect(b"alloc,slot=a")
    sock.sendall(b"b\n")
    assert site.logs[0].step()
    disk("BEGIN")
    site.stepped.step()
    site.write()
    assert site.answer(sock) == b""  # a restart would find it
    disk()
    assert site.say(b"alloc,slot=c\n") == b"OK"
    assert site.delivered() == ["alloc,slot=c"]


def test_that_the_spool_cannot_be_written_is_told_once_and_so_is_its_end(site, disk, caplog, tmp_path):
    caplog.set_level("INFO")
    disk("BEGIN")
    assert [site.say(b"alloc,slot=a\n"), site.say(b"alloc,slot=b\n")] == [b"ER", b"ER"]
    disk()
    assert [site.say(b"alloc,slot=c\n"), site.say(b"alloc,slot=d\n")] == [b"OK", b"OK"]
    assert [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records] == [
        "spool: disk I/O error: commands are answered ER until the spool can be written",
        "the spool can be written again",
    ]


def test_what_the_spool_reports_while_the_listener_is_awake_is_not_slept_through(tmp_path, open_log, stepped_with):
    handled, reports = [], ["late"]

    def report():
        if handled and reports:
            stepped.listener.call(partial(handled.append, reports.pop()))

    class WakeEnd(socket.socket):
        def recv(self, *arguments):
            report()
            return super().recv(*arguments)

    link = Link()
    link.wake_end = WakeEnd(fileno=link.wake_end.detach())
    spool = Spool(tmp_path / "spool", open_log=open_log)
    stepped = stepped_with(lambda sockets, clock: DurableListener(sockets, spool, clock, link))
    stepped.listener.call(partial(handled.append, "early"))
    stepped.step()
    report()
    stepped.step()
    assert handled == ["early", "late"]
    stepped.stop()
    spool.close()


# With threads


@pytest.fixture
def threads(tmp_path):
    """(A spool, the address of a listener in front of it), both with threads and on the machine's clock."""
    spool = Spool(tmp_path / "spool")
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    listener = DurableListener([sock], spool)
    listener.open()
    listener.start()
    yield spool, partial(socket.create_connection, address, LONG_S)
    listener.stop()
    spool.close()


def test_threads_answer_what_is_on_disk(threads, by_hand, wait_for):
    spool, connect = threads
    with connect() as sock:
        sock.sendall(b"alloc,slot=a")
        assert by_hand.read_all(sock) == b"OK"
    wait_for(lambda: spool.ready == 1)
    assert [frame for _, frame in spool.take().commands] == ["alloc,slot=a"]


def test_a_spool_that_another_process_writes_to_for_long(threads, by_hand, tmp_path):
    _, connect = threads
    other = sqlite3.connect(tmp_path / "spool", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with connect() as sock:
        sock.sendall(b"alloc,slot=a\n")
        other.execute("ROLLBACK")
        assert by_hand.read_all(sock) == b"OK"
    other.close()
