"""The daemon's sockets, against clients of every kind."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cpsim
from cpsim.daemon.listener import QUIET_S, SILENCE_S
from cpsim.quirks.policies.reading import READ_BYTES
from cpsim.testing import ManualClock

LONG_S = 60
FRAME = b"alloc,slot=%s,credits=25,expire=30"
WELL_FORMED = [
    b"alloc,slot=x",
    b"alloc,slot=x\n",
    b"alloc,slot=x\r\n",
    b"  \n alloc,slot=x \t\n",
    b"ALLOC,slot=x\n",
    b"Alloc,slot=x",
    b"alloc,slot=x\n\n",
]
MALFORMED = [
    b"pay,slot=x",
    b"allocate,slot=x",
    b"alloc",
    b"alloc,",
    b"alloc,credits=5",
    b"alloc,slot=",
    b"claim,slot=x",
    b"claim,slot=x,machine=",
    b"alloc,slot",
    b"alloc,slot=x,",
    b"alloc,slot=a=b",
    b"alloc,slot=x,=5",
    b"alloc,slot=x,slot=y",
    b"alloc,slot=x\xff",
    b"alloc,slot=x\x00y",
    b"alloc,slot=x\nalloc,slot=y",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"\n",
    b" ",
]


# Frames


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("frame", WELL_FORMED)
def test_well_formed_frames(daemon, frame, half_close):
    assert daemon.say(frame, half_close=half_close) == b"OK"
    assert list(daemon.slots()) == ["x"]


@pytest.mark.parametrize("frame", WELL_FORMED)
def test_a_well_formed_frame_is_answered_at_once(stepped, recorder, frame):
    sock = stepped.connect(frame)
    assert stepped.answer(sock) == b"OK"
    if b"\n" not in frame.lstrip():
        assert recorder.slots == []  # what may still follow belongs to it
        stepped.end_quiet()
    assert recorder.slots == ["x"]


def test_every_command_reaches_the_accounts(daemon):
    for frame in (
        b"alloc,slot=a,min=1,max=5,expire=30",
        b"counters,slot=a,job/events=5,down=-3",
        "meta,slot=a,site=Zürich".encode(),
        b"claim,slot=a,machine=m,credits=9",
        b"alloc,slot=b",
        b"DISCARD,slot=b,reason=lost\n",
    ):
        assert daemon.say(frame) == b"OK"
    a, b = daemon.slots().values()
    assert (a.state, a.granted, a.machine) == ("claimed", 5, "m")
    assert (a.counters, a.meta) == ({"job/events": 5, "down": -3}, {"site": "Zürich"})
    assert (b.state, b.reason) == ("discarded", "lost")


def test_ok_means_queued_not_accepted(daemon):
    assert daemon.say(b"claim,slot=never,machine=m") == b"OK"
    assert daemon.say(b"alloc,slot=x,credits=many") == b"OK"
    assert daemon.slots() == {}
    assert daemon.fake.accounts.refused == 2


@pytest.mark.parametrize("end", ["newline", "half-close"])
def test_malformed_frames(daemon, end):
    for frame in MALFORMED:
        assert daemon.say(frame + b"\n" * (end == "newline"), half_close=end == "half-close") == b"ER", frame
    assert daemon.slots() == {}


@pytest.mark.parametrize("frame", MALFORMED)
def test_a_malformed_frame_without_an_end_is_refused_when_its_time_is_over(stepped, recorder, frame):
    sock = stepped.connect(frame)
    if stepped.answer(sock) != b"ER":  # as a frame is that nothing can complete
        stepped.pass_(0.99 * QUIET_S)
        assert stepped.answer(sock) is None
        stepped.end_quiet()
        assert stepped.answer(sock) == b"ER"
    assert recorder.slots == []


@pytest.mark.parametrize("white", [b"", b"\n", b" " * 100 + b"\n"])
def test_the_longest_frame(daemon, white):
    frame = (b"alloc,slot=" + b"x" * 1500)[:1500]
    assert daemon.say(frame + white) == b"OK"
    assert list(daemon.slots()) == ["x" * 1489]


@pytest.mark.parametrize("start", [b"alloc,slot=", b"x"])
@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("size", [1_501, 2_999, 3_000, 3_001, 50_000, 500_000])
@pytest.mark.parametrize("clock", [pytest.param(ManualClock(), id="clock")])
def test_frames_that_are_too_long_are_told_so(daemon, clock, size, half_close, start, by_hand, wait_for):
    if size == 1_501:
        start = b"alloc,slot="
    with daemon.connect() as sock:
        sock.sendall(start.ljust(size, b"x"))
        if half_close:
            sock.shutdown(socket.SHUT_WR)

        def is_told():
            if size <= READ_BYTES:  # all of it is read at once, and may become a frame for so long
                clock.advance(QUIET_S)
            return by_hand.replied(sock, 0)

        wait_for(is_told)
        assert sock.recv(100) == b"ER"
        if not half_close:
            sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    assert daemon.slots() == {}


# Segments


@pytest.mark.parametrize("ending", [b"", b" \r\n"])
@pytest.mark.parametrize("pause_s", [0, 0.9 * QUIET_S])
def test_a_frame_in_two_segments_is_one_frame(stepped, recorder, pause_s, ending):
    ends = range(1, len(FRAME % b"000" + ending))
    for end in ends:
        frame = FRAME % (b"%03d" % end) + ending
        sock = stepped.connect(frame[:end])
        stepped.pass_(pause_s)
        stepped.send(sock, frame[end:])
        sock.shutdown(socket.SHUT_WR)
        stepped.step()
        assert stepped.answer(sock) == b"OK", end
    expected = [("alloc", {"slot": f"{end:03}", "credits": "25", "expire": "30"}) for end in ends]
    assert recorder.calls == expected


def test_two_segments_over_a_network_are_one_frame(daemon, by_hand):
    with daemon.connect() as sock:
        sock.sendall(b"alloc,slot=x")
        sock.sendall(b"yz,credits=25\n")
        assert by_hand.read_all(sock) == b"OK"
    assert {name: slot.credits for name, slot in daemon.slots().items()} == {"xyz": 25}


def test_a_frame_that_grows_after_its_answer(stepped, recorder):
    sock = stepped.connect(b"alloc,slot=x")
    assert stepped.answer(sock) == b"OK"
    for byte in b"yz,credits=25":
        stepped.send(sock, bytes([byte]))
    sock.close()
    stepped.step()
    assert recorder.calls == [("alloc", {"slot": "xyz", "credits": "25"})]


def test_an_answered_client_is_given_its_time_from_the_answer_on(stepped, recorder):
    sock = stepped.connect(b"alloc,sl")
    stepped.pass_(0.6 * QUIET_S)
    assert stepped.answer(sock) is None
    stepped.send(sock, b"ot=x")
    assert stepped.answer(sock) == b"OK"
    stepped.pass_(0.6 * QUIET_S)
    stepped.send(sock, b"yz")
    stepped.pass_(0.5 * QUIET_S)  # an answered client does not extend its time
    assert recorder.slots == ["xyz"]


def test_an_answered_client_has_a_turn_to_close_before_it_is_told_that_no_more_follows(stepped, recorder):
    sock = stepped.connect()
    sock.sendall(b"alloc,slot=x")
    stepped.listener.step()
    assert sock.recv(100) == b"OK"
    with pytest.raises(BlockingIOError):
        sock.recv(100, socket.MSG_DONTWAIT)
    sock.close()
    stepped.listener.step()
    assert recorder.slots == ["x"]


def test_what_arrives_in_time_is_read_however_late_the_daemon_looks(stepped, recorder):
    sock = stepped.connect(b"alloc,slot=x")
    assert stepped.answer(sock) == b"OK"

    def hold_up(_frame):
        sock.sendall(b"yz\n")
        stepped.clock.advance(2 * QUIET_S)  # its time is over when the daemon looks again

    stepped.listener.on_malformed = hold_up
    other = stepped.connect(b"nonsense\n")
    assert stepped.answer(other) == b"ER"
    assert recorder.slots == ["xyz"]


def test_a_client_that_trickles(stepped, recorder):
    slow = stepped.connect()
    for number, byte in enumerate(b"claim,slot=x,machine"):
        stepped.send(slow, bytes([byte]))
        stepped.pass_(0.9 * QUIET_S)
        assert stepped.answer(stepped.connect(b"alloc,slot=%d\n" % number)) == b"OK"
    stepped.send(slow, b"=m")
    assert stepped.answer(slow) == b"OK"
    stepped.end_quiet()
    assert len(recorder.calls) == 21


# Clients that are silent, rude or many


def test_to_connect_and_close_leaves_no_trace(daemon, by_hand):
    for _ in range(50):
        daemon.connect().close()
        by_hand.reset(daemon.connect())
        assert daemon.say(b"", half_close=True) == b""
    assert daemon.say(b"alloc,slot=x") == b"OK"
    assert list(daemon.slots()) == ["x"]
    assert daemon.fake.daemons[0]._listener.malformed == 0
    assert daemon.fake.accounts.refused == 0


def test_silent_clients_harm_nobody(daemon):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(daemon.connect()) for _ in range(300)]
        for number in range(50):
            assert daemon.say(b"alloc,slot=%d" % number) == b"OK"
        assert len(daemon.slots()) == 50
        silent[150].sendall(b"alloc,slot=late\n")
        assert silent[150].recv(10) == b"OK"


def test_a_client_that_is_silent_for_too_long_is_let_go(stepped):
    sock = stepped.connect()
    stepped.step()
    stepped.pass_(0.99 * SILENCE_S)
    assert stepped.answer(sock) is None
    stepped.pass_(0.02 * SILENCE_S)
    assert stepped.answer(sock) == b""


def test_clients_that_reset_harm_nobody(daemon, by_hand):
    for number, frame in enumerate((b"a", b"alloc,sl", b"alloc,slot=r", b"alloc,slot=s\n", b"pay,", b"x" * 5000)):
        sock = daemon.connect()
        sock.sendall(frame)
        by_hand.reset(sock)
        assert daemon.say(b"alloc,slot=%d" % number) == b"OK"
    assert {str(number) for number in range(6)} <= set(daemon.slots()) <= {*"012345", "r", "s"}


def test_a_client_that_stays_after_its_answer_holds_nobody_up(stepped, recorder):
    staying, refused = stepped.connect(b"alloc,slot=first"), stepped.connect(b"pay\n")
    assert stepped.answer(stepped.connect(b"alloc,slot=second\n")) == b"OK"
    assert [stepped.answer(sock) for sock in (staying, refused)] == [b"OK", b"ER"]
    assert recorder.slots == []  # in the order of the answers
    stepped.end_quiet()
    assert recorder.slots == ["first", "second"]


def test_a_huge_client_is_cut_off(stepped):
    """A refused client may go on for a moment, not for ever."""
    sock = stepped.connect(b"x" * 10_000)
    sock.settimeout(LONG_S)
    for _ in range(9):
        stepped.send(sock, b"x" * 10_000)
        stepped.pass_(0.1 * QUIET_S)
    stepped.pass_(0.2 * QUIET_S)
    with pytest.raises(BrokenPipeError):
        sock.sendall(b"x")
    assert stepped.answer(stepped.connect(b"alloc,slot=x")) == b"OK"


def test_many_clients_at_once(daemon):
    failures = []

    def work(worker):
        for number in range(50):
            reply = daemon.say(b"alloc,slot=%d-%d" % (worker, number) + b"\n" * (number % 2))
            if reply != b"OK":
                failures.append(reply)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(daemon.slots()) == 400


# Order, and what is on its way


def test_commands_are_passed_on_in_the_order_of_their_answers(stepped, recorder):
    socks = [stepped.connect() for _ in range(20)]
    for number in reversed(range(20)):
        stepped.send(socks[number], b"alloc,slot=%d" % number + b"\n" * (number % 3 == 0))
        assert stepped.answer(socks[number]) == b"OK"
    assert stepped.listener.pending == 20
    assert recorder.calls == []
    stepped.end_quiet()
    assert recorder.slots == [str(number) for number in reversed(range(20))]
    assert stepped.listener.pending == 0


def test_a_command_is_pending_until_it_is_delivered(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    recorder.go_on.clear()
    with socket.create_connection(address, LONG_S) as sock:
        sock.sendall(b"alloc,slot=x\n")
        assert by_hand.read_all(sock) == b"OK"
    assert recorder.entered.wait(LONG_S)
    assert listener.pending == 1
    recorder.go_on.set()
    listener.stop()
    assert listener.pending == 0
    assert recorder.slots == ["x"]


def test_what_is_answered_and_turns_out_malformed_is_pending_no_more(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    with socket.create_connection(address, LONG_S) as sock:
        sock.sendall(b"alloc,slot=x")
        assert by_hand.read_all(sock) == b"OK"
        sock.sendall(b",cred")
    listener.stop()
    assert (recorder.calls, listener.pending, listener.malformed) == ([], 0, 1)


def test_a_full_daemon_takes_no_more(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    for full, reply in ((True, b"ER"), (False, b"OK")):
        recorder.full = full
        with socket.create_connection(address, LONG_S) as sock:
            sock.sendall(b"alloc,slot=%s" % reply)
            assert by_hand.read_all(sock) == reply
    listener.stop()
    assert recorder.slots == ["OK"]


# The end


def test_to_stop_while_busy_loses_nothing_that_was_acknowledged(daemon):
    acknowledged = []
    under_way = threading.Semaphore(0)

    def work(worker):
        with contextlib.suppress(OSError):
            for number in range(100_000):
                slot = b"%d-%d" % (worker, number)
                if daemon.say(b"alloc,slot=" + slot) != b"OK":
                    return
                acknowledged.append(slot.decode())
                under_way.release()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert under_way.acquire(timeout=LONG_S)
    daemon.fake.stop()
    daemon.fake.daemons, daemon.fake._server = [], None
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()
    assert len(acknowledged) >= 100
    with daemon.fake.accounts.reading() as ledger:
        assert set(acknowledged) <= set(ledger.project("p").slots)


def test_to_stop_waits_for_nobody(stepped, recorder):
    silent, partial, held = stepped.connect(), stepped.connect(b"alloc,sl"), stepped.connect(b"alloc,slot=held")
    stepped.stop()
    assert [stepped.answer(sock) for sock in (silent, partial, held)] == [b"", b"ER", b"OK"]
    assert (recorder.slots, stepped.clock.monotonic()) == (["held"], 0)


def test_to_stop_answers_what_has_arrived_and_lets_the_silent_go(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    with contextlib.ExitStack() as stack:
        silent, held, partial = (stack.enter_context(socket.create_connection(address, LONG_S)) for _ in range(3))
        partial.sendall(b"alloc,sl")
        held.sendall(b"alloc,slot=held")
        assert by_hand.read_all(held) == b"OK"
        listener.stop()
        assert by_hand.read_all(partial) == b"ER"
        assert by_hand.read_all(silent) == b""
    assert recorder.slots == ["held"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_to_stop_reads_what_has_arrived_of_a_frame_already_answered(stepped, recorder):
    first, second = stepped.connect(b"alloc,slot=x"), stepped.connect(b"alloc,slot=x")
    assert [stepped.answer(sock) for sock in (first, second)] == [b"OK", b"OK"]
    first.close()
    second.sendall(b"yz")
    stepped.stop()
    assert recorder.slots == ["x", "xyz"]


FEW_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from cpsim.fake import Fake

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with Fake({"p": "s"}, unix=Path("cp.sock")) as fake:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    print("ready", flush=True)
    sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
with fake.accounts.reading() as ledger:
    print(len(ledger.project("p").slots))
"""


@pytest.mark.usefixtures("here")
def test_no_descriptor_left():
    def connect(stack):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(LONG_S)
        sock.connect("cp.sock")
        return sock

    process = subprocess.Popen(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        env={**os.environ, "PYTHONPATH": str(Path(cpsim.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, contextlib.ExitStack() as stack:
        assert process.stdout.readline() == "ready\n"
        for _ in range(100):
            connect(stack)
        answered = []
        for number in range(100):
            sock = connect(stack)
            sock.sendall(b"alloc,slot=%d" % number)
            answered.append(sock.recv(2))  # and stays
        assert answered == [b"OK"] * 100
        stack.close()
        output, _ = process.communicate(timeout=LONG_S)
    assert (process.returncode, output) == (0, "100\n")
