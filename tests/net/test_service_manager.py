"""What a service manager passes and is told: sockets, readiness, reloads, signs of life."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing, contextmanager, suppress

import pytest

from cpdaemon import Client
from cpdaemon.endpoint import parse_endpoint
from cpsim.daemon.client import BulkClient
from cpsim.daemon.config import Config
from cpsim.daemon.config import with_passed as with_daemons_sockets
from cpsim.daemon.metrics_server import MetricsServer
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.fake.daemons import Site
from cpsim.fake.settings import Configuration, with_passed
from cpsim.metrics.exposition import build_info
from cpsim.net.addresses import listen_unix
from cpsim.net.service_manager import PassedSocket, ServiceManager, by_kind, tcp_of
from cpsim.system.signals import Signals

PASSED = """
import json, os, socket, sys
from cpsim.errors import CpsimError
from cpsim.net.service_manager import passed_sockets

def passed(*sockets, **more):
    for descriptor, sock in enumerate(sockets, 3):
        os.dup2(sock.fileno(), descriptor)
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "OTHER": "", **more}
    try:
        found = passed_sockets(environment)
        names = [[each.name, each.kind, each.sock.fileno(), os.get_inheritable(each.sock.fileno())] for each in found]
        [each.sock.detach() for each in found]
        return [names, *environment]
    except CpsimError as error:
        return str(error)

for _ in range(6):
    os.dup(0)  # the descriptors from 3 on are to be overwritten
def unix(name, kind=socket.SOCK_STREAM):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(name)
    return sock
path, tcp = unix("cp.sock"), socket.create_server(("127.0.0.1", 0))
path.listen()
print(json.dumps({
    "two": passed(path, tcp, LISTEN_FDNAMES="a:b"),
    "without names": passed(path, tcp),
    "of another process": passed(path, LISTEN_PID="1"),
    "no number": passed(path, LISTEN_FDS="one"),
    "datagrams": passed(unix("d.sock", socket.SOCK_DGRAM), LISTEN_FDNAMES="d"),
    "without a path": passed(unix("\\0cpsim-" + str(os.getpid())), LISTEN_FDNAMES="abstract"),
    "connected": passed(socket.create_connection(tcp.getsockname()), LISTEN_FDNAMES="accepted"),
    "no socket": passed(open("file", "w"), LISTEN_FDNAMES="file"),
}))
"""


def test_the_sockets_that_are_passed(here):
    told = subprocess.run([sys.executable, "-c", PASSED], capture_output=True, text=True, check=True, timeout=280)
    found = json.loads(told.stdout)
    assert found.pop("two") == [[["a", "unix", 3, False], ["b", "tcp", 4, False]], "OTHER"]
    assert found.pop("without names") == [[["", "unix", 3, False], ["", "tcp", 4, False]], "OTHER"]
    assert found.pop("of another process") == found.pop("no number") == [[], "OTHER"]
    assert "'accepted' does not listen: give Accept=no" in found.pop("connected")
    assert "descriptor 3 ('file')" in found.pop("no socket")
    assert "'d' is no stream socket" in found["datagrams"]
    assert "'abstract' is no stream socket at a path" in found["without a path"]


@pytest.fixture
def bound(here):
    """A UNIX socket and a TCP socket that listen, by their kinds."""
    with listen_unix(here / "bound.sock") as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        yield {"unix": unix, "tcp": tcp}


def passed(bound, kind, name):
    return PassedSocket(name, kind, bound[kind])


def test_each_socket_has_one_use(bound):
    unix, tcp = passed(bound, "unix", "u"), passed(bound, "tcp", "t")
    assert by_kind([unix, tcp]) == bound
    assert tcp_of([tcp]) is bound["tcp"]
    assert tcp_of([]) is None
    for two in ([unix, unix], [tcp, tcp]):
        with pytest.raises(CpsimError, match="one path and one TCP address"):
            by_kind(two)
    for wrong in ([unix], [tcp, tcp]):
        with pytest.raises(CpsimError, match="HTTP is served at one TCP address"):
            tcp_of(wrong)


def test_a_daemon_serves_metrics_at_the_socket_that_is_named_so(bound):
    unix, tcp = passed(bound, "unix", "cpsim-daemon.socket"), passed(bound, "tcp", "metrics")
    config = with_daemons_sockets(Config(), [unix, tcp])
    assert (config.bound, config.bound_metrics) == ({"unix": bound["unix"]}, bound["tcp"])
    config = with_daemons_sockets(Config(), [unix, passed(bound, "tcp", "cpsim-daemon.socket")])
    assert (config.bound, config.bound_metrics) == (bound, None)
    assert len({config, Config()}) == len({Site(project_id="p", bound=bound), Site(project_id="p")}) == 2
    with (
        MetricsServer(bound["tcp"].dup(), lambda: [build_info()]) as url,
        urllib.request.urlopen(url, timeout=60) as answer,
    ):
        assert answer.read().decode().count("cpsim_build_info{") == 1
        assert url == f"http://127.0.0.1:{bound['tcp'].getsockname()[1]}/metrics"


def test_a_server_gives_each_socket_to_what_it_is_named_after(bound):
    given = Configuration(
        projects={"p": "s", "q": "t"},
        http=ANY_PORT,
        sites=[Site(project_id="p"), Site(project_id="q", tcp=ANY_PORT, flush_interval_s=7)],
    )
    unix, http = passed(bound, "unix", "q"), passed(bound, "tcp", "http")
    found = with_passed(given, [unix, http])
    assert found.bound_http is bound["tcp"]
    assert found.http.port == bound["tcp"].getsockname()[1]
    assert [site.project_id for site in found.sites] == ["q", "p"]
    assert found.sites[0] == Site(project_id="q", bound={"unix": bound["unix"]}, flush_interval_s=7)
    with pytest.raises(CpsimError, match=r"socket 'r': .* there are: http, p, q"):
        with_passed(given, [passed(bound, "unix", "r")])


def test_a_server_serves_at_sockets_that_are_bound_and_leaves_their_addresses(bound, here):
    port = bound["tcp"].getsockname()[1]
    mine = {kind: sock.dup() for kind, sock in bound.items()}
    sites = [Site(project_id="p", bound={"unix": mine["unix"]})]
    http = parse_endpoint(f"127.0.0.1:{port}")
    with Fake({"p": "s"}, sites=sites, http=http, bound_http=mine["tcp"]) as fake:
        assert fake.addresses["http"] == f"http://127.0.0.1:{port}/api"
        with Client(fake.addresses["unix"]) as client:
            client.alloc("a", credits=5)
        fake.wait_until_idle()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/__cpsim/totals", timeout=60) as answer:
            assert json.load(answer)["projects"]["p"]["allocated"] == 1
        for fault in ("refuse", "down"):
            with pytest.raises(CpsimError, match="the service manager holds"):
                fake.faults.add(fault)
        fake.faults.add("daemon.error")  # which refuses no connection
    assert (here / "bound.sock").is_socket()
    bound["unix"].setblocking(False)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("bound.sock")  # it is still listened at
        bound["unix"].accept()[0].close()


@pytest.fixture
def told(here):
    """The assignments of each datagram that has come, and the environment of who sends them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("notify")
        sock.setblocking(False)

        def read():
            found = []
            with suppress(BlockingIOError):
                while True:
                    found.append(sock.recv(10_000).decode().splitlines())
            return found

        yield read


def environment(**more):
    return {"NOTIFY_SOCKET": "notify", "PATH": "", **more}


def test_what_is_told_from_the_start_to_the_end(told):
    given = environment()
    manager = ServiceManager(given)
    assert list(given) == ["PATH"]
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        ended_by = manager.wait(signals, lambda: manager.tell("reads"), pytest.fail, lambda: "at a\npath")
    manager.end()
    assert ended_by == signal.SIGTERM
    begun, reloading, *rest = told()
    assert begun == ["READY=1", "STATUS=at a path"]
    assert reloading[0] == "RELOADING=1"
    assert reloading[1].removeprefix("MONOTONIC_USEC=").isdigit()
    assert rest == [["reads"], ["READY=1"], ["STOPPING=1", "STATUS=stopping; at a path"]]


@pytest.mark.parametrize(
    ("watchdog", "interval_s"),
    [
        ({}, 10.0),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 10.0),
        ({"WATCHDOG_USEC": "often"}, 10.0),
    ],
)
def test_a_sign_of_life_is_due_at_half_the_watchdogs_time(told, watchdog, interval_s):
    manager = ServiceManager(environment(**watchdog))
    assert manager.interval_s == interval_s
    turns = []
    manager.watch(turns.append, lambda: "the same")
    assert told() == [["STATUS=the same"]]
    for then in turns:
        then()  # only what has taken its turn
    manager.watch(turns.append, lambda: "the same")
    assert told() == [["WATCHDOG=1"]] * (interval_s < 10 or interval_s == 30)


def test_without_a_manager_nothing_is_sent_and_nobody_wakes_up():
    assert ServiceManager({"WATCHDOG_USEC": "1000"}).interval_s is None
    ServiceManager({"NOTIFY_SOCKET": "nobody"}).tell("READY=1")
    ServiceManager({"NOTIFY_SOCKET": "@nobody"}).tell("READY=1")


def test_what_is_done_regularly_is_done_until_the_end():
    with Signals() as signals:
        turns = []

        def take():
            turns.append(1)
            if len(turns) == 3:
                signals.end()

        assert signals.wait(pytest.fail, 100, 0.001, take) == 0
    assert len(turns) >= 3


@contextmanager
def held(part):
    """Hold up the thread that takes the last turn of a part."""
    release, is_held = threading.Event(), threading.Event()
    part.after_a_turn(lambda: is_held.set() or release.wait())
    assert is_held.wait(100)
    try:
        yield
    finally:
        release.set()


def gives_a_sign(part):
    sign = threading.Event()
    part.after_a_turn(sign.set)
    return sign


def test_a_daemon_whose_listener_or_writer_hangs_gives_no_sign(here, wait_for):
    spool = Spool(here / "spool")
    with (
        closing(BulkClient(parse_endpoint("http://127.0.0.1:9/api"), ("p", "s"), 60.0)) as server,
        Daemon(server, "p", unix=here / "cp.sock", spool=spool, flush_interval_s=3600) as daemon,
    ):
        assert gives_a_sign(daemon).wait(100)
        release = threading.Event()
        daemon.listener.call(release.wait)
        sign = gives_a_sign(daemon)
        spool.wait()
        assert not sign.is_set()
        release.set()
        assert sign.wait(100)
        release, is_written = threading.Event(), threading.Event()
        spool.put(["alloc,slot=a"], {}, lambda _: is_written.set() or release.wait())
        assert is_written.wait(100)
        sign = gives_a_sign(daemon)
        daemon.listener.change(tuple)
        assert not sign.is_set()
        assert daemon.status_line == f"{here.absolute() / 'cp.sock'}: 1 commands wait"
        release.set()
        assert sign.wait(100)
        spool.release(1)
        daemon.drain(tuple)  # whose listener has ended
        assert gives_a_sign(daemon).wait(100)
        wait_for(lambda: daemon.status_line.startswith("draining: 1 commands wait; nothing is delivered: "))


def test_a_server_whose_event_loop_hangs_gives_no_sign():
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        with held(fake):
            sign = gives_a_sign(fake)
            assert not sign.is_set()
        assert sign.wait(100)


@contextmanager
def activated(here, *command, listen, names="", **environment):
    """A process of `cpsim` for which the tool of systemd listens, once somebody has connected to the first socket."""
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("no systemd-socket-activate: install systemd")
    options = [f"--listen={address}" for address in listen]
    options += [f"--fdname={names}"] * bool(names)
    options += [f"--setenv={name}={value}" for name, value in environment.items()]
    with subprocess.Popen(
        [tool, *options, sys.executable, "-m", "cpsim", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for _ in listen:  # it says so
                process.stderr.readline()
            yield process
        finally:
            process.terminate()


@pytest.mark.thorough
def test_a_server_that_systemd_activates(here, told, wait_for):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    sockets = {"listen": [here.absolute() / "cp.sock", address], "names": "demo:http"}
    notify = {"NOTIFY_SOCKET": here.absolute() / "notify", "WATCHDOG_USEC": 20_000}
    heard = []
    with activated(here, "serve", "--log-format", "json", **sockets, **notify) as process:
        with Client("./cp.sock") as client:
            client.alloc("a", credits=5)  # which has waited for the server
        with urllib.request.urlopen(f"http://{address}/__cpsim/totals", timeout=60) as answer:
            assert json.load(answer)["projects"]["demo"]["allocated"] == 1
        wait_for(lambda: heard.extend(told()) or ["WATCHDOG=1"] in heard)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: heard.extend(told()) or heard.count(["READY=1"]))
        process.terminate()
        said = [line for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert process.returncode == 0
    assert heard[0][0] == "READY=1"
    assert told()[-1][0] == "STOPPING=1"
    assert [json.loads(line)["message"] for line in said] == ["SIGHUP: the secrets were read again"]
    assert (here / "cp.sock").is_socket()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("command", "names", "said"),
    [
        (["serve", "--unix", "other.sock"], "demo", "--unix and a passed socket 'demo' exclude one another"),
        (["serve", "--log-format", "json"], "other", '"message": "socket \'other\': its FileDescriptorName= says'),
        (["daemon", "--tcp", "127.0.0.1:0"], "", "--tcp and a passed socket '' exclude one another"),
    ],
)
def test_a_socket_that_cannot_be_used_is_an_error(here, command, names, said):
    path = here.absolute() / "cp.sock"
    with activated(here, *command, listen=[path], names=names) as process, socket.socket(socket.AF_UNIX) as client:
        client.connect("cp.sock")
        text = process.stderr.read()
    assert process.returncode in {2, 64}
    assert said in text
