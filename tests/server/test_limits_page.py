"""Each limit of docs/reference/limits.md for a server: its number, and what a client sees there."""

import errno
import json
import socket
import struct
import sys
import threading
from contextlib import suppress

import limits_page
import pytest
import trustme
from manual_loop import ManualLoop

from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.faults.actions.rate import MOST_WAITING
from cpsim.faults.plan import FaultPlan
from cpsim.faults.spec import Fault
from cpsim.net.control import PAGE
from cpsim.net.http import carrier
from cpsim.net.http.shared import Limits
from cpsim.net.listen import BACKLOG
from cpsim.net.tls import ServerCertificate
from cpsim.protocol.depth import MAX_DEPTH
from cpsim.protocol.exchange import End, Exchange
from cpsim.quirks.policies.ledger import LARGEST_INTEGER
from cpsim.server import batches, journal
from cpsim.server.batches import Batches, BatchSeen
from cpsim.server.dashboard.pages import MOST_FORM_BYTES
from cpsim.server.http import Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer
from cpsim.system.checks import LONGEST_S
from cpsim.system.process import FILE_LIMITS
from cpsim.testing import ManualClock

GUARD_S = 60
MEETINGS = limits_page.Meetings("cpsim serve")
meets = MEETINGS.meets
LIMITS = Limits()
NUMBERS = {
    "Head of a request, and its trailers": LIMITS.head_bytes,
    "Headers and trailers of a request": LIMITS.headers,
    "Body of a request": LIMITS.body_bytes,
    "Bodies that are not whole, of all connections": LIMITS.held_bytes,
    "Time of a connection without a request": LIMITS.idle_s,
    "Time until a request's head is whole": LIMITS.head_s,
    "Time until a request is whole": LIMITS.request_s,
    "Time to read why a request was refused": LIMITS.linger_s,
    "Time of a handshake of TLS": LIMITS.handshake_s,
    "Connections that wait to be accepted": BACKLOG,
    "Open files": FILE_LIMITS[0],
    "Nesting of an argument": MAX_DEPTH,
    "Whole number of an argument": LARGEST_INTEGER,
    "Id of a batch": batches.LONGEST_ID,
    "Senders whose latest batch is known, of a project": batches.SENDERS_KEPT,
    "Other batches that are known, of a project": batches.OTHERS_KEPT,
    "Time for which another batch is known": batches.OTHERS_KEPT_US / 1e6,
    "Refusals kept of a project's batches": batches.REFUSALS_KEPT,
    "Journal of a project": journal.DEFAULT_LIMIT,
    "Malformed frames kept of a project": journal.MALFORMED_KEPT,
    "Page of the control API": PAGE,
    "Form of the dashboard": MOST_FORM_BYTES,
    "Time of a fault": LONGEST_S,
    "Commands that wait for a fault `rate`": MOST_WAITING,
    "Time for requests in progress when the server stops": carrier.FINISH_S,
}


def test_the_page_has_the_numbers_of_the_program():
    assert MEETINGS.page == NUMBERS
    assert MEETINGS.met == MEETINGS.page.keys()


def raw(address, data):
    """Send bytes, and return what comes up to the end."""
    with socket.create_connection(address, GUARD_S) as sock:
        sock.sendall(data)
        return read_all(sock)


def read_all(sock):
    received = b""
    while piece := sock.recv(65_536):
        received += piece
    return received


@meets("Head of a request, and its trailers")
def test_a_head(site):
    head = b"GET /api/heartbeat HTTP/1.1\r\nConnection: close\r\nX: "
    assert site.raw(head + b"x" * (LIMITS.head_bytes - 200) + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    received = site.raw(head + b"x" * LIMITS.head_bytes + b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in received


@meets("Headers and trailers of a request")
@pytest.mark.parametrize(("count", "status"), [(0, b"200"), (1, b"400")])
def test_headers(site, count, status):
    lines = [f"X-{number}: y" for number in range(LIMITS.headers - 1 + count)]
    data = "\r\n".join(["GET /api/heartbeat HTTP/1.1", "Connection: close", *lines, "", ""]).encode()
    assert site.raw(data).startswith(b"HTTP/1.1 %b " % status)


@meets("Body of a request")
def test_a_body(site):
    head = f"POST /api/batch/alloc HTTP/1.1\r\nContent-Length: {LIMITS.body_bytes + 1}\r\n\r\n"
    assert site.raw(head.encode()).startswith(b"HTTP/1.1 413 ")


@meets("Bodies that are not whole, of all connections")
def test_bodies_in_sum(limited_site):
    site = limited_site(held_bytes=2_000)
    head = b"POST /api/batch/alloc HTTP/1.1\r\nContent-Length: 1500\r\n\r\n"
    with socket.create_connection(site.address, GUARD_S) as first, socket.create_connection(site.address) as second:
        first.sendall(head + b"x" * 1_400)
        for _ in range(2):
            assert site.request("GET", "/api/heartbeat")[0] == 200  # so what came before has been read
        second.sendall(head + b"x" * 1_400)
        assert read_all(second).startswith(b"HTTP/1.1 503 ")
        assert site.post("alloc", {"slot": "s" * 1_000})[0] == 200


@meets("Time of a connection without a request")
def test_an_idle_connection(by_hand):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address, GUARD_S) as sock:
        advance(0)
        advance(LIMITS.idle_s)
        assert sock.recv(100) == b""


@meets("Time until a request's head is whole", "Time until a request is whole")
@pytest.mark.parametrize(
    ("begin", "limit_s"),
    [
        (b"GET /api/heartbeat HTTP/1.1\r\n", LIMITS.head_s),
        (b"POST /api/heartbeat HTTP/1.1\r\nContent-Length: 9\r\n\r\n", LIMITS.request_s),
    ],
)
def test_a_request_that_is_not_whole_in_time(by_hand, begin, limit_s):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address, GUARD_S) as sock:
        sock.sendall(begin)
        advance(0)
        advance(limit_s - 1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        sock.settimeout(GUARD_S)
        advance(1)
        assert sock.recv(100).startswith(b"HTTP/1.1 408 ")


@meets("Time to read why a request was refused")
def test_who_is_refused_and_goes_on(by_hand):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address, GUARD_S) as sock:
        sock.sendall(b"rubbish\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
        advance(LIMITS.linger_s - 1)
        sock.sendall(b"more")
        advance(1)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.sendall(b"more" * 1_000_000)


@meets("Time of a handshake of TLS")
def test_who_never_shakes_hands(by_hand, tmp_path):
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    address, advance = by_hand(ManualClock(), tls=ServerCertificate(tmp_path / "both.pem"))
    with socket.create_connection(address, GUARD_S) as sock:
        advance(0)
        advance(LIMITS.handshake_s - 1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        sock.settimeout(GUARD_S)
        advance(1)
        assert sock.recv(100) == b""


@meets("Connections that wait to be accepted")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the length of the queue")
def test_the_queue_of_connections():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = HttpServer(Api(AccountServer({"p": "s"})), [sock])
        server.start()
        try:
            told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        finally:
            server.stop()
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:  # noqa: PTH123 - no file of ours
        assert struct.unpack_from("I", told, 28)[0] == min(BACKLOG, int(file.read()))


class FullTable(socket.socket):
    """A listening socket for whose connections there is no descriptor, while `is_full`."""

    is_full = False

    def accept(self):
        if self.is_full:
            FullTable.is_full = False  # the connection that was closed left one
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@meets("Open files")
def test_a_connection_without_a_descriptor():
    with FullTable() as sock:
        sock.bind(("127.0.0.1", 0))
        server = HttpServer(Api(AccountServer({"p": "s"})), [sock])
        server.start()
        heartbeat = b"GET /api/heartbeat HTTP/1.1\r\n\r\n"
        try:
            oldest, other, new = (socket.create_connection(sock.getsockname(), GUARD_S) for _ in range(3))
            for client in (oldest, other):
                client.sendall(heartbeat)
                assert client.recv(1_000)
            FullTable.is_full = True
            with oldest, other, new, socket.create_connection(sock.getsockname(), GUARD_S) as last:
                last.sendall(heartbeat)
                assert last.recv(1_000).startswith(b"HTTP/1.1 200 ")
        finally:
            server.stop()


@meets("Nesting of an argument")
@pytest.mark.parametrize(("levels", "status"), [(MAX_DEPTH, 200), (MAX_DEPTH + 1, 400)])
def test_a_nested_argument(site, levels, status):
    body = b'{"slot": "s", "x": %b}' % (b"[" * levels + b"]" * levels)
    assert site.post("alloc", body)[0] == status


@meets("Whole number of an argument")
def test_a_large_number(site):
    assert site.post("alloc", {"slot": "most", "credits": LARGEST_INTEGER})[0] == 200
    site.post("alloc", {"slot": "more", "credits": LARGEST_INTEGER + 1})
    assert list(site.slots()) == ["most"]


@meets("Id of a batch")
@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 400)])
def test_the_id_of_a_batch(site, excess, status):
    headers = {"Authorization": site.sign(b"{}"), "CreditPiggy-Batch": "b" * (batches.LONGEST_ID + excess)}
    assert site.request("POST", "/api/batch/bulk", b"{}", headers)[0] == status


@meets("Senders whose latest batch is known, of a project", "Other batches that are known, of a project")
@pytest.mark.parametrize(
    ("most", "name"),
    [(batches.SENDERS_KEPT, "{:032x}-1"), (batches.OTHERS_KEPT, "batch {}")],
    ids=["senders", "others"],
)
def test_batches_that_are_known(most, name):
    known = Batches()
    for number in range(most + 1):
        known.add(f"{name.format(number)} digest", 0, [])
    first, second = (f"{name.format(number)} digest" for number in range(2))
    assert known.answer(first) is None  # so it is applied again
    assert known.answer(second) == []


@meets("Time for which another batch is known")
def test_how_long_a_batch_is_known():
    known = Batches()
    known.add("first digest", 0, [])
    known.add("second digest", batches.OTHERS_KEPT_US, [])
    assert known.answer("first digest") == []
    known.add("third digest", batches.OTHERS_KEPT_US + 1, [])
    assert known.answer("first digest") is None


@meets("Refusals kept of a project's batches")
def test_refusals_of_batches():
    known = Batches()
    known.add("first digest", 0, ["no"])
    known.add("second digest", 0, ["no"] * (batches.REFUSALS_KEPT - 1))
    assert known.answer("first digest") == ["no"]
    known.add("third digest", 0, ["no"])
    with pytest.raises(BatchSeen):
        known.answer("first digest")
    assert known.answer("third digest") == ["no"]


@meets("Journal of a project")
def test_a_full_journal(visit):
    with Fake({"Physics": "s3cret"}, http=ANY_PORT, journal_limit=2) as fake:
        site = visit(fake)
        for number, status in ((1, 200), (2, 200), (3, 507)):
            assert site.post("alloc", {"slot": f"s{number}"})[0] == 200
            assert site.request("GET", "/__cpsim/journal?project=Physics")[0] == status


@meets("Malformed frames kept of a project")
def test_malformed_frames(site):
    for number in range(journal.MALFORMED_KEPT + 1):
        site.fake.accounts.note_malformed("Physics", b"frame %d" % number)
    told = json.loads(site.request("GET", "/__cpsim/malformed?project=Physics")[1])
    assert (told["count"], len(told["first"])) == (journal.MALFORMED_KEPT + 1, journal.MALFORMED_KEPT)


@meets("Page of the control API")
@pytest.mark.parametrize(("limit", "status"), [(PAGE, 200), (PAGE + 1, 400)])
def test_a_page(site, limit, status):
    assert site.request("GET", f"/__cpsim/slots?project=Physics&limit={limit}")[0] == status


@meets("Form of the dashboard")
@pytest.mark.parametrize(("excess", "status"), [(0, 403), (1, 413)])
def test_a_form(site, excess, status):
    form = b"token=none&a=".ljust(MOST_FORM_BYTES + excess, b"x")
    assert site.request("POST", "/do/reset", form, {"Content-Type": "application/x-www-form-urlencoded"})[0] == status


@meets("Time of a fault")
def test_a_long_fault():
    assert Fault("late", LONGEST_S).value == LONGEST_S
    with pytest.raises(CpsimError, match="from 0 to 86,400"):
        Fault("late", LONGEST_S + 1)


@meets("Commands that wait for a fault `rate`")
def test_a_long_queue():
    plan = FaultPlan(["rate=0.01"], clock=ManualClock())
    *_, last, further = [plan.intercept(Exchange("server", [("alloc", "a")])) for _ in range(MOST_WAITING + 2)]
    assert (last.instead, last.delay_s) == (None, 100 * MOST_WAITING)
    assert further.instead is End.CLOSE


@meets("Time for requests in progress when the server stops")
def test_a_server_that_stops():
    clock = ManualClock()
    loop = ManualLoop(clock)
    listening = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(Api(AccountServer({"p": "s"})), [listening], new_loop=lambda: loop)
    server.start()
    with socket.create_connection(listening.getsockname(), GUARD_S) as sock:
        sock.sendall(b"POST /api/heartbeat HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while stopping.is_alive():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(clock.advance, carrier.FINISH_S / 4)
            stopping.join(0.01)
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    assert clock.monotonic() >= carrier.FINISH_S
