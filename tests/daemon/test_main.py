"""`cpsim daemon` as a process of its own."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing, contextmanager, suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cpdaemon import Alloc, BadReply, Client, CreditPiggyError, Refused, UnixEndpoint
from cpdaemon.endpoint import parse_endpoint
from cpdaemon.signing import token
from cpdaemon.transport import exchange
from cpsim.daemon.client import BulkClient
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.fake import ANY_PORT, Fake

SECRET = "hush%hush"
CPSIM = (sys.executable, "-P", "-m", "cpsim")


@pytest.fixture
def server():
    with Fake({"p": SECRET}, http=ANY_PORT) as fake:
        yield fake


@pytest.fixture
def ini(here):
    """Return ini(url, **over) -> the path of a deployed daemon's configuration."""

    def write(url):
        path = here / "creditapi.ini"
        path.write_text(
            f"[api]\napi_url={url}\napi_key=p\napi_secret={SECRET}\nflush_interval=0\n"
            "[server]\nsocket=unix\nbind=cp.sock\npidfile=pid\nlogfile=log\nloglevel=DEBUG\n"
        )
        return path

    return write


@contextmanager
def running(here, *options, stderr=None):
    """A daemon, stopped in the end."""
    command = [*CPSIM, "daemon", "--spool", "spool", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        address = process.stdout.readline()
        try:
            yield process, address
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.fixture
def told(cpsim):
    """Return told(*options) -> what `cpsim daemon` says that ends by itself, in this process."""
    return lambda *options: cpsim("daemon", *options)


def test_the_deployed_configuration(here, server, ini, told):
    with running(here, "--config", str(ini(server.addresses["http"]))) as (process, address):
        assert address == f"unix {here.absolute() / 'cp.sock'}\n"
        assert (here / "pid").read_text() == f"{process.pid}\n"
        with Client("./cp.sock") as client:
            client.alloc("a", credits=5)
            client.counters("a", events=3)
            client.claim("a", "m")
            client.claim("never", "m")
        json_status = json.loads(told("--spool", "spool", "--status", "--json")[1])
        assert json_status["running"] is True
    with server.accounts.reading() as ledger:
        slot = ledger.project("p").slots["a"]
        assert (slot.state, slot.granted, slot.counters) == ("claimed", 5, {"events": 3})
    assert not (here / "pid").exists()
    assert not (here / "cp.sock").exists()
    log = (here / "log").read_text()
    assert f"listening at {address.strip()}" in log
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d [A-Z]+ cpsim", log)
    assert "never allocated" in log
    assert SECRET not in log

    status, out, _ = told("--spool", "spool", "--status")
    assert status == 0
    assert "failure" not in out
    assert out.splitlines()[:4] == ["running       no", "queued        0", "oldest s      0.0", "delivered     3"]
    status, out, _ = told("--spool", "spool", "--failed")
    assert "  refused  claim,slot=never,machine=m  slot 'never' was never allocated" in out
    (failed,) = json.loads(told("--spool", "spool", "--failed", "--json")[1])
    assert (failed["why"], failed["command"]) == ("refused", "claim,slot=never,machine=m")


def test_options_without_a_configuration(here, server):
    (here / "secret").write_text(SECRET)
    options = (
        "--server",
        server.addresses["http"],
        "--project",
        "p",
        "--secret-file",
        "secret",
        "--tcp",
        "127.0.0.1:0",
    )
    with running(here, *options, "--flush-interval", "0", "--ready-file", "ready") as (_, address):
        assert (here / "ready").read_text() == address
        with Client(address.split()[1]) as client:
            client.alloc("a")
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a"]


def test_metrics_at_an_address_of_their_own(here, server, ini):
    config = ("--config", str(ini(server.addresses["http"])))
    with running(here, *config, "--metrics", "0", "--ready-file", "ready") as (process, _):
        kind, url = process.stdout.readline().split()
        assert (kind, url.partition(":")[0]) == ("metrics", "http")
        assert (here / "ready").read_text().splitlines()[1] == f"metrics {url}"
        with Client("./cp.sock") as client:
            client.alloc("a")
        with urllib.request.urlopen(url, timeout=60) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    assert [sample.value for each in families for sample in each.samples if each.name == "cpsim_daemon_replies"] == [1]


def test_a_configuration_may_leave_the_port_open(here, server, ini):
    path = ini(server.addresses["http"])
    path.write_text(path.read_text().replace("socket=unix\nbind=cp.sock", "socket=tcp\nbind=127.0.0.1:0"))
    with running(here, "--config", str(path)) as (_, address), Client(address.split()[1]) as client:
        client.alloc("a")


def test_what_a_server_that_is_down_cannot_take_stays(here, server, ini):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
    path = ini(nowhere)
    for slot in ("a", "b"):
        with running(here, "--config", str(path)), Client("./cp.sock") as client:
            client.alloc(slot)
    status = read_status(here / "spool")
    assert (status.running, status.queued, status.delivered) == (False, 2, 0)
    assert status.oldest_s > 0
    with running(here, "--config", str(ini(server.addresses["http"]))):
        pass
    assert read_status(here / "spool").delivered == 2
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a", "b"]


def test_a_batch_that_is_not_answered_in_time_is_sent_again(here, server, ini, wait_for):
    server.faults.add("server.hang:kind=bulk,nth=2")  # the first asks whether it knows batch ids
    options = ("--config", str(ini(server.addresses["http"])), "--timeout", "2")
    with running(here, *options), Client("./cp.sock") as client:
        client.alloc("a")
        wait_for(lambda: read_status(here / "spool").delivered)
        status = read_status(here / "spool")
    assert (status.delivered, status.retries) == (1, 1)
    assert f"no reply from {server.addresses['http']} in time" in (here / "log").read_text()


def test_a_second_daemon_on_one_spool(here, server, ini, told):
    path = str(ini(server.addresses["http"]))
    with running(here, "--config", path):
        status, _, error = told("--config", path, "--spool", "spool", "--unix", "other.sock")
        assert (status, error) == (2, "cpsim: spool is in use by another process; stop it, or name another file\n")
    assert not (here / "other.sock").exists()


def test_a_second_daemon_on_one_spool_through_a_link(here, server, ini, told):
    path = str(ini(server.addresses["http"]))
    (here / "other").mkdir()
    (here / "other" / "link").symlink_to("../spool")
    link = ("--spool", "other/link")
    with running(here, "--config", path), Client("./cp.sock") as client:
        client.claim("never", "m")
        status, _, error = told("--config", path, *link, "--unix", "other.sock")
        real = (here / "spool").resolve()
        assert (status, error) == (2, f"cpsim: {real} is in use by another process; stop it, or name another file\n")
        assert json.loads(told(*link, "--status", "--json")[1])["running"] is True
        status, _, error = told(*link, "--requeue", "all")
        assert status == 2
        assert error.startswith("cpsim: other/link is in use by a daemon: ")
    assert json.loads(told(*link, "--status", "--json")[1])["running"] is False
    assert [row["command"] for row in json.loads(told(*link, "--failed", "--json")[1])] == [
        "claim,slot=never,machine=m"
    ]
    assert told(*link, "--forget", "all")[1] == "1 commands are deleted from the list\n"
    assert [path.name for path in (here / "other").iterdir()] == ["link"]


@pytest.mark.parametrize("options", [("--status",), ("--failed",), ("--requeue", "all"), ("--forget", "1")])
def test_a_spool_that_is_a_link_to_nothing(here, options, told):
    (here / "s").symlink_to("nowhere")
    said = "cpsim: s is a link to nowhere, which does not exist: create that, or name a file\n"
    assert told("--spool", "s", *options) == (2, "", said)
    assert [path.name for path in here.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give --spool FILE, which stores commands until they are delivered, or [server] spool in a --config FILE"),
        (("--spool", "s"), "give --unix, --tcp, or [server] bind in a --config FILE"),
        (("--spool", "s", "--unix", "u"), "give --server, or [api] api_url in a --config FILE"),
        (("--spool", "s", "--unix", "u", "--server", "http://x/api"), "give --project, or [api] api_key in a --config"),
        (("--spool", "s", "--unix", "u", "--tcp", "127.0.0.1:0"), "exclude one another"),
        (("--spool", "s", "--unix", "u", "--server", "127.0.0.1:1"), "must be a URL"),
        (("--requeue", "1"), "give --spool FILE"),
        (("--spool", "s", "--forget", "first"), "'first' is neither a number that --failed shows nor all"),
        (("--spool", "s", "--requeue", "4", "--forget", "4"), "--requeue and --forget exclude one another"),
        (("--spool", "s", "--quirk", "drops-on-error"), "did you mean 'drop-on-error'"),
        (
            ("--spool", "s", "--quirk", "reclaim"),
            "--quirk reclaim is a quirk of a server: give it to the server behind",
        ),
        (("--spool", "s", "--fault", "hangs"), "did you mean 'hang'"),
    ],
)
def test_wrong_usage(here, options, said, told):
    status, _, error = told(*options)
    assert status == 64
    assert said in error
    assert list(here.iterdir()) == []


def test_what_is_missing_in_a_configuration_is_told_with_its_key(here, ini, told):
    path = ini("http://127.0.0.1:1/api")
    path.write_text(path.read_text().replace(f"api_secret={SECRET}", "api_secret="))
    status, _, error = told("--config", str(path), "--spool", "spool")
    assert status == 64
    assert error.endswith(f"give --secret-file, or [api] api_secret in {path}\n")


def test_a_running_daemon_is_drained_by_a_signal(here, server, ini, told):
    command = [*CPSIM, "daemon", "--spool", "spool", "--config", str(ini(server.addresses["http"]))]
    with subprocess.Popen([*command, "--flush-interval", "3600"], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with Client("./cp.sock") as client:
            client.alloc("a")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(280) == 0
    assert not (here / "cp.sock").exists()
    assert told("--spool", "spool", "--status")[1].splitlines()[1] == "queued        0"
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a"]


@pytest.mark.parametrize("key", ["logfile", "pidfile"])
def test_a_file_that_cannot_be_written_is_told_with_its_key(here, ini, key, told):
    path = ini("http://127.0.0.1:1/api")
    path.write_text(path.read_text().replace(f"{key}=", f"{key}={here.absolute()}/none/"))
    status, _, error = told("--config", str(path), "--spool", "spool")
    file = here.absolute() / "none" / key.removesuffix("file")
    assert (status, error) == (2, f"cpsim: [server] {key} = {file}: No such file or directory\n")


@pytest.mark.parametrize("options", [("--status",), ("--failed",), ("--requeue", "all"), ("--forget", "1")])
def test_a_spool_that_is_not_there(here, options, told):
    assert told("--spool", "s", *options) == (2, "", "cpsim: there is no spool s\n")
    assert list(here.iterdir()) == []


def test_what_failed_is_requeued_or_forgotten(here, server, ini, told):
    path = str(ini(server.addresses["http"]))
    with running(here, "--config", path), Client("./cp.sock") as client:
        for slot in ("a", "b", "c"):
            client.claim(slot, "m")
    spool = ("--spool", "spool")
    numbers = [str(row["position"]) for row in json.loads(told(*spool, "--failed", "--json")[1])]
    assert [line.split()[0] for line in told(*spool, "--failed")[1].splitlines()] == numbers
    assert told(*spool, "--forget", numbers[0]) == (0, "1 commands are deleted from the list\n", "")
    server.accounts.apply("p", [("alloc", {"slot": "b", "credits": 7})])
    assert told(*spool, "--requeue", numbers[1]) == (0, "1 commands are queued for delivery\n", "")
    status, _, error = told(*spool, "--requeue", numbers[1])
    assert (status, error) == (
        2,
        f"cpsim: no failed command has the number {numbers[1]}; --failed lists the numbers\n",
    )
    with running(here, "--config", path):
        for option in ("--requeue", "--forget"):
            status, _, error = told(*spool, option, "all")
            stopping = "stop the daemon, run this command again, then start the daemon"
            assert (status, error) == (2, f"cpsim: spool is in use by a daemon: {stopping}\n")
    with server.accounts.reading() as ledger:
        assert ledger.project("p").slots["b"].granted == 7
    assert [row["command"] for row in json.loads(told(*spool, "--failed", "--json")[1])] == ["claim,slot=c,machine=m"]
    assert told(*spool, "--forget", "all")[1] == "1 commands are deleted from the list\n"
    assert told(*spool, "--failed") == (0, "", "")


def test_a_spool_that_cannot_be_opened_is_not_said_to_be_in_use(here, told):
    Spool(here / "s").close()
    (here / "s.lock").mkdir()
    assert told("--spool", "s", "--forget", "all") == (2, "", "cpsim: cannot open s: Is a directory\n")


def test_what_failed_cannot_move_about_the_terminal_of_who_looks(here, server, ini, told):
    with running(here, "--config", str(ini(server.addresses["http"]))):
        assert exchange(UnixEndpoint("./cp.sock"), "claim,slot=a\u202eb,machine=m".encode(), 5) == b"OK"
    _, text, _ = told("--spool", "spool", "--failed")
    assert r"claim,slot=a\u202eb,machine=m" in text
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert r"refused: claim,slot=a\u202eb,machine=m: slot 'a\u202eb' was never allocated" in (here / "log").read_text()


def test_a_hangup_opens_the_log_anew_and_reads_the_secret_again(here, server, ini, wait_for):
    config = ini(server.addresses["http"])
    with running(here, "--config", str(config)) as (process, _), socket.socket(socket.AF_UNIX) as held:
        held.connect("cp.sock")
        server.set_secrets({"p": "another"})
        config.write_text(config.read_text().replace(SECRET, "another"))
        (here / "log").rename(here / "log.1")
        process.send_signal(signal.SIGHUP)
        log = here / "log"
        wait_for(lambda: log.exists() and "the secret was read again" in log.read_text())
        with Client("./cp.sock") as client:
            client.alloc("a")
        held.sendall(b"alloc,slot=held,credits=5\n")
        assert held.recv(100) == b"OK"
        wait_for(lambda: read_status(here / "spool").delivered == 2)
        config.write_text("[api]\napi_key=p\n")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the secret stays as it was: creditapi.ini has no api_secret any more" in log.read_text())
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a", "held"]
    assert "listening at" in (here / "log.1").read_text()
    left = ["creditapi.ini", "log", "log.1", "spool", "spool.reserve"]
    assert sorted(path.name for path in here.iterdir()) == left


def test_a_daemon_whose_spool_is_removed_says_so_and_ends_with_what_it_held_on_disk(here, server, ini, wait_for):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
    command = [*CPSIM, "daemon", "--config", str(ini(nowhere)), "--spool", "spool"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with Client("./cp.sock") as client:
            client.alloc("a")
        (here / "spool").unlink()
        _, err = process.communicate(timeout=280)
    assert process.returncode == 2
    assert err == "cpsim: spool was removed while it was in use: nothing more is acknowledged\n"
    log = (here / "log").read_text()
    assert "spool was removed while it was in use" in log
    assert "Traceback" not in log
    status = read_status(here / "spool")
    assert (status.queued, status.running) == (1, False)
    assert not (here / "cp.sock").exists()


def test_the_daemon_in_production_keeps_nothing_on_disk(here, server, ini):
    ini_file = str(ini(server.addresses["http"]))
    command = [*CPSIM, "daemon", "--config", ini_file, "--profile", "deployed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        assert exchange(UnixEndpoint("./cp.sock"), b"alloc,slot=a=b,credits=5", 5) == b"OK"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a"]
    assert not (here / "spool").exists()


def test_the_daemon_in_production_passes_no_commands_over(here, server, ini, told):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
    with running(here, "--config", str(ini(nowhere))), Client("./cp.sock") as client:
        client.alloc("a")
    config = ("--config", str(ini(server.addresses["http"])))
    deployed = ("--profile", "deployed", "--spool", "spool")
    status, _, error = told(*config, *deployed)
    assert status == 2
    assert error.startswith(
        "cpsim: spool spool holds 1 commands, and with the quirk ack-before-delivery nothing delivers them"
    )
    assert error.endswith(": run the daemon without that quirk until they are delivered, or name another file\n")
    with running(here, *config), Client("./cp.sock") as client:
        client.alloc("b")
    with running(here, *config, *deployed, stderr=subprocess.PIPE) as (process, _):
        warning = process.stderr.readline()
    assert warning == "cpsim: warning: spool spool is not used: the quirk ack-before-delivery works without\n"
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a", "b"]


@pytest.mark.parametrize(
    ("fault", "applied"), [("crash-before-ok", []), ("crash-after-ok", ["a"]), ("daemon.crash-after-commit", ["a"])]
)
def test_a_daemon_that_crashes_loses_nothing_it_acknowledged(here, server, ini, fault, applied):
    path = str(ini(server.addresses["http"]))
    with subprocess.Popen(
        [*CPSIM, "daemon", "--config", path, "--spool", "spool", "--fault", f"{fault}:kind=alloc"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        with Client("./cp.sock") as client, suppress(CreditPiggyError):
            client.alloc("a", credits=5)
        assert process.wait(30) == -signal.SIGKILL
    with running(here, "--config", path):
        pass
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == applied
    assert server.accounts.refused == 0


@pytest.mark.parametrize("fault", ["server.status=500", "late=1.5:kind=bulk"])
def test_a_daemon_has_no_faults_of_a_server(here, ini, fault, told):
    path = str(ini("http://127.0.0.1:1/api"))
    status, _, error = told("--config", path, "--spool", "spool", "--fault", fault)
    assert status == 2
    assert f"fault '{fault}' is a fault of a server" in error
    assert not (here / "spool").exists()


def test_the_server_applies_a_batch_once(server):
    alloc, claim = ("alloc", {"slot": "a"}), ("claim", {"slot": "b", "machine": "m"})
    with closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender:
        assert sender.knows_batches()
        first = [str(error) for error in sender.post("id", [alloc, claim])]
        assert first == ["None", "slot 'b' was never allocated"]
        assert [str(error) for error in sender.post("id", [alloc, claim])] == first
        assert [error is None for error in sender.post("id", [alloc])] == [False]
        assert [error is None for error in sender.post("other", [("counters", {"slot": "a", "x": 1})])] == [True]
    with server.accounts.reading() as ledger:
        assert ledger.project("p").slots["a"].counters == {"x": 1}


def test_a_batch_that_an_earlier_version_had_sent_is_applied_once(server):
    """It wrote its bodies in UTF-8, and the server compares them byte for byte."""
    earlier = "0123456789abcdef0123456789abcdef"
    body = '{"alloc":[{"slot":"ü"}],"counters":[{"slot":"ü","n":1}]}'.encode()
    headers = {"Authorization": token(("p", SECRET), body), "CreditPiggy-Batch": earlier}
    request = urllib.request.Request(f"{server.addresses['http']}/batch/bulk", body, headers)
    with urllib.request.urlopen(request) as reply:
        assert reply.status == 200
    calls = [("alloc", {"slot": "ü"}), ("counters", {"slot": "ü", "n": 1})]
    with closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender:
        assert sender.post(earlier, calls) == [None, None]
    with server.accounts.reading() as ledger:
        assert ledger.project("p").slots["ü"].counters == {"n": 1}


def test_a_batch_that_was_given_up_is_never_applied(server):
    call = ("alloc", {"slot": "a"})
    with closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender:
        assert sender.give_up("late", [call]) is None
        with pytest.raises(Refused, match="'late' was given up by its sender") as refusal:
            sender.post("late", [call])
        assert refusal.value.status == 409
        calls = [("claim", {"slot": "never", "machine": "m"}), call, call]
        refused = ["slot 'never' was never allocated", "None", "slot 'a' was already allocated"]
        assert [str(error) for error in sender.post("in time", calls)] == refused
        assert [str(error) for error in sender.give_up("in time", calls)] == refused
        assert sender.give_up("late", [call]) is None
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a"]


@pytest.mark.parametrize("errors", ["many", [1, 2], {"slot": "a"}])
def test_errors_that_cannot_be_read_say_nothing_of_any_command(server, monkeypatch, errors):
    calls = [("alloc", {"slot": "a"}), ("alloc", {"slot": "b"})]
    with closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender:
        monkeypatch.setattr(sender, "_bulk", lambda *_: {"result": "ok", "errors": errors})
        with pytest.raises(BadReply, match="list of errors cannot be read"):
            sender.post("id", calls)


def test_a_spool_that_was_put_back_from_a_copy_doubles_nothing_and_loses_nothing(here, server, wait_for):
    """Its numbers have come before: what is under them is kept for a person, and the rest goes on."""

    def deliver(*slots):
        with (
            closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender,
            Daemon(sender, "p", unix=here / "cp.sock", spool=Spool(here / "spool")) as daemon,
        ):
            for slot in slots:
                Client("./cp.sock").send(Alloc(slot))
                wait_for(lambda: daemon.pending == 0)

    deliver("a")
    shutil.copy(here / "spool", here / "copy")
    deliver("b", "c")
    shutil.copy(here / "copy", here / "spool")
    deliver("b", "d", "e")
    with server.accounts.reading() as ledger:
        assert list(ledger.project("p").slots) == ["a", "b", "c", "e"]
    late, other = read_failed(here / "spool")
    assert [(row.why, row.command) for row in (late, other)] == [
        ("dead letter", "alloc,slot=b"),
        ("dead letter", "alloc,slot=d"),
    ]
    assert "comes too late" in late.error
    assert "has come before, with other commands" in other.error


def test_what_was_given_up_stays_so(here):
    for _ in range(2):
        with (
            Fake({"p": SECRET}, http=ANY_PORT, store=here / "store") as fake,
            closing(BulkClient(parse_endpoint(fake.addresses["http"]), ("p", SECRET), 5)) as sender,
        ):
            assert sender.give_up("late", []) is None
            with pytest.raises(Refused, match="was given up"):
                sender.post("late", [("alloc", {"slot": "a"})])


def test_a_command_that_the_server_answers_by_closing_is_dead_lettered_and_the_rest_goes_on(here, server, wait_for):
    server.faults.add("server.close:slot=bad")
    with (
        closing(BulkClient(parse_endpoint(server.addresses["http"]), ("p", SECRET), 5)) as sender,
        Daemon(sender, "p", unix=here / "cp.sock", spool=Spool(here / "spool"), max_backoff_s=0.001) as daemon,
    ):
        for slot in ("a", "bad", "c"):
            Client("./cp.sock").send(Alloc(slot))
        wait_for(lambda: daemon.pending == 0)
    (row,) = read_failed(here / "spool")
    assert (row.why, row.command) == ("refused", "alloc,slot=bad")
    with server.accounts.reading() as ledger:
        assert sorted(ledger.project("p").slots) == ["a", "c"]


def test_a_spool_is_of_one_project(here, server, ini, wait_for, told):
    with running(here, "--server", "http://127.0.0.1:9/api", "--config", str(ini("http://127.0.0.1:9/api"))) as (
        _,
        address,
    ):
        Client(address.split()[1]).send(Alloc("a"))
    other = ini(server.addresses["http"])
    other.write_text(other.read_text().replace("api_key=p\n", "api_key=q\n"))
    status, _, said = told("--spool", "spool", "--config", str(other))
    assert status == 2
    assert "spool holds 1 commands of project 'p', not of 'q'; name another file" in said
    with running(here, "--config", str(ini(server.addresses["http"]))):
        wait_for(lambda: read_status(here / "spool").delivered)


def test_a_server_that_breaks_off_batches_does_not_know_them(here):
    with (
        Fake({"p": SECRET}, http=ANY_PORT, quirks=frozenset({"bulk-abort"})) as fake,
        closing(BulkClient(parse_endpoint(fake.addresses["http"]), ("p", SECRET), 5)) as sender,
    ):
        assert not sender.knows_batches()
