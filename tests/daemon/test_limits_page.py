"""Each limit of docs/reference/limits.md for a daemon: its number, and what a client, the server or a person sees."""

import random
import socket
import threading
from functools import partial

import limits_page
import pytest

from cpdaemon import http
from cpdaemon.endpoint import UrlEndpoint
from cpdaemon.errors import BadReply, ConnectFailed, Refused, ReplyTimeout
from cpdaemon.wire import MAX_FRAME_BYTES
from cpsim.cli.daemon import daemon as command
from cpsim.daemon import courier, site
from cpsim.daemon.client import BulkClient
from cpsim.daemon.config import DEFAULT_FLUSH_INTERVAL_S
from cpsim.daemon.courier import Courier
from cpsim.daemon.listener import QUIET_S, SILENCE_S, Listener
from cpsim.daemon.spool import MAX_BATCH, MAX_COMMANDS, RESERVE_BYTES, Spool
from cpsim.daemon.spool_status import read_failed
from cpsim.store.file import LogFile, reserve_of
from cpsim.store.log import Log
from cpsim.testing import ManualClock

GUARD_S = 60
MEETINGS = limits_page.Meetings("cpsim daemon")
meets = MEETINGS.meets
NUMBERS = {
    "Frame": MAX_FRAME_BYTES,
    "Time of a client that sends nothing": SILENCE_S,
    "Time until a frame without a newline is well formed": QUIET_S,
    "Time in which an answered client may go on with its frame": QUIET_S,
    "Commands in the spool, dead letters too": MAX_COMMANDS,
    "Disk that the spool keeps free for itself": RESERVE_BYTES,
    "Commands of a batch": MAX_BATCH,
    "Time that a command waits for its batch to fill": DEFAULT_FLUSH_INTERVAL_S,
    "Time of the server for a reply": next(each.default for each in command.params if each.name == "timeout_s"),
    "First wait after a failure": courier.FIRST_BACKOFF_S,
    "Longest wait after a failure": courier.MAX_BACKOFF_S,
    "Failures of a batch while the server answers others": courier.MAX_TRIES,
    "Failures of a command that is sent alone, likewise": courier.MAX_TRIES_ALONE,
    "Line of a server's reply": http.MAX_LINE_BYTES,
    "Header lines of a server's reply": http.MAX_HEADER_LINES,
    "Body of a server's reply": http.MAX_BODY_BYTES,
    "Time to deliver the rest when the daemon stops": site.STOP_TIMEOUT_S,
}


def test_the_page_has_the_numbers_of_the_program():
    assert MEETINGS.page == NUMBERS
    assert MEETINGS.met == MEETINGS.page.keys()


@meets("Frame")
def test_a_frame(stepped):
    frame = b"alloc,slot=".ljust(MAX_FRAME_BYTES, b"x")
    assert stepped.answer(stepped.connect(frame + b"\n")) == b"OK"
    assert stepped.answer(stepped.connect(frame + b"x\n")) == b"ER"


@meets("Time of a client that sends nothing")
def test_a_silent_client(stepped):
    sock = stepped.connect()
    stepped.step()
    stepped.pass_(0.99 * SILENCE_S)
    assert stepped.answer(sock) is None
    stepped.pass_(0.02 * SILENCE_S)
    assert stepped.answer(sock) == b""


@meets(
    "Time until a frame without a newline is well formed", "Time in which an answered client may go on with its frame"
)
def test_a_frame_without_a_newline(stepped, recorder):
    half, whole = stepped.connect(b"all"), stepped.connect(b"alloc,slot=s")
    assert (stepped.answer(half), stepped.answer(whole)) == (None, b"OK")
    stepped.pass_(0.99 * QUIET_S)
    assert (stepped.answer(half), recorder.slots) == (None, [])
    stepped.pass_(0.02 * QUIET_S)
    assert stepped.answer(half) == b"ER"
    assert recorder.slots == ["s"]


class Server:
    """Keeps the batches that come, and answers from a script of what to raise, again and again."""

    def __init__(self, *script, knows_batches=True):
        self.script = script
        self.knows = knows_batches
        self.batches = []

    def knows_batches(self):
        return self.knows

    def post(self, batch_id, calls):
        self.batches.append((batch_id, [arguments["slot"] for _, arguments in calls]))
        if self.script:
            raise self.script[(len(self.batches) - 1) % len(self.script)]
        return [None] * len(calls)

    def give_up(self, batch_id, calls):
        return None

    @property
    def sizes(self):
        return [len(slots) for _, slots in self.batches]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def spool_of(tmp_path, clock):
    """Return spool_of(commands, ...) -> a spool with so many, which writes when somebody waits for it."""
    spools = []

    def make(commands, file=LogFile, **options):
        spool = Spool(tmp_path / "spool", clock=clock, open_log=partial(Log, threaded=False, file=file), **options)
        spools.append(spool)
        spool.release(spool.put([f"alloc,slot=s{number}" for number in range(commands)], {}, lambda _: None))
        spool.wait()
        return spool

    yield make
    for spool in spools:
        spool.close()


@pytest.fixture
def courier_of(clock):
    """Return courier_of(spool, server) -> a courier on the clock, to be stepped."""

    def make(spool, server, flush_interval_s=0.0):
        return Courier(spool, server, flush_interval_s, clock=clock, chance=random.Random(1))

    return make


def empty(spool, delivering, clock):
    """Let a courier go on until the spool is empty, and let the time between pass at once."""
    for _ in range(100):
        if not spool.pending:
            return
        clock.advance(delivering.step() or 0.0)
    raise AssertionError("the spool does not become empty")


@pytest.fixture
def answer_of(stepped_with):
    """Return answer_of(spool) -> what a client is answered while there is that spool."""
    spools = []
    stepped = stepped_with(lambda sockets, clock: Listener(sockets, list, lambda: spools[-1].is_full, clock))

    def answer(spool):
        spools.append(spool)
        return stepped.answer(stepped.connect(b"alloc,slot=s\n"))

    return answer


@meets("Commands in the spool, dead letters too")
def test_a_full_spool(answer_of, spool_of, courier_of, clock, tmp_path):
    spool = spool_of(2, max_commands=2)
    assert answer_of(spool) == b"ER"
    empty(spool, courier_of(spool, Server(Refused("no", 400))), clock)
    spool.wait()
    assert len(read_failed(tmp_path / "spool")) == 2
    assert answer_of(spool) == b"ER"
    spool.forget(None)
    assert answer_of(spool) == b"OK"


@meets("Disk that the spool keeps free for itself")
def test_a_full_disk(answer_of, spool_of, tmp_path):
    class File(LogFile):
        def free_bytes(self):
            return free_bytes

    free_bytes = 2 * RESERVE_BYTES
    spool = spool_of(1, File, reserve_bytes=RESERVE_BYTES)
    assert reserve_of(tmp_path / "spool").stat().st_size == RESERVE_BYTES
    assert answer_of(spool) == b"OK"
    spool.close()
    reserve_of(tmp_path / "spool").unlink()
    free_bytes = RESERVE_BYTES
    spool = spool_of(0, File, reserve_bytes=RESERVE_BYTES)
    assert answer_of(spool) == b"ER"
    spool.settle(spool.take(), [])
    free_bytes = 2 * RESERVE_BYTES
    assert answer_of(spool) == b"OK"


@meets("Commands of a batch")
def test_a_batch(spool_of, courier_of, clock):
    spool, server = spool_of(MAX_BATCH + 1), Server()
    delivering = courier_of(spool, server)
    empty(spool, delivering, clock)
    assert server.sizes == [MAX_BATCH, 1]


@meets("Time that a command waits for its batch to fill")
def test_a_batch_that_does_not_fill(spool_of, courier_of, clock):
    spool, server = spool_of(1), Server()
    delivering = courier_of(spool, server, DEFAULT_FLUSH_INTERVAL_S)
    assert delivering.step() == DEFAULT_FLUSH_INTERVAL_S
    assert server.sizes == []
    clock.advance(DEFAULT_FLUSH_INTERVAL_S)
    delivering.step()
    assert server.sizes == [1]


@meets("Time of the server for a reply")
def test_a_reply_that_does_not_come(spool_of, courier_of, clock):
    spool, server = spool_of(8), Server(ReplyTimeout("late"))
    delivering = courier_of(spool, server)
    clock.advance(delivering.step())
    server.script = ()
    delivering.step()
    assert server.batches[0] == server.batches[1]
    spool.release(spool.put([f"alloc,slot=t{number}" for number in range(8)], {}, lambda _: None))
    spool.wait()
    empty(spool, delivering, clock)
    assert server.sizes[:3] == [8, 8, 5]  # half of it, and a sixteenth more at least


@meets("First wait after a failure", "Longest wait after a failure")
def test_waits_after_failures(spool_of, courier_of, clock):
    delivering = courier_of(spool_of(1), Server(ConnectFailed("down")))
    longest_s = courier.FIRST_BACKOFF_S
    for _ in range(20):
        wait_s = delivering.step()
        assert longest_s / 2 <= wait_s <= longest_s
        clock.advance(wait_s)
        longest_s = min(2 * longest_s, courier.MAX_BACKOFF_S)
    assert longest_s == courier.MAX_BACKOFF_S


@meets("Failures of a batch while the server answers others", "Failures of a command that is sent alone, likewise")
def test_a_batch_that_fails_again_and_again(spool_of, courier_of, clock, tmp_path):
    spool, server = spool_of(2), Server(BadReply("<h1>Oops</h1>"))
    delivering = courier_of(spool, server)
    empty(spool, delivering, clock)
    alone = courier.MAX_TRIES_ALONE
    assert server.sizes == [2] * courier.MAX_TRIES + [1] * alone + [1] * alone
    spool.wait()
    assert len(read_failed(tmp_path / "spool")) == 2


LINES = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (http.MAX_HEADER_LINES - 2)


@meets("Line of a server's reply", "Header lines of a server's reply", "Body of a server's reply")
@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * http.MAX_LINE_BYTES + b"\r\n\r\n", "a line of more than 8,192 bytes"),
        (LINES + b"X: y\r\nX: y\r\n\r\n", "more than 100 header lines"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (http.MAX_BODY_BYTES + 1), "a body of more than"),
    ],
)
def test_a_large_reply(head, what):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            with listening.accept()[0] as sock:
                while b"{}" not in sock.recv(10_000):
                    pass
                sock.sendall(head)
                sock.recv(10_000)  # until the client leaves

        answering = threading.Thread(target=answer)
        answering.start()
        client = BulkClient(UrlEndpoint("http", *listening.getsockname(), "/api"), ("p", "s"), GUARD_S)
        with pytest.raises(BadReply, match=what) as caught:
            client.knows_batches()
        assert not caught.value.definite
        client.close()
        answering.join()


@meets("Time to deliver the rest when the daemon stops")
def test_a_daemon_that_stops_while_the_server_hangs(spool_of):
    """It waits as long as it is told to; here, not at all."""
    asked, released = threading.Event(), threading.Event()

    class Hanging(Server):
        def post(self, batch_id, calls):
            asked.set()
            released.wait(GUARD_S)
            raise ReplyTimeout("late")

    spool = spool_of(1)
    delivering = Courier(spool, Hanging(), 0.0)
    delivering.start()
    assert asked.wait(GUARD_S)
    assert not delivering.stop(0.0)
    assert spool.pending == 1
    released.set()
    assert delivering.stop(GUARD_S)
