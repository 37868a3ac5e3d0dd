"""What the guides promise that no snippet can show here: a unit, a proxy and an image, as far as they can be run.

systemd, nginx and a container engine are not, but for systemd's tools: their files are read, what they would run is run
with its folders moved elsewhere, and what they would do on the way is done by a few lines here.
"""

import configparser
import json
import re
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trustme

from cpdaemon import Client
from cpdaemon.commands import Alloc
from cpdaemon.endpoint import parse_endpoint
from cpsim.daemon.spool import Spool
from cpsim.fake import ANY_PORT, Fake

ROOT = Path(__file__).parent.parent


def snippet(page, name):
    """The file of that name on a page of the guides."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    return re.search(rf"^```\w+ {re.escape(name)}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]


def listens(path):
    """Whether a socket is there, and bound, and listening: one after the other."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@contextmanager
def running(command, **options):
    """A process, told to end at the end."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(100)


def tool(name):
    """A program of systemd."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: install systemd")
    return found


def parsed(unit):
    """A unit of the guide."""
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str
    found.read_string(snippet("systemd", unit))
    return found


@pytest.fixture
def activated(tmp_path):
    """The command of the guide's daemon, for which systemd's tool listens, with the system's folders below the test's.

    The tool execs it once somebody has connected, as systemd does.
    """
    command = shlex.split(parsed("cpsim-daemon.service")["Service"]["ExecStart"])
    moved = {"/opt/cpsim/bin/cpsim": [sys.executable, "-m", "cpsim"]}
    listen = moved_to(parsed("cpsim-daemon.socket")["Socket"]["ListenStream"], tmp_path)
    words = [part for word in command for part in moved.get(word, [moved_to(word, tmp_path)])]
    return [tool("systemd-socket-activate"), f"--listen={listen}", f"--setenv=NOTIFY_SOCKET={tmp_path}/notify", *words]


def moved_to(text, folder):
    return re.sub(r"/(?:etc|run|var/lib)/cpsim\b", str(folder), text)


@pytest.fixture
def notify(tmp_path):
    """The socket at which systemd would be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(100)
        yield sock


def test_the_units_start_a_daemon_that_loses_nothing(activated, notify, tmp_path, wait_for):
    service = parsed("cpsim-daemon.service")["Service"]
    config = moved_to(snippet("systemd", "daemon.ini"), tmp_path)
    with Fake({"demo": "demo"}, http=ANY_PORT) as fake:
        config = config.replace("http://127.0.0.1:8080/api", fake.addresses["http"])
        (tmp_path / "daemon.ini").write_text(
            config.replace("flush_interval = 1", "flush_interval = 60"), encoding="utf-8"
        )
        path = tmp_path / "creditapi.socket"
        with running(activated) as process:
            wait_for(lambda: listens(path))
            with Client(parse_endpoint(str(path))) as client:
                client.send(Alloc("job-1", credits=5))
            assert notify.recv(1000).startswith(b"READY=1\n")
            process.kill()
            process.wait(100)
        assert fake.inspector.totals().projects["demo"].allocated == 0
        assert path.is_socket()
        (tmp_path / "daemon.ini").write_text(config, encoding="utf-8")
        with running(activated) as process:
            wait_for(lambda: listens(path))
            wait_for(lambda: fake.inspector.totals().projects["demo"].allocated)
        assert process.returncode == 0
    assert path.is_socket()  # it is systemd's to remove
    assert [notify.recv(1000).split(b"\n")[0] for _ in range(2)] == [b"READY=1", b"STOPPING=1"]
    assert [slot.slot for slot in fake.inspector.slots("demo").items] == ["job-1"]
    assert service["Restart"] == "on-failure"  # a status of 0 is no failure
    assert (service["Type"], "WatchdogSec" in service) == ("notify", True)


UNITS = (
    *("cpsim-daemon.socket", "cpsim-daemon.service"),
    *("cpsim-serve.socket", "cpsim-serve-http.socket", "cpsim-serve.service"),
)


def test_the_units_are_such_that_systemd_takes(tmp_path):
    analyze = tool("systemd-analyze")
    paths = [tmp_path / name for name in UNITS]
    for path in paths:
        text = snippet("systemd", path.name).replace("/opt/cpsim/bin/cpsim", sys.executable)
        path.write_text(text, encoding="utf-8")
    verify = [analyze, "verify", *map(str, paths)]
    told = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=280)
    assert not [line for line in told.stderr.splitlines() if "cpsim-" in line], told.stderr
    for path in paths:
        path.write_text(path.read_text(encoding="utf-8").replace("[Socket]", "[Socket]\nListens=x"), encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8").replace("Restart=", "Restarts="), encoding="utf-8")
    told = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=280)
    assert [name for name in UNITS if not re.search(f"{name}.*(Listens|Restarts)", told.stderr)] == []


@contextmanager
def proxied(target, authority):
    """A proxy that does what the guide's nginx does: it ends TLS, and passes everything on as it came."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with (
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection(target, timeout=280) as server,
            ):
                back = threading.Thread(target=copy, args=(server, client))
                back.start()
                copy(client, server)
                back.join()

    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server.server_address[1]
        server.shutdown()


def test_clients_reach_it_through_tls(tmp_path, monkeypatch):
    text = snippet("tls", "cpsim.conf")
    assert text.count("{") == text.count("}") == 2
    host, port = re.search(r"proxy_pass http://([\d.]+):(\d+);", text).groups()
    assert "proxy_set_header Host $http_host;" in text
    assert f"--http {host}:{port} --control-token-file" in (ROOT / "docs/how-to/tls.md").read_text(encoding="utf-8")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with Fake({"demo": "demo"}, http=ANY_PORT, control_token="t0ken") as fake:
        address = fake.addresses["http"].removesuffix("/api").removeprefix("http://").split(":")
        with proxied((address[0], int(address[1])), authority) as public:
            with Client(parse_endpoint(f"https://localhost:{public}/api"), credentials=("demo", "demo")) as client:
                client.send(Alloc("job-1", credits=5))
            request = urllib.request.Request(f"https://localhost:{public}/__cpsim/totals")
            request.add_header("Authorization", "Bearer t0ken")
            trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            with urllib.request.urlopen(request, timeout=280, context=trusted) as answer:
                assert json.load(answer)["projects"]["demo"]["allocated"] == 1


def instructions():
    """The container file's instructions, as pairs of a word and its text."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_holds_what_is_needed_and_runs_without_rights():
    words = [word for word, _ in instructions()]
    known = {"FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert set(words) <= known
    given = dict(instructions())
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert not given["USER"].startswith(("0", "root"))
    assert f"-o {given['USER'].partition(':')[0]}" in given["RUN"]
    copied = [
        each for word, text in instructions() if word == "COPY" and "--from" not in text for each in text.split()[:-1]
    ]
    assert all((ROOT / each).exists() for each in copied)


def test_the_image_has_a_python_that_is_tested():
    tested = re.search(r"^PYTHONS = \((.*)\)$", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
    bases = {text.split()[0] for word, text in instructions() if word == "FROM"}
    (version,) = {re.fullmatch(r"python:([\d.]+)-slim", base)[1] for base in bases}
    assert f'"{version}"' in tested


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder in the place of the image, in which the steps were taken, and where a path of the image is in it.

    The libraries are those of this environment, so that nothing is fetched.
    """
    folder = tmp_path_factory.mktemp("image")

    def inside(text):
        return re.sub(r"(?<![\w.])/(source|opt|data)\b", rf"{folder}/\1", text)

    for word, text in instructions():
        if word == "COPY" and "--from" not in text:
            copy_into(Path(inside(text.split()[-1])), text.split()[:-1])
        elif word == "RUN" and text.startswith("install "):
            Path(inside("/data")).mkdir()  # its owner is for whoever has the right to give it away
        elif word == "RUN" and "pip install" in text:
            (site,) = folder.glob("opt/cpsim/lib/python*/site-packages")
            libraries = [path for path in sys.path if path.endswith("site-packages")]
            (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
            pip = shlex.join([sys.executable, "-m", "pip", "--python", inside("/opt/cpsim")])
            step = text.replace("/opt/cpsim/bin/pip install", f"{pip} install -q --no-deps --no-build-isolation -I")
            subprocess.run(["bash", "-euc", inside(step)], check=True, timeout=200)
        elif word == "RUN":
            python = f"{shlex.quote(sys.executable)} -m venv --without-pip "
            subprocess.run(["bash", "-euc", inside(text.replace("python -m venv ", python))], check=True, timeout=200)
    return inside


def copy_into(folder, sources):
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, folder)


def without_rights(user):
    """The beginning of a command that runs as a user of whom nobody has heard, who may do nothing that root may.

    That is so in a namespace; where the system allows none, the command runs as who runs the tests.
    """
    user, group = user.split(":")
    begin = ["unshare", "--user", f"--map-user={user}", f"--map-group={group}"]
    if shutil.which("unshare") is None:
        return []
    status = [*begin, "cat", "/proc/self/status"]
    rights = subprocess.run(status, capture_output=True, text=True, check=False, timeout=280)
    if rights.returncode:
        return []
    assert f"Uid:\t{user}" in rights.stdout
    assert "CapEff:\t0000000000000000" in rights.stdout
    return begin


@pytest.fixture
def inside(image):
    """A program, and its environment and folder, as the image has them."""
    given = dict(instructions())
    environment = dict(pair.split("=", 1) for pair in image(given["ENV"]).split())
    (program,) = json.loads(given["ENTRYPOINT"])
    found = shutil.which(program, path=environment["PATH"])
    assert found == image("/opt/cpsim/bin/cpsim")
    return [*without_rights(given["USER"]), found], {"env": environment, "cwd": image(given["WORKDIR"])}


@pytest.mark.timeout(300)
def test_the_default_command_of_the_image_serves(inside, tmp_path, wait_for):
    program, where = inside
    given = dict(instructions())
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = {"8080": one.getsockname()[1], "5667": two.getsockname()[1]}
    assert sorted(given["EXPOSE"].split()) == sorted(ports)
    command = [re.sub(r":(\d+)$", lambda port: f":{ports[port[1]]}", word) for word in json.loads(given["CMD"])]
    ready = tmp_path / "ready"
    options, check = given["HEALTHCHECK"].split(" CMD ")
    health = [word.replace(":8080/", f":{ports['8080']}/") for word in json.loads(check)]
    assert options == "--start-period=60s"
    assert subprocess.run(health, **where, stderr=subprocess.PIPE, check=False, timeout=280).returncode == 1
    with running([*program, *command, "--ready-file", str(ready)], **where):
        wait_for(ready.exists)
        assert subprocess.run(health, **where, check=False, timeout=280).returncode == 0
        with Client(parse_endpoint(f"127.0.0.1:{ports['5667']}")) as client:
            client.send(Alloc("job-1"))
        with urllib.request.urlopen(f"http://127.0.0.1:{ports['8080']}/api/heartbeat", timeout=280) as answer:
            assert answer.read() == b"OK"
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{ports['8080']}/__cpsim/totals", timeout=280)
        caught.value.close()


def test_the_image_has_the_daemon_and_the_scenarios(inside):
    program, where = inside
    for command, part in ((["daemon", "--help"], "--spool"), (["scenarios", "--json"], '"smoke"')):
        told = subprocess.run([*program, *command], **where, capture_output=True, text=True, check=True, timeout=280)
        assert part in told.stdout


def test_the_health_of_a_daemon_in_a_container(here, cpsim):
    page = (ROOT / "docs" / "how-to" / "container.md").read_text(encoding="utf-8")
    program, *check = shlex.split(re.search(r'--health-cmd "(.*)"', page)[1])
    assert (program, cpsim(*check)[0]) == ("cpsim", 2)  # no daemon has run here
    with closing(Spool(here / check[check.index("--spool") + 1])) as spool:
        assert cpsim(*check)[0] == 0
        spool.put(["rubbish"], {}, lambda _: None)
        spool.wait()
        spool.release(1)
        assert spool.take() is None
        assert cpsim(*check)[0] == 1  # a dead letter
