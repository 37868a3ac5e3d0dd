"""What a client of the daemon sees of each fault, and what the accounts see."""

import socket
import threading

import pytest

from cpdaemon import Client, TcpEndpoint
from cpdaemon.errors import ConnectFailed, CreditPiggyError, NotSent, ReplyLost, ReplyTimeout
from cpdaemon.transport import exchange
from cpsim.fake import Fake

HELD_S = 0.3
"""How long what should not happen is given to happen."""


def connected(client):
    """A socket that is connected to the client's daemon."""
    endpoint = client._endpoint
    if isinstance(endpoint, TcpEndpoint):
        return socket.create_connection((endpoint.host, endpoint.port))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(endpoint.path)
    return sock


def frame(client, text):
    """Send a frame by hand; returns what came before the connection closed."""
    return exchange(client._endpoint, text, 60)


def test_refuse(fake, client, slots):
    client.alloc("before")
    for number in range(2):
        with fake.faults.refuse(), pytest.raises(ConnectFailed) as caught:
            client.alloc("refused")
        assert caught.value.definite
        client.alloc(f"after-{number}")
    assert slots() == ["before", "after-0", "after-1"]
    assert [firing[1:] for firing in fake.faults.firings] == [("daemon", "refuse", "", "", "")] * 2


def test_refuse_for_a_while(fake, client, wait_for):
    def is_refused():
        try:
            client.alloc("x")
        except (NotSent, ReplyLost):
            return True
        return False

    fake.faults.replace(["refuse:from=0.05"])
    wait_for(is_refused)
    assert [firing.action for firing in fake.faults.firings] == ["refuse"]
    fake.faults.replace(["refuse:until=0.05"])
    wait_for(lambda: not is_refused())


def test_hang(fake, client, slots):
    with fake.faults.hang(kind="claim"):
        client.alloc("x")
        with Client(str(client._endpoint), timeout_s=HELD_S) as impatient, pytest.raises(ReplyTimeout):
            impatient.claim("x", "m")
        client.discard("x")
    assert slots() == ["x"]
    with fake.accounts.reading() as ledger:
        assert ledger.project("p").slots["x"].state == "discarded"


def test_a_hanging_client_does_not_hold_up_the_end(here):
    with Fake({"p": "s"}, unix=here / "other.sock", faults=["hang", "late=3600:kind=claim"]) as fake:
        socks = [Client("./other.sock", timeout_s=HELD_S) for _ in range(3)]
        for sock in socks:
            with pytest.raises(ReplyTimeout):
                sock.alloc("x")
    assert len(fake.faults.firings) == 3


def test_late(fake, client, slots):
    with fake.faults.late(3600, slot="slow-*"):
        client.alloc("fast")
        with Client(str(client._endpoint), timeout_s=HELD_S) as impatient, pytest.raises(ReplyTimeout):
            impatient.alloc("slow-1")
    with fake.faults.late(0.01):
        client.alloc("slow-2")
    assert slots() == ["fast", "slow-2"]


def test_what_is_late_when_the_daemon_stops_is_answered(here, wait_for):
    answers = []
    with Fake({"p": "s"}, unix=here / "other.sock", faults=["late=3600"]) as fake:
        client = Client("./other.sock", timeout_s=60)
        thread = threading.Thread(target=lambda: answers.append(frame(client, b"alloc,slot=x")))
        thread.start()
        wait_for(lambda: fake.faults.firings)
    thread.join()
    assert answers == [b"OK"]
    with fake.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["x"]


def test_pieces(fake, client, slots):
    with fake.faults.pieces(0.01):
        assert frame(client, b"alloc,slot=x") == b"OK"
    with fake.faults.pieces(3600), connected(client) as sock:
        sock.sendall(b"alloc,slot=y")
        assert sock.recv(2) == b"O"
        sock.settimeout(HELD_S)
        with pytest.raises(TimeoutError):
            sock.recv(2)
    assert slots() == ["x"]


def test_error(fake, client, slots):
    with fake.faults.error(nth=2):
        answers = [frame(client, b"alloc,slot=%d" % number) for number in range(3)]
    assert answers == [b"OK", b"ER", b"OK"]
    assert slots() == ["0", "2"]


@pytest.mark.parametrize("fault", ["daemon.hang", "daemon.late=3600"])
def test_what_a_fault_holds_is_let_go_with_it(fake, client, slots, wait_for, fault):
    failures = []

    def call():
        with pytest.raises(ReplyLost) as caught:
            frame(client, b"alloc,slot=held")
        failures.append(caught.value)

    thread = threading.Thread(target=call)
    with fake.faults.during(fault):
        thread.start()
        wait_for(lambda: fake.faults.firings)
        with fake.faults.error(kind="claim"):  # which has nothing to do with it
            pass
        assert failures == []
    thread.join()
    assert len(failures) == 1
    assert slots() == []


def test_two_faults_meet_one_command(fake, client, slots):
    with fake.faults.late(0.01), fake.faults.lose_reply(nth=2), fake.faults.pieces(0.01, nth=3):
        assert frame(client, b"alloc,slot=a") == b"OK"
        with pytest.raises(ReplyLost):
            client.alloc("b")
        assert frame(client, b"alloc,slot=c") == b"OK"
    assert slots() == ["a", "b", "c"]
    assert [firing.action for firing in fake.faults.firings] == ["late", "late", "lose-reply", "late", "pieces"]


@pytest.mark.parametrize("action", ["close", "reset"])
def test_no_answer_and_not_taken(fake, client, slots, action):
    with getattr(fake.faults, action)(count=1):
        with pytest.raises(ReplyLost) as caught:
            client.alloc("x")
        client.alloc("y")
    assert slots() == ["y"]
    was_reset = action == "reset" and isinstance(client._endpoint, TcpEndpoint)
    assert isinstance(caught.value.__cause__, ConnectionResetError) is was_reset


def test_lose_reply(fake, client, slots):
    with fake.faults.lose_reply(nth=3):
        client.alloc("a")
        client.alloc("b")
        with pytest.raises(ReplyLost):
            client.alloc("c")
        client.alloc("d")
    assert slots() == ["a", "b", "c", "d"]
    assert [firing[1:] for firing in fake.faults.firings] == [("daemon", "lose-reply", "alloc", "c", "p")]


def test_a_malformed_frame_meets_no_fault(fake, client):
    with fake.faults.hang():
        assert frame(client, b"nonsense\n") == b"ER"
    assert fake.faults.firings == []


def test_a_daemon_keeps_its_commands_while_the_server_is_down(fake, client, slots):
    with fake.faults.down():
        client.alloc("x")
        with pytest.raises(TimeoutError):
            fake.wait_until_idle(HELD_S)
        with fake.accounts.reading() as ledger:
            assert not ledger.projects or not ledger.project("p").slots
    assert slots() == ["x"]


def test_each_crash_comes_at_its_moment(here):
    """This one does not end the process, but counts what the accounts have in that moment."""
    seen = []

    def crash():
        with fake.accounts.reading() as ledger:
            seen.append(len(ledger.project("p").slots) if ledger.projects else 0)
        moment.set()

    for fault, slot_count in (("crash-before-ok", 0), ("crash-after-ok", 0), ("daemon.crash-after-commit", 1)):
        moment = threading.Event()
        with Fake({"p": "s"}, unix=here / "other.sock", faults=[fault], crash=crash) as fake:
            client = Client("./other.sock", timeout_s=1 if fault == "crash-before-ok" else 60)
            if fault == "crash-before-ok":
                with pytest.raises(CreditPiggyError):
                    client.alloc("x")
            else:
                client.alloc("x")
            assert moment.wait(60)
        assert seen == [slot_count]
        seen.clear()
