"""Live traffic recorded on real sockets: nobody notices, and a replay of the recording has the same effects."""

import hashlib
import http.client
import signal
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress

import pyarrow.parquet
import pytest

from cpdaemon.signing import token
from cpsim.record.exchanges import Http, Session
from cpsim.record.recording import Recording
from cpsim.testing import ManualClock

from .conftest import PROJECT, SECRET, rows

SMALL = """
description = "small"
duration = "1h"
population = { machines = 8, users = 4 }
arrivals = { model = "constant", jobs = 60 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 0.7, never = 0.1, discard = { failed = 0.2 } }
credits = { policy = "range", min = 2, max = 9, claim = { model = "uniform", low = 0, high = 12 } }
counters.claim = { "job/events" = { model = "poisson", mean = 100 } }
metadata = { experiment = ["atlas", "cms"] }
misbehaviour = { claim_twice = 0.1, claim_by_two = 0.1, unknown_slot = 0.05, malformed = 0.2, oversized = 0.1 }
"""
RESET = struct.pack("ii", 1, 0)


def effects(folder, columns):
    """What a run left in the ledger, whatever the slots are called."""
    table = pyarrow.parquet.read_table(folder / "ledger.parquet").to_pylist()
    return Counter(str([slot[column] for column in columns]) for slot in table)


def connected(address):
    """A client's socket at a UNIX path or HOST:PORT."""
    if "/" in address:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(280)
        try:
            client.connect(address)
        except OSError:
            client.close()
            raise
        return client
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=280)


def said(address, frame):
    """The answer to one frame."""
    with connected(address) as client:
        client.sendall(frame)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1000), b""))


@contextmanager
def peer(conversation):
    """A target that holds one conversation with each client; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(280)

        def serve():
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    client.settimeout(280)
                    with client:
                        conversation(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join()


def silent(client):
    """Say nothing until the client goes."""
    while client.recv(1000):
        pass


# A recording is a scenario


@pytest.mark.parametrize(
    ("kind", "options"), [("unix", []), ("tcp", []), ("http", []), ("http", ["--pseudonymise"])], ids=str
)
def test_a_recording_is_replayed_with_the_same_effects(kind, options, fake, cpsim, recording, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    access = ["--project", PROJECT, "--secret-file", "secret"]
    if kind != "http":
        access += ["--server", fake.addresses["http"]]
    with recording(fake.addresses[kind], *options) as recorder:
        assert recorder.kind == kind
        recorded = cpsim("run", "small.toml", "--target", recorder.address, "--output", "recorded", *access)
        recorder.stop()
    assert recorded.returncode == 0, recorded.stdout + recorded.stderr
    assert recorder.status == 0, recorder.said
    operations = pyarrow.parquet.read_table(tmp_path / "recorded" / "journal.parquet").num_rows
    assert sum(recorder.summary["commands"].values()) + recorder.summary["frames"] == operations
    replayed = cpsim("run", "traffic.parquet", "--output", "replayed")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    columns = (
        ("state", "granted", "reason", "counters")
        if options
        else ("state", "machine", "granted", "reason", "counters", "meta")
    )
    assert effects(tmp_path / "recorded", columns) == effects(tmp_path / "replayed", columns)


def test_times_are_those_of_the_traffic(fake, recording):
    with recording(fake.addresses["unix"], output="traffic.csv") as recorder:
        for number in range(3):
            assert said(recorder.address, b"alloc,slot=job-%d,credits=5\n" % number) == b"OK"
        recorder.stop()
    table = rows(recorder.file)
    assert [row["slot"] for row in table] == ["job-0", "job-1", "job-2"]
    assert [(row["kind"], row["arguments"], row["outcome"]) for row in table] == [
        ("alloc", "credits=5", "accepted")
    ] * 3
    times = [time for row in table for time in (row["sent_us"], row["answered_us"])]
    assert times == sorted(times)
    assert times[0] > 0


def test_commands_that_no_workload_can_have_are_replayed_as_they_were(fake, cpsim, recording, tmp_path):
    with recording(fake.addresses["unix"]) as recorder:
        assert said(recorder.address, b"alloc,slot=j,credits=7.9") == b"OK"
        assert said(recorder.address, b"alloc,slot=ok,speed=1") == b"OK"
        assert said(recorder.address, b"fly,slot=j") == b"ER"
        recorder.stop()
    assert (recorder.summary["commands"], recorder.summary["frames"]) == ({"accepted": 1}, 2)
    assert recorder.summary["left_out"] == {"arguments that the protocol does not have": 1}
    replayed = cpsim("run", "traffic.parquet", "--output", "replayed")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    outcomes = pyarrow.parquet.read_table(tmp_path / "replayed" / "journal.parquet").to_pylist()
    assert [(row["kind"], row["outcome"]) for row in outcomes] == [
        ("frame", "accepted"),
        ("alloc", "accepted"),
        ("frame", "refused"),
    ]


# HTTP


def request(address, path, body, *, secret=SECRET, method="POST", headers=()):
    """Send one signed request; returns the status and what was signed with."""
    host, _, port = address.removeprefix("http://").removesuffix("/api").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=280)
    signature = token((PROJECT, secret), body)
    try:
        if method == "GET":
            connection.request("GET", f"/api/{path}?{body.decode()}&auth={signature}")
        else:
            connection.request("POST", f"/api/{path}", body, {"Authorization": signature, **dict(headers)})
        response = connection.getresponse()
        response.read()
        return response.status, signature
    finally:
        connection.close()


def test_everything_that_carries_commands_is_read(fake, recording):
    with recording(fake.addresses["http"]) as recorder:
        where = recorder.address
        assert request(where, "batch/alloc", b'{"slot":"a","max":9}')[0] == 200
        assert request(where, "batch/alloc", b'{"slot":"a"}')[0] == 500
        assert request(where, "batch/alloc.text", b"slot=b,credits=3")[0] == 200
        assert request(where, "batch/claim", b"slot=a&machine=m-1&credits=4", method="GET")[0] == 200
        bulk = b'{"claim":[{"slot":"c","machine":"m-2"},{"slot":"?","machine":"m-2"}],"alloc":[{"slot":"c"}]}'
        assert request(where, "batch/bulk", bulk)[0] == 200
        assert request(where, "batch/alloc", b"no JSON")[0] == 400
        assert request(where, "batch/slots", b"")[0] == 200
        assert request(where, "batch/alloc", b'{"slot":"z"}', secret="wrong")[0] == 401
        assert request(where, "batch/alloc", b'{"slot":"a,b"}')[0] in {200, 500}
        recorder.stop()
    assert [
        (row["kind"], row["slot"], row["arguments"], row["outcome"], row["error"]) for row in rows(recorder.file)
    ] == [
        ("alloc", "a", "max=9", "accepted", ""),
        ("alloc", "a", "", "refused", "HTTP 500"),
        ("alloc", "b", "credits=3", "accepted", ""),
        ("claim", "a", "machine=m-1,credits=4", "accepted", ""),
        ("alloc", "c", "", "accepted", ""),
        ("claim", "c", "machine=m-2", "accepted", ""),
        ("claim", "?", "machine=m-2", "refused", "in a bulk reply"),
        ("frame", "", "no JSON", "refused", "HTTP 400"),
    ]
    assert recorder.summary["left_out"] == {
        "requests that carry no command": 1,
        "requests that were turned away as not signed well": 1,
        "commands that no workload can have": 1,
    }


def test_what_cannot_be_read_is_counted_and_keeps_nothing_from_being_read(fake, recording):
    with recording(fake.addresses["http"]) as recorder:
        host, _, port = recorder.address.removeprefix("http://").removesuffix("/api").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=280)

        def post(path, body):
            connection.request("POST", path, body, {"Authorization": token((PROJECT, SECRET), body)})
            response = connection.getresponse()
            response.read()
            return response.status

        assert post("/api/batch/bulk", b'{"alloc":5}') == 200
        assert post("//[x/batch/alloc", b'{"slot":"a"}') == 404
        assert post("/api/batch/alloc?" + 50_000 * "x", b'{"slot":"a"}') == 200
        assert post("/api/batch/alloc", b'{"slot":"a,credits=5"}') in {200, 500}
        assert post("/api/batch/alloc", b'{"slot":"b"}') == 200
        connection.close()
        recorder.stop()
    assert [(row["slot"], row["arguments"], row["outcome"]) for row in rows(recorder.file)] == [("b", "", "accepted")]
    assert recorder.summary["left_out"] == {
        "requests whose commands cannot be read": 1,
        "requests that carry no command": 1,
        "requests too large to be kept": 1,
        "commands that no workload can have": 1,
    }


def test_of_a_body_that_is_no_command_no_more_is_kept_than_of_a_frame(fake, recording):
    with recording(fake.addresses["http"]) as recorder:
        assert request(recorder.address, "batch/alloc", 100_000 * b"x")[0] == 400
        recorder.stop()
    assert [(row["kind"], len(row["arguments"])) for row in rows(recorder.file)] == [("frame", 65_536)]


def test_secrets_and_signatures_are_not_written(fake, recording):
    with recording(fake.addresses["http"], output="traffic.csv") as recorder:
        signatures = [
            request(recorder.address, "batch/alloc", b'{"slot":"a"}')[1],
            request(recorder.address, "batch/claim", b"slot=a&machine=m", method="GET")[1],
        ]
        recorder.stop()
    written = recorder.file.read_text(encoding="utf-8") + recorder.said + str(recorder.summary)
    for signature in signatures:
        assert signature.rpartition(",")[2] not in written
    assert SECRET not in written
    assert "alloc" in written


def test_a_signature_in_a_frame_that_is_no_command_is_blotted_out(fake, recording):
    digest = hashlib.sha256(b"x").hexdigest().encode()
    frames = [
        b"GET /api/batch/alloc?slot=a&auth=sha-256,demo," + digest,
        b"POST /api/batch/alloc HTTP/1.1\r\nAuthorization: sha-256,demo," + digest + b"\r\n\r\n{}",
        b"alloc,secret=hush-hush",
    ]
    with recording(fake.addresses["unix"], output="traffic.csv") as recorder:
        for frame in frames:
            said(recorder.address, frame)
        recorder.stop()
    written = recorder.file.read_bytes()
    assert digest not in written
    assert b"hush" not in written
    assert [len(row["arguments"]) for row in rows(recorder.file)] == [len(frame) for frame in frames]


def test_pseudonyms_are_the_same_for_the_same_and_tell_nothing(fake, recording):
    names = [b"job-of-alice", b"alice-laptop", b"alice at home"]
    with recording(fake.addresses["unix"], "--pseudonymise", output="traffic.csv") as recorder:
        said(recorder.address, b"alloc,slot=job-of-alice,max=5")
        said(recorder.address, b"meta,slot=job-of-alice,who=alice at home")
        said(recorder.address, b"claim,slot=job-of-alice,machine=alice-laptop,credits=3")
        said(recorder.address, b"claim,slot=job-2,machine=alice-laptop")
        said(recorder.address, b"claim,slot=job-of-alice,alice-laptop")
        said(recorder.address, b"alloc,slot=job-of-alice,credits=7.9")
        recorder.stop()
    written = recorder.file.read_bytes()
    assert not [name for name in [*names, b"alice"] if name in written]
    alloc, meta, claim, second, malformed, unusual = rows(recorder.file)
    assert alloc["slot"] == meta["slot"] == claim["slot"] != second["slot"]
    machine = claim["arguments"].split(",")[0]
    assert second["arguments"] == machine
    assert claim["arguments"] == f"{machine},credits=3"
    assert meta["arguments"].startswith("who=")
    assert (malformed["kind"], len(malformed["arguments"])) == ("frame", len(b"claim,slot=job-of-alice,alice-laptop"))
    assert unusual["arguments"].startswith("alloc,slot={slot},credits=")


def test_every_recording_has_pseudonyms_of_its_own(fake, recording):
    slots = set()
    for number in range(2):
        with recording(fake.addresses["unix"], "--pseudonymise", output=f"{number}.csv") as recorder:
            said(recorder.address, b"alloc,slot=job")
            recorder.stop()
        slots |= {row["slot"] for row in rows(recorder.file)}
    assert len(slots) == 2


# Nobody notices


def test_bytes_pass_unchanged_both_ways_while_a_peer_is_slow(recording):
    sent = bytes(range(256)) * 40_000

    def slow(client):
        heard = b"".join(iter(lambda: client.recv(10_000), b""))
        client.sendall(heard[::-1])

    with peer(slow) as address, recording(address) as recorder, connected(recorder.address) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(10_000), b"")) == sent[::-1]
        client.close()
        recorder.stop()
    (row,) = rows(recorder.file)
    assert (row["kind"], row["outcome"], len(row["arguments"])) == ("frame", "unknown", 65_536)


def test_a_frame_in_segments_is_one(fake, recording):
    with recording(fake.addresses["tcp"]) as recorder, connected(recorder.address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (b"alloc,sl", b"ot=job", b"-1,credits=5\n"):
            client.sendall(part)
        assert client.recv(10) == b"OK"
        client.close()
        recorder.stop()
    assert [(row["slot"], row["arguments"]) for row in rows(recorder.file)] == [("job-1", "credits=5")]


def test_a_reset_is_passed_on(recording):
    def reset(client):
        client.recv(1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with peer(reset) as address, recording(address) as recorder:
        with connected(recorder.address) as client:
            client.sendall(b"alloc,slot=a")
            with pytest.raises(ConnectionResetError):
                client.recv(10)
        recorder.stop()
    assert [(row["outcome"], row["error"]) for row in rows(recorder.file)] == [("unknown", "no answer")]


def test_a_client_that_resets_is_passed_on_too(recording):
    seen = []
    gone = threading.Event()

    def listening(client):
        try:
            while client.recv(1000):
                pass
        except ConnectionResetError as error:
            seen.append(error)
        gone.set()

    with peer(listening) as address, recording(address) as recorder:
        client = connected(recorder.address)
        client.sendall(b"alloc,slot=a")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert gone.wait(100)
        recorder.stop()
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_while_the_target_is_away_connections_are_refused(kind, recording, tmp_path):
    path = str(tmp_path / "daemon.socket")
    with socket.create_server(("127.0.0.1", 0)) as away:
        port = away.getsockname()[1]
    with recording(path if kind == "unix" else f"127.0.0.1:{port}") as recorder:
        with pytest.raises(ConnectionRefusedError):
            connected(recorder.address).close()
        back = socket.socket(socket.AF_UNIX) if kind == "unix" else socket.create_server(("127.0.0.1", port))
        with back:
            if kind == "unix":
                back.bind(path)
                back.listen()
            back.settimeout(280)
            back.accept()[0].close()  # it has been asked whether it is back
            with until_connected(recorder.address) as client, back.accept()[0] as served:
                client.sendall(b"alloc,slot=a")
                assert served.recv(100) == b"alloc,slot=a"
                served.sendall(b"OK")
                served.shutdown(socket.SHUT_WR)
                assert client.recv(10) == b"OK"
            recorder.stop()
    assert "refuses connections" in recorder.said
    assert [row["outcome"] for row in rows(recorder.file)] == ["accepted"]


def test_an_address_that_is_taken_meanwhile_is_told_and_nothing_is_lost(recording):
    def agree(client):
        client.recv(1000)
        client.sendall(b"OK")

    with ExitStack() as target, ExitStack() as others:
        address = target.enter_context(peer(agree))
        recorder = others.enter_context(recording(address))
        assert said(recorder.address, b"alloc,slot=a,credits=5") == b"OK"
        target.close()
        with pytest.raises(ConnectionError):
            said(recorder.address, b"alloc,slot=b")
        others.enter_context(until_listening(recorder.address))
        others.enter_context(until_listening(address))
        recorder.ended()
    assert recorder.status == 2
    assert f"cannot listen at {recorder.address}" in recorder.said
    assert "Traceback" not in recorder.said
    assert ("a", "accepted") in {(row["slot"], row["outcome"]) for row in rows(recorder.file)}


def until_listening(address):
    """A server's socket at HOST:PORT, as soon as nobody else has one."""
    host, _, port = address.rpartition(":")
    while True:
        with suppress(OSError):
            return socket.create_server((host, int(port)))


def until_connected(address):
    """A client's socket, as soon as there can be one."""
    while True:
        with suppress(ConnectionRefusedError, FileNotFoundError):  # a path is made anew when it is listened at again
            return connected(address)


# Its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_at_the_end_is_recorded(number, recording):
    with peer(silent) as address, recording(address) as recorder, connected(recorder.address) as client:
        client.sendall(b"claim,slot=a,machine=m")
        with connected(recorder.address) as other:  # the first has been taken when the second is
            other.sendall(b"alloc,slot=b")
            recorder.stop(number)
    assert (recorder.status, recorder.said) == (0, "")
    assert {row["outcome"] for row in rows(recorder.file)} == {"unknown"}
    assert not recorder.file.with_name("traffic.parquet.partial").exists()


def test_a_hangup_drops_no_connection(fake, recording):
    with recording(fake.addresses["unix"]) as recorder, connected(recorder.address) as client:
        recorder.process.send_signal(signal.SIGHUP)
        client.sendall(b"alloc,slot=a,credits=5\n")
        assert client.recv(100) == b"OK"
        recorder.stop()
    assert (recorder.status, recorder.said) == (0, "")
    assert [(row["slot"], row["outcome"]) for row in rows(recorder.file)] == [("a", "accepted")]


def test_a_target_that_takes_no_connection_is_not_waited_for_at_the_end(recording):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(8):
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        with recording(f"127.0.0.1:{full.getsockname()[1]}") as recorder, connected(recorder.address) as client:
            client.sendall(b"alloc,slot=a")
            recorder.stop()
    assert (recorder.status, recorder.said) == (0, "")


def test_a_recording_of_nothing_is_whole(fake, cpsim, recording):
    with recording(fake.addresses["unix"]) as recorder:
        recorder.stop()
    assert rows(recorder.file) == []
    assert "no command in this trace" in cpsim("run", "traffic.parquet").stderr


def test_many_rows(fake, recording):
    bulk = b'{"alloc":[%s]}' % b",".join(b'{"slot":"%d"}' % number for number in range(40_000))
    with recording(fake.addresses["http"]) as recorder:
        assert request(recorder.address, "batch/bulk", bulk)[0] == 200
        recorder.stop()
    assert [row["slot"] for row in rows(recorder.file)] == [str(number) for number in range(40_000)]


# Mistakes


def test_a_recording_that_cannot_be_written_is_told(fake, recording):
    bulk = b'{"alloc":[%s]}' % b",".join(b'{"slot":"%d"}' % number for number in range(40_000))
    with recording(fake.addresses["http"], size_limit=20_000) as recorder:
        with suppress(OSError, http.client.HTTPException):
            request(recorder.address, "batch/bulk", bulk)
        recorder.ended()
    assert recorder.status == 2
    assert "traffic.parquet cannot be written: File too large" in recorder.said
    assert "Traceback" not in recorder.said
    assert not recorder.file.exists()


def test_mistakes_are_told(fake, cpsim, recording, tmp_path):
    target = fake.addresses["tcp"]
    (tmp_path / "there.csv").touch()
    (tmp_path / "killed.csv.partial").write_text("1,2,3")
    for listen, output, status, told in (
        (target, "new.csv", 64, "give two addresses"),
        (fake.addresses["http"].removeprefix("http://").removesuffix("/api"), "new.csv", 2, "cannot listen at"),
        (":0", "there.csv", 2, "there.csv is there already: name another file with --output"),
        (":0", "killed.csv", 2, "killed.csv.partial is there already, from a recorder that runs or was"),
        (":0", "new.txt", 64, "new.txt: a recording is a trace: name it .parquet or .csv"),
        (":0", "there.csv/where.csv", 2, "File exists"),
        ("http://127.0.0.1:1/api", "new.csv", 64, "without a scheme"),
        ("nonsense", "new.csv", 64, "'nonsense' is not HOST:PORT"),
    ):
        result = cpsim("record", "--listen", listen, "--target", target, "-o", output)
        assert result.returncode == status, result
        assert told in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "new.csv").exists()
        assert not (tmp_path / "new.csv.partial").exists()
    assert (tmp_path / "killed.csv.partial").read_text() == "1,2,3"


def test_a_ready_file_that_cannot_be_written_leaves_no_recording(tmp_path, cpsim):
    where = ("--listen", "./r.socket", "--target", "./nobody.socket", "-o", "new/new.csv")
    result = cpsim("record", *where, "--ready-file", "missing/ready")
    assert (result.returncode, "--ready-file missing/ready cannot be written" in result.stderr) == (2, True)
    assert [*(tmp_path / "new").iterdir()] == []


def test_times_count_from_the_beginning_of_the_recording(tmp_path):
    clock = ManualClock()
    recording = Recording(tmp_path / "r.csv")
    session = Session(recording, clock)
    assert session.now_us() == 0
    clock.advance(1.5)
    clock.set_wall(0)
    assert session.now_us() == 1_500_000
    recording.abandon()


def test_of_an_answer_that_ceases_to_be_http_nothing_is_held(tmp_path):
    recording = Recording(tmp_path / "r.csv")
    session = Session(recording)
    exchange = Http(session)
    exchange.on_client_data(b"GET /api/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    exchange.on_target_data(head + b"400\r\n" + b"x" * 1024 + b"\r\nnonsense\r\n")
    assert session.held_bytes == 1024
    exchange.end()
    assert session.held_bytes == 0
    recording.abandon()
