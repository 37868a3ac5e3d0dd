"""The daemon's sockets, against clients of every kind."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cpsim
from cpsim.daemon import listener as listening

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
    started_s = time.monotonic()
    assert daemon.say(frame, half_close=half_close) == b"OK"
    assert time.monotonic() - started_s < 1
    assert list(daemon.slots()) == ["x"]


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


@pytest.mark.parametrize("end", ["newline", "half-close", "nothing"])
def test_malformed_frames(daemon, end, monkeypatch):
    monkeypatch.setattr(listening, "QUIET_S", 0.03)
    for frame in MALFORMED if end != "nothing" else MALFORMED[:8]:
        assert daemon.say(frame + b"\n" * (end == "newline"), half_close=end == "half-close") == b"ER", frame
    assert daemon.slots() == {}


@pytest.mark.parametrize("white", [b"", b"\n", b" " * 100 + b"\n"])
def test_the_longest_frame(daemon, white):
    frame = (b"alloc,slot=" + b"x" * 1500)[:1500]
    assert daemon.say(frame + white) == b"OK"
    assert list(daemon.slots()) == ["x" * 1489]


@pytest.mark.parametrize("start", [b"alloc,slot=", b"x"])
@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("size", [1_501, 2_999, 3_000, 3_001, 50_000, 500_000])
def test_frames_that_are_too_long_are_told_so(daemon, size, half_close, start):
    if size == 1_501:
        start = b"alloc,slot="
    assert daemon.say(start.ljust(size, b"x"), half_close=half_close) == b"ER"
    assert daemon.slots() == {}


# Segments


@pytest.mark.parametrize("ending", [b"", b" \r\n"])
@pytest.mark.parametrize("pause_s", [0, 0.002])
def test_a_frame_in_two_segments_is_one_frame(daemon, by_hand, monkeypatch, pause_s, ending):
    monkeypatch.setattr(listening, "QUIET_S", 3.0)
    ends = range(1, len(FRAME % b"000" + ending))
    for end in ends:
        frame = FRAME % (b"%03d" % end) + ending
        with daemon.connect() as sock:
            sock.sendall(frame[:end])
            if pause_s:
                by_hand.replied(sock, pause_s)
            sock.sendall(frame[end:])
            sock.shutdown(socket.SHUT_WR)
            assert by_hand.read_all(sock) == b"OK", end
    slots = daemon.slots()
    assert list(slots) == [f"{end:03}" for end in ends]
    assert {slot.credits for slot in slots.values()} == {25}
    assert {slot.expires_us - slot.allocated_us for slot in slots.values()} == {30 * 60_000_000}


def test_a_frame_that_grows_after_its_answer(daemon, by_hand, monkeypatch):
    monkeypatch.setattr(listening, "QUIET_S", 3.0)
    with daemon.connect() as sock:
        sock.sendall(b"alloc,slot=x")
        assert by_hand.read_all(sock) == b"OK"
        for byte in b"yz,credits=25":
            sock.sendall(bytes([byte]))
    assert {name: slot.credits for name, slot in daemon.slots().items()} == {"xyz": 25}


def test_an_answered_client_is_given_its_time_from_the_answer_on(bare_listener, recorder, by_hand, monkeypatch):
    monkeypatch.setattr(listening, "QUIET_S", 1.0)
    listener, address = bare_listener
    with socket.create_connection(address, 5) as sock:
        sock.sendall(b"alloc,sl")
        assert not by_hand.replied(sock, 0.6)
        sock.sendall(b"ot=x")
        assert by_hand.read_all(sock) == b"OK"
        select.select([], [], [], 0.6)
        sock.sendall(b"yz")
    listener.stop()
    assert recorder.slots == ["xyz"]


def test_what_arrives_in_time_is_read_however_late_the_daemon_looks(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(_frame):
        entered.set()
        assert go_on.wait(60)
        time.sleep(2 * listening.QUIET_S)  # the first client's time is over when the daemon looks again

    listener.on_malformed = hold_up
    with socket.create_connection(address, 5) as sock, socket.create_connection(address, 5) as other:
        sock.sendall(b"alloc,slot=x")
        assert by_hand.read_all(sock) == b"OK"  # its time begins with the end of what is sent to it
        other.sendall(b"nonsense\n")
        assert entered.wait(60)
        sock.sendall(b"yz\n")
        go_on.set()
        assert by_hand.read_all(other) == b"ER"
    listener.stop()
    assert recorder.slots == ["xyz"]


def test_a_client_that_trickles(daemon, by_hand):
    with daemon.connect() as slow:
        for number, byte in enumerate(b"claim,slot=x,machine"):
            slow.sendall(bytes([byte]))
            assert daemon.say(b"alloc,slot=%d" % number) == b"OK"
        slow.sendall(b"=m")
        assert by_hand.read_all(slow) == b"OK"
    assert len(daemon.slots()) == 20


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
        started_s = time.monotonic()
        for number in range(50):
            assert daemon.say(b"alloc,slot=%d" % number) == b"OK"
        assert len(daemon.slots()) == 50
        assert time.monotonic() - started_s < 2
        silent[150].sendall(b"alloc,slot=late\n")
        assert silent[150].recv(10) == b"OK"


def test_a_client_that_is_silent_for_too_long_is_let_go(daemon, by_hand, monkeypatch):
    monkeypatch.setattr(listening, "SILENCE_S", 0.05)
    with daemon.connect() as sock:
        assert by_hand.read_all(sock) == b""


def test_clients_that_reset_harm_nobody(daemon, by_hand):
    for number, frame in enumerate((b"a", b"alloc,sl", b"alloc,slot=r", b"alloc,slot=s\n", b"pay,", b"x" * 5000)):
        sock = daemon.connect()
        sock.sendall(frame)
        by_hand.reset(sock)
        assert daemon.say(b"alloc,slot=%d" % number) == b"OK"
    assert {str(number) for number in range(6)} <= set(daemon.slots()) <= {*"012345", "r", "s"}


def test_a_client_that_stays_after_its_answer_holds_nobody_up(daemon, by_hand):
    with daemon.connect() as staying, daemon.connect() as refused:
        staying.sendall(b"alloc,slot=first")
        assert by_hand.read_all(staying) == b"OK"
        refused.sendall(b"pay\n")
        assert by_hand.read_all(refused) == b"ER"
        started_s = time.monotonic()
        assert daemon.say(b"alloc,slot=second") == b"OK"
        assert time.monotonic() - started_s < 0.1 + listening.QUIET_S
        assert list(daemon.slots()) == ["first", "second"]
        assert time.monotonic() - started_s < 1


def test_a_huge_client_is_cut_off(daemon):
    """A refused client may go on for a moment, not for ever."""
    piece = b"x" * 1_000_000
    started_s = time.monotonic()
    with daemon.connect() as sock, contextlib.suppress(OSError):
        while time.monotonic() - started_s < 4:
            sock.sendall(piece)
    assert time.monotonic() - started_s < 3
    assert daemon.say(b"alloc,slot=x") == b"OK"


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


def test_commands_are_passed_on_in_the_order_of_their_answers(bare_listener, recorder, by_hand, monkeypatch):
    monkeypatch.setattr(listening, "QUIET_S", 3.0)
    listener, address = bare_listener
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address, 5)) for _ in range(20)]
        for number in reversed(range(20)):
            socks[number].sendall(b"alloc,slot=%d" % number + b"\n" * (number % 3 == 0))
            assert by_hand.read_all(socks[number]) == b"OK"
        assert listener.pending > 0
        assert recorder.calls == []
    listener.stop()
    assert recorder.slots == [str(number) for number in reversed(range(20))]
    assert listener.pending == 0


def test_a_command_is_pending_until_it_is_delivered(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    recorder.go_on.clear()
    with socket.create_connection(address, 5) as sock:
        sock.sendall(b"alloc,slot=x\n")
        assert by_hand.read_all(sock) == b"OK"
    assert recorder.entered.wait(5)
    assert listener.pending == 1
    recorder.go_on.set()
    listener.stop()
    assert listener.pending == 0
    assert recorder.slots == ["x"]


def test_what_is_answered_and_turns_out_malformed_is_pending_no_more(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    with socket.create_connection(address, 5) as sock:
        sock.sendall(b"alloc,slot=x")
        assert by_hand.read_all(sock) == b"OK"
        sock.sendall(b",cred")
    listener.stop()
    assert (recorder.calls, listener.pending, listener.malformed) == ([], 0, 1)


def test_a_full_daemon_takes_no_more(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    for full, reply in ((True, b"ER"), (False, b"OK")):
        recorder.full = full
        with socket.create_connection(address, 5) as sock:
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
        assert under_way.acquire(timeout=5)
    daemon.fake.stop()
    daemon.fake.daemons, daemon.fake._server = [], None
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert len(acknowledged) >= 100
    with daemon.fake.accounts.reading() as ledger:
        assert set(acknowledged) <= set(ledger.project("p").slots)


def test_to_stop_answers_what_has_arrived_and_lets_the_silent_go(bare_listener, recorder, by_hand):
    listener, address = bare_listener
    with contextlib.ExitStack() as stack:
        silent, held, partial = (stack.enter_context(socket.create_connection(address, 5)) for _ in range(3))
        partial.sendall(b"alloc,sl")
        held.sendall(b"alloc,slot=held")
        assert by_hand.read_all(held) == b"OK"
        listener.stop()
        assert by_hand.read_all(partial) == b"ER"
        assert by_hand.read_all(silent) == b""
    assert recorder.slots == ["held"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_to_stop_reads_what_has_arrived_of_a_frame_already_answered(bare_listener, recorder, by_hand, monkeypatch):
    monkeypatch.setattr(listening, "QUIET_S", 3.0)
    listener, address = bare_listener
    recorder.go_on.clear()
    with socket.create_connection(address, 5) as first, socket.create_connection(address, 5) as second:
        for sock in (first, second):
            sock.sendall(b"alloc,slot=x")
            assert by_hand.read_all(sock) == b"OK"
        first.close()
        assert recorder.entered.wait(5)  # the listener is busy with the first command
        second.sendall(b"yz")
        stopping = threading.Thread(target=listener.stop)
        stopping.start()
        while not listener._stopping:
            assert stopping.is_alive()
        recorder.go_on.set()
        stopping.join(5)
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
        sock.settimeout(5)
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
        output, _ = process.communicate(timeout=5)
    assert (process.returncode, output) == (0, "100\n")
