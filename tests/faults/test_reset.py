"""A reset sets everything to how it was at the start, under every fault, and lets nothing go into the next test."""

import json
import socket

import pytest

from cpdaemon import Client
from cpdaemon.signing import token
from cpsim.clock import SYSTEM_CLOCK
from cpsim.fake import ANY_PORT, Fake, Site
from cpsim.faults.plan import FaultPlan
from cpsim.faults.spec import ACTIONS
from cpsim.metrics.waits import Waits

VALUES = {"": "", "delay_s": "=3600", "status": "=503", "per_s": "=0.01"}
FAULTS = [f"{stage}.{name}{VALUES[action.takes]}" for name, action in ACTIONS.items() for stage in action.stages]
HOLDING = ["daemon.hang", "daemon.late=3600", "daemon.pieces=3600", "server.hang", "server.late=3600"]


@pytest.fixture(params=["memory", "store"])
def serve(request, here):
    """serve(**options): a fake of projects p and q, with a daemon of p at ./cp.sock."""
    store = here / "accounts" if request.param == "store" else None

    def serve(**options):
        options = {"http": ANY_PORT, "unix": here / "cp.sock", "store": store} | options
        return Fake({"p": "s", "q": "t"}, crash=lambda: None, **options)

    return serve


def by_control(fake, project=None):
    """Reset through the control API."""
    query = "" if project is None else f"?project={project}"
    asked(fake, f"POST /__cpsim/reset{query}")


def asked(fake, request):
    """Make a request without a body, which has to be answered 200."""
    with connected(fake.addresses["http"]) as sock:
        sock.sendall(f"{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode())
        sock.sendall(b"Content-Length: 0\r\n\r\n")
        assert received(sock).startswith(b"HTTP/1.1 200 ")


WAYS = {"control": by_control, "python": Fake.reset}


@pytest.fixture(params=WAYS)
def reset(request):
    """reset(fake, project=None): a reset, through each of the ways."""
    return WAYS[request.param]


def connected(address):
    """A socket that is connected to a daemon's path, or a server's URL."""
    if not address.startswith("http:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(280)
        sock.connect(address)
        return sock
    host, port = address.removeprefix("http://").removesuffix("/api").split(":")
    return socket.create_connection((host, int(port)), timeout=280)


def received(sock):
    """All that comes until the other side closes."""
    data = b""
    while True:
        try:
            more = sock.recv(4096)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def sent(fake, stage, slot="held", project=("p", "s"), daemon=None):
    """A socket on which an alloc was sent to a stage, by hand."""
    if stage == "daemon":
        sock = connected(fake.addresses["unix"] if daemon is None else daemon)
        sock.sendall(b"alloc,slot=%b\n" % slot.encode())
        return sock
    body = json.dumps({"slot": slot}).encode()
    head = f"POST /api/batch/alloc HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token(project, body)}\r\n"
    sock = connected(fake.addresses["http"])
    sock.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def state(fake):
    """All that a fake shows of what can change, but for its time."""
    see = fake.inspector
    return {
        "totals": see.totals(),
        "journals": [see.journal(project).items for project in ("p", "q")],
        "malformed": [see.malformed(project).count for project in ("p", "q")],
        "links": see.links().items,
        "faults": see.faults(),
        "firings": see.firings().items,
        "quirks": see.quirks(),
        "rate": see.clock().rate,
    }


def slots(fake, project="p"):
    fake.wait_until_idle(60)
    return [view.slot for view in fake.inspector.slots(project).items]


# Under every fault


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_keeps_a_reset_from_setting_everything_back(serve, reset, fault, wait_for):
    if fault == "server.down" and reset is by_control:
        reset = Fake.reset  # its socket is closed
    with serve() as fake:
        begun = state(fake)
        fake.faults.add(fault)
        stage = fault.partition(".")[0]
        held = [] if fault in {"daemon.refuse", "server.down"} else [sent(fake, stage)]
        wait_for(lambda: fake.faults.firings)
        if stage == "server":
            with sent(fake, "daemon", "kept") as sock:
                assert received(sock) == b"OK"
        reset(fake)
        for sock in held:
            with sock:
                received(sock)
        assert state(fake) == begun
        with Client("./cp.sock") as client, Client(fake.addresses["http"], ("p", "s")) as web:
            client.alloc("next")
            web.alloc("after")
        assert sorted(slots(fake)) == ["after", "next"]


@pytest.mark.parametrize("fault", HOLDING)
def test_what_a_fault_holds_is_never_applied(serve, reset, fault, wait_for):
    with serve() as fake:
        fake.faults.add(fault)
        with sent(fake, fault.partition(".")[0]) as sock:
            wait_for(lambda: fake.faults.firings)
            reset(fake)
            assert received(sock) == (b"O" if "pieces" in fault else b"")
    assert fake.inspector.journal("p").items == []  # a fake lets go at its end what is held then


@pytest.mark.parametrize("fault", ["server.hang", "server.late=3600", "server.status=503", "server.down"])
def test_what_a_daemon_could_not_deliver_is_never_delivered(serve, fault, wait_for):
    with serve() as fake:
        fake.faults.add(fault)
        with Client("./cp.sock") as client:
            client.alloc("held")
        wait_for(lambda: fake.faults.firings)
        assert fake.pending == 1
        fake.reset()
        assert fake.pending == 0
        assert slots(fake) == []
        with Client("./cp.sock") as client:
            client.alloc("next")
        assert slots(fake) == ["next"]
    with serve(http=None) as again:  # nor by the next that opens its files
        assert "held" not in slots(again)


# What is set back


def test_faults_are_those_of_the_start_with_new_counts(serve, reset):
    with serve(faults=["daemon.error:nth=1"]) as fake:
        for _ in range(2):
            with sent(fake, "daemon") as sock:
                assert received(sock) == b"ER"
            assert [(fired.selected, fired.fired) for fired in fake.inspector.faults()] == [(1, 1)]
            fake.faults.add("server.status=503")
            reset(fake)
            found = [(view.fault, view.selected, view.fired) for view in fake.inspector.faults()]
            assert found == [("daemon.error:nth=1", 0, 0)]
            assert fake.faults.firings == []


def test_quirks_are_those_of_the_start(serve, reset):
    with serve(quirks=frozenset({"reclaim"})) as fake:
        fake.set_quirks(frozenset({"cut-values"}))
        reset(fake)
        assert fake.accounts.quirks == {"reclaim"}
        with sent(fake, "daemon", "a=b") as sock:
            assert received(sock) == b"ER"  # with cut-values, it is a slot "a"


def test_the_clock_follows_real_time_again(serve, reset):
    with serve() as fake:
        fake.accounts.clock.freeze()
        fake.accounts.clock.advance(days=1)
        with Client("./cp.sock") as client:
            client.alloc("tomorrow")
        assert slots(fake) == ["tomorrow"]
        reset(fake)
        assert fake.accounts.clock.rate == 1
        assert fake.accounts.clock.now_us() <= SYSTEM_CLOCK.now_us()
    with serve() as again:
        assert again.accounts.clock.now_us() <= SYSTEM_CLOCK.now_us()


@pytest.mark.parametrize("frame", [b"", b"alloc,slot=ha", b"alloc,sl"])
def test_connections_to_daemons_are_closed(serve, reset, frame):
    with serve() as fake, connected("cp.sock") as sock:
        sock.sendall(frame)
        with sent(fake, "daemon", "first") as other:  # it is answered in the same turn, or later
            assert received(other) == b"OK"
        reset(fake)
        sock.setblocking(False)  # it is closed by now
        received(sock)
        assert slots(fake) == []
    assert fake.inspector.journal("p").items == []
    assert fake.inspector.malformed("p").count == 0


@pytest.mark.parametrize("stage", ["daemon", "server"])
def test_callers_waits_are_forgotten(here, stage, wait_for):
    waits = Waits()
    at_server = {"waits": waits} if stage == "server" else {}
    with Fake({"p": "s"}, http=ANY_PORT, **at_server) as fake:
        if stage == "daemon":
            fake.add_site(Site(project_id="p", unix=here / "cp.sock"), waits=waits)
        fake.faults.add("hang")
        with sent(fake, stage, daemon="./cp.sock") as sock:
            wait_for(waits.longest)
            fake.reset()
            received(sock)
            assert waits.longest() == []


# One project


@pytest.mark.parametrize("fault", HOLDING)
def test_of_one_project_what_it_shares_stays(serve, reset, here, fault, wait_for):
    sites = [Site(project_id="q", unix=here / "q.sock")]
    with serve(sites=sites) as fake:
        fake.set_quirks(frozenset({"reclaim"}))
        fake.accounts.clock.freeze()
        fake.accounts.link([("m", "u")])
        fake.faults.add(fault)
        stage = fault.partition(".")[0]
        with sent(fake, stage) as mine, sent(fake, stage, "theirs", ("q", "t"), "./q.sock") as theirs:
            wait_for(lambda: len(fake.faults.firings) == 2)
            reset(fake, "p")
            received(mine)
            if "pieces" in fault:
                assert theirs.recv(1) == b"O"
            asked(fake, "GET /__cpsim/totals")  # the server has gone through whatever it had to do
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
            shown = state(fake)
            assert [(view.fault, view.fired) for view in shown["faults"]] == [(fault, 2)]
            assert [firing.project for firing in shown["firings"]] == ["q"]
            assert shown["rate"] == 0
            assert [link.machine for link in shown["links"]] == ["m"]
            assert fake.accounts.quirks == {"reclaim"}
            fake.faults.clear()
        assert slots(fake) == []


def test_a_daemons_own_faults_are_reset_with_its_project(serve, here):
    with serve() as fake:
        site = Site(project_id="q", unix=here / "q.sock")
        own = FaultPlan(["daemon.error:nth=1"])
        fake.add_site(site, faults=own)
        for project in ("q", None):
            own.add("daemon.hang")
            with sent(fake, "daemon", daemon="./q.sock") as sock:
                assert received(sock) == b"ER"
            fake.reset(project)
            assert own.describe() == [("daemon.error:nth=1", 0, 0)]
            assert own.firings == []


def test_there_is_no_such_project(serve):
    with serve() as fake, pytest.raises(LookupError, match="there is no project 'x'"):
        fake.reset("x")
