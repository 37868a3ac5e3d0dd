"""Make a sample of every format on disk, with the cpsim at hand: `python tests/samples/make.py FOLDER`.

FOLDER must not be there yet, so that no sample that is kept is ever written over. Files are made in a folder of their
own, and named by relative paths alone, so that nothing in them names the machine.
"""

import http.client
import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from cpdaemon import Client, Refused
from cpdaemon.signing import bulk_body, token

CPSIM = (sys.executable, "-P", "-m", "cpsim")
SECRETS = {"physics": "physics-secret", "chemistry": "chemistry-secret"}
FOR_EVER_MIN = 500_000_000
"""So that a slot does not expire before somebody opens its sample."""
WAIT_S = 60.0
STORE = """
http = "127.0.0.1:0"
store = "ledger.db"
project = [{ id = "physics", secret = "physics-secret" }, { id = "chemistry", secret = "chemistry-secret" }]
clock = { start = 2024-01-01T00:00:00Z, rate = 0 }
links = { worker-1 = "alice" }
"""
KILLED = """
http = "127.0.0.1:0"
store = "ledger.db"
project = [{ id = "physics", secret = "physics-secret" }]
daemon = [{ project = "physics", unix = "own.socket", flush_interval = 3600 }]
"""


class Server:
    """A `cpsim serve` that is running."""

    def __init__(self, url):
        self.url = url
        self._address = urlsplit(url).netloc

    def control(self, name):
        """What the control API says."""
        return self._ask("GET", f"/__cpsim/{name}", b"", {})

    def change(self, name, body=None):
        """Have the control API change something."""
        self._ask("POST", f"/__cpsim/{name}", b"" if body is None else json.dumps(body).encode(), {})

    def send(self, project, path, body, batch=None):
        """A signed request."""
        headers = {"Authorization": token((project, SECRETS[project]), body)}
        headers |= {} if batch is None else {"CreditPiggy-Batch": batch}
        return json.loads(self._ask("POST", f"/api/{path}", body, headers))

    def bulk(self, project, *calls, batch=None):
        """Commands, applied together."""
        return self.send(project, "batch/bulk", bulk_body(calls), batch)

    def _ask(self, method, path, body, headers):
        with closing(http.client.HTTPConnection(self._address, timeout=WAIT_S)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
            return answer


class Forgetful(BaseHTTPRequestHandler):
    """A server that knows no batch ids, and answers nothing but an empty bulk."""

    def do_POST(self):
        if self.rfile.read(int(self.headers["Content-Length"])) == b"{}":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"result":"ok"}')

    def log_message(self, *_):
        """Say nothing."""


def cpsim(folder, *arguments):
    """Run a command to its end; returns what it printed."""
    run = subprocess.run([*CPSIM, *map(str, arguments)], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout


@contextmanager
def running(folder, *arguments, addresses=1):
    """A command that serves; yields its process and where it does. It is ended with SIGTERM, unless it was killed."""
    command = [*CPSIM, *map(str, arguments)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, dict(process.stdout.readline().split() for _ in range(addresses))
        finally:
            if process.poll() is None:
                process.terminate()


@contextmanager
def daemon(folder, url, *options):
    """A daemon with a spool; yields its process and a client of it."""
    command = ["daemon", "--spool", "daemon.spool", "--tcp", "127.0.0.1:0", "--server", url, "--project", "physics"]
    with (
        running(folder, *command, "--secret-file", "secret", "--flush-interval", 0, *options) as (process, addresses),
        Client(addresses["tcp"]) as client,
    ):
        yield process, client


def wait_until(condition):
    """Return once it holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "what a sample needs has not come to pass"
        time.sleep(0.02)


def status(folder):
    """What the daemon's spool holds."""
    return json.loads(cpsim(folder, "daemon", "--spool", "daemon.spool", "--status", "--json"))


def keep(sample, folder, *names):
    """Have files among the samples, without those beside them that only a process that runs needs."""
    sample.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(folder / name, sample / name)


def compact(path):
    """Give back the room that what was cut from a log has left."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM")


def make_runs(folder, sample):
    """Run folders, whose journals are traces; and the scenario as a workload."""
    keep(folder, Path(__file__).parent, "scenario.toml")
    faults = ["--fault", "server.lose-reply:probability=0.05", "--fault", "daemon.lose-reply:kind=claim,nth=5"]
    cpsim(folder, "run", "scenario.toml", "--virtual", "--slot-prefix", "job", *faults, "--output", "run")
    sites = ["--set", 'site=[{ project = "atlas" }, { project = "cms" }]', "--set", "arrivals.jobs=8"]
    cpsim(folder, "run", "scenario.toml", *sites, "--speed", 50_000, "--slot-prefix", "job", "--output", "run-of-two")
    cpsim(folder, "scenarios", "write", "scenario.toml", "--set", "arrivals.jobs=15", "-o", "workload.parquet")
    for name in ("run", "run-of-two"):
        shutil.copytree(folder / name, sample / name)
    keep(sample, folder, "scenario.toml", "workload.parquet")


def make_store(folder, sample):
    """A store with a snapshot and a log after it, and the ledger's exports."""
    (folder / "serve.toml").write_text(STORE, encoding="utf-8")
    with running(folder, "serve", "--config", "serve.toml") as (_, addresses):
        server = Server(addresses["http"])
        (sample / "store").mkdir()
        (sample / "store" / "first.json").write_bytes(before_the_snapshot(server))
        with closing(sqlite3.connect(folder / "ledger.db")) as database:
            while not database.execute("SELECT count(*) FROM snapshot").fetchone()[0]:
                server.change("links", [["worker-1", "x" * 2**20]])  # refused, and makes the log long
        after_the_snapshot(server)
        (sample / "export").mkdir()
        for name in ("slots.parquet", "accounts.parquet", "ledger.jsonl"):
            (sample / "export" / name).write_bytes(server.control(name))
    compact(folder / "ledger.db")
    keep(sample / "store", folder, "ledger.db", "serve.toml")


def before_the_snapshot(server):
    """Slots of every state, what waits for an owner, a batch that was given up, and one whose body is returned."""
    terms = {"low": {"min": 5, "max": 20}, "high": {"min": 5, "max": 20}, "late": {}, "bad": {"credits": 100}}
    calls = (
        ("alloc", {"slot": "fixed", "credits": 7, "expire": FOR_EVER_MIN}),
        *(("alloc", {"slot": slot, "expire": FOR_EVER_MIN, **given}) for slot, given in terms.items()),
        ("alloc", {"slot": "expired", "expire": 60}),
        ("counters", {"slot": "fixed", "job/events": 1000, "smashed/partons": -3}),
        ("counters", {"slot": "low", "job/events": 10}),
        ("meta", {"slot": "fixed", "site": "Zürich"}),
        ("claim", {"slot": "fixed", "machine": "worker-1", "credits": 99}),
        ("claim", {"slot": "low", "machine": "worker-2", "credits": 1}),
        ("claim", {"slot": "high", "machine": "worker-3", "credits": 99}),
        ("claim", {"slot": "unknown", "machine": "worker-1"}),
    )
    body = bulk_body(calls)
    server.send("physics", "batch/bulk", body, "first")
    server.bulk("physics", batch="given-up")
    server.bulk("chemistry", ("alloc", {"slot": "forgotten", "credits": 1}))
    server.change("reset?project=chemistry")
    server.bulk("chemistry", ("alloc", {"slot": "fixed", "credits": 50, "expire": FOR_EVER_MIN}))
    server.change("clock/advance?seconds=7200")
    server.bulk("physics", ("discard", {"slot": "bad", "reason": "unknown-vmid"}))
    server.send("physics", "lib/claim", b'{"vmid":"worker-2","webid":"bob"}')
    server.change("quirks", ["float-credits"])
    server.bulk("chemistry", ("alloc", {"slot": "quirky-1", "credits": "7.9", "expire": FOR_EVER_MIN}))
    return body


def after_the_snapshot(server):
    """The same slots go on, under the quirk and then without it."""
    server.bulk("chemistry", ("alloc", {"slot": "quirky-2", "credits": "8.9", "expire": FOR_EVER_MIN}))
    server.change("quirks", [])
    server.bulk("chemistry", ("alloc", {"slot": "quirky-3", "credits": "9.9"}))
    server.bulk(
        "chemistry",
        ("claim", {"slot": "fixed", "machine": "worker-1"}),
        ("claim", {"slot": "quirky-1", "machine": "worker-3"}),
    )
    server.bulk(
        "physics",
        ("alloc", {"slot": "open", "min": 2, "max": 6, "expire": FOR_EVER_MIN}),
        ("alloc", {"slot": "due", "max": 4}),
        ("counters", {"slot": "open", "job/events": 5}),
        ("counters", {"slot": "late", "job/events": 100}),
        ("claim", {"slot": "late", "machine": "worker-1"}),
        ("claim", {"slot": "low", "machine": "worker-2"}),
        batch="second",
    )
    server.change("links", [["worker-4", "bob"]])
    server.change("releases", ["worker-1"])
    server.send("physics", "lib/release", b'{"vmid":"worker-4"}')
    server.change("clock/advance?seconds=3600")
    server.bulk(
        "physics",
        ("alloc", {"slot": "last", "credits": 3, "expire": FOR_EVER_MIN}),
        ("claim", {"slot": "last", "machine": "worker-1"}),
    )


def make_spool(folder, sample):
    """A spool of a daemon that was stopped: commands that wait, were refused, or are dead letters, and its counts."""
    with (
        running(folder, "serve", "--http", "127.0.0.1:0", "--project", "physics", "--secret-file", "secret") as (
            _,
            addresses,
        ),
        daemon(folder, addresses["http"]) as (_, client),
    ):
        client.alloc("job-1", credits=5)
        client.counters("job-1", **{"job/events": 1000})
        client.claim("job-1", "worker-1")
        client.claim("job-1", "worker-2")
        client.claim("unknown", "worker-1")
        wait_until(lambda: status(folder)["queued"] == 0)
    with HTTPServer(("127.0.0.1", 0), Forgetful) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with daemon(folder, f"http://127.0.0.1:{server.server_port}/api") as (_, client):
                client.counters("job-2", **{"job/events": 7})
                wait_until(lambda: status(folder)["set_aside"] == 1)
                client.meta("job-2", site="Zürich")
                wait_until(lambda: status(folder)["set_aside"] == 2)
        finally:
            server.shutdown()
            thread.join()
    with daemon(folder, "http://127.0.0.1:9/api") as (_, client):  # the discard port: nobody is there
        client.alloc("job-3", min=2, max=9, expire=FOR_EVER_MIN)
        client.counters("job-3", **{"job/events": 11})
        client.meta("job-3", site="Zürich")
        client.claim("job-3", "worker-3", credits=30)
        client.alloc("job-4", credits=4, expire=FOR_EVER_MIN)
        client.discard("job-4", "unknown-vmid")
        client.alloc("job-5", credits=1, expire=FOR_EVER_MIN)
        wait_until(lambda: status(folder)["trouble"])
    cpsim(folder, "daemon", "--spool", "daemon.spool", "--backup", "copied.spool")
    cpsim(folder, "daemon", "--spool", "copied.spool", "--export", "moved.jsonl")
    keep(sample / "spool", folder, "daemon.spool")
    keep(sample / "moved", folder, "moved.jsonl")


def make_killed(folder, sample):
    """A store and spools of a server and a daemon that were killed while a reply was on its way."""
    (folder / "serve.toml").write_text(KILLED, encoding="utf-8")
    with running(folder, "serve", "--config", "serve.toml", addresses=2) as (serving, addresses):
        server = Server(addresses["http"])
        with Client(addresses["unix"]) as client:
            client.alloc("own-1", credits=2)
            client.claim("own-1", "worker-1")
        with daemon(folder, server.url) as (forwarding, client):
            client.alloc("job-1", max=9, expire=FOR_EVER_MIN)
            wait_until(lambda: status(folder)["delivered"] == 1)
            server.change("faults", ["server.lose-reply:kind=bulk"])
            client.counters("job-1", **{"job/events": 100})
            wait_until(lambda: b'"job/events":100' in server.control("slots?project=physics"))
            client.counters("job-1", **{"job/events": 11})
            client.claim("job-1", "worker-2", credits=3)
            forwarding.kill()
        serving.kill()
    with tarfile.open(sample / "killed.tar.gz", "w:gz") as archive:
        for name in ("ledger.db", "ledger.db.physics.spool", "daemon.spool"):
            for ending in ("", "-wal"):
                archive.add(folder / f"{name}{ending}", f"{name}{ending}", filter=of_nobody)


def of_nobody(member):
    """A member of an archive that does not say whose it was."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def make_recordings(folder, sample):
    """Recordings of what passed to a daemon, and under pseudonyms to a server."""
    with running(folder, "serve", "--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", addresses=2) as (_, addresses):
        command = ["record", "--listen", ":0", "--target", addresses["tcp"], "-o", "recording.parquet"]
        with running(folder, *command) as (_, proxy), Client(proxy["tcp"]) as client:
            send_some(client, "job")
        command = ["record", "--listen", ":0", "--target", addresses["http"], "-o", "recording.csv", "--pseudonymise"]
        with running(folder, *command) as (_, proxy), Client(proxy["http"], credentials=("demo", "demo")) as client:
            send_some(client, "task")
    keep(sample, folder, "recording.parquet", "recording.csv")


def send_some(client, slot):
    """Slots that are claimed, discarded and left, and a command that a server refuses."""
    for number in range(1, 4):
        client.alloc(f"{slot}-{number}", min=2, max=9)
    client.counters(f"{slot}-1", **{"job/events": 1000, "smashed/partons": -3})
    client.meta(f"{slot}-1", site="Zürich")
    client.claim(f"{slot}-1", "worker-1", credits=30)
    client.discard(f"{slot}-2", "unknown-vmid")
    with suppress(Refused):  # a daemon does not know better
        client.claim("unknown", "worker-1")


def main():
    """Make all of them."""
    sample = Path(sys.argv[1])
    if sample.exists():
        sys.exit(f"{sample} is there already: name a folder that does not exist yet")
    sample.mkdir(parents=True)
    makers = (make_runs, make_store, make_spool, make_killed, make_recordings)
    for make in makers:
        with tempfile.TemporaryDirectory(prefix="cpsim-samples-") as folder:
            (Path(folder) / "secret").write_text(SECRETS["physics"], encoding="utf-8")
            make(Path(folder), sample)


if __name__ == "__main__":
    main()
