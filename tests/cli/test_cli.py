"""The command line: what it says, what it exits with, and that it leaves nothing behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cpsim import fake
from cpsim.server.ledger import Ledger
from cpsim.system.signals import ENDING

SMALL = """
description = "small"
duration = "1d"
population = { machines = 8, users = 4 }
arrivals = { model = "constant", jobs = 30 }
run_time = { model = "constant", value = "10min" }
"""
SERVER = "http://127.0.0.1:1/api"


@pytest.fixture
def cpsim(cpsim, monkeypatch, tmp_path):
    """The same, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL, encoding="utf-8")
    Path("secret").write_text("hush\n", encoding="utf-8")
    Path("empty").write_text(" \n", encoding="utf-8")
    Path("binary").write_bytes(b"\xff\xfe")
    return cpsim


def shell(*arguments, module=False, **options):
    """Run cpsim in a process of its own."""
    command = [sys.executable, "-m", "cpsim"] if module else [str(Path(sys.executable).parent / "cpsim")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=280, check=False, **options)


# Help and version


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], ["Usage: cpsim", "cpsim run smoke", "run ", "serve "]),
        (["-h"], ["Usage: cpsim"]),
        (
            ["run", "--help"],
            ["Usage: cpsim run", "SCENARIO", "--target", "--seed", "--rate", "--json", "--slot-prefix"],
        ),
        (["run", "-h"], ["Usage: cpsim run"]),
        (["serve", "--help"], ["Usage: cpsim serve", "--unix", "--tcp", "--http", "--ready-file", "nc -U"]),
    ],
)
def test_help(cpsim, arguments, said):
    status, out, err = cpsim(*arguments)
    assert (status, err) == (0, "")
    for text in said:
        assert text in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_version(cpsim):
    assert cpsim("--version") == (0, f"cpsim, version {version('creditpiggy-sim')}\n", "")


def test_python_m_cpsim():
    done = shell("--version", module=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cpsim, version {version('creditpiggy-sim')}\n", "")


PROGRAM_THAT_TELLS = """
import atexit, sys
from cpdaemon import Alloc

def at_the_end():
    import pyarrow
    was_imported = "pandas" in sys.modules
    import pandas
    print(was_imported, type(pyarrow.table({"a": [1]}).to_pandas()) is pandas.DataFrame, file=sys.stderr)

def commands(seed):
    atexit.register(at_the_end)
    yield 0, Alloc("job-1")
"""


@pytest.mark.thorough
def test_a_run_does_not_import_pandas_and_its_program_may(here):
    """Which pyarrow would do at its first array."""
    (here / "mine.py").write_text(PROGRAM_THAT_TELLS, encoding="utf-8")
    done = shell("run", "mine.py")
    assert (done.returncode, done.stderr) == (0, "False True\n")


def test_help_imports_little():
    heavy = {"numpy", "pandas", "faker", "pyarrow", "locust", "rich", "httptools", "uvloop", "msgspec", "jinja2"}
    heavy.add("prometheus_client")
    code = f"""
import atexit, sys
atexit.register(lambda: print(*sorted({heavy} & set(sys.modules)), file=sys.stderr))
sys.argv = ["cpsim", *sys.argv[1:]]
from cpsim.cli import main
main()
"""
    for arguments in (["--help"], ["run", "--help"], ["serve", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert (done.returncode, done.stderr.split()) == (0, [])
        assert "Usage" in done.stdout


# Exit statuses and --json


@pytest.mark.thorough
def test_a_scenario_has_a_seed_of_its_own(cpsim):
    Path("seven.toml").write_text(f"seed = 7\n{SMALL}", encoding="utf-8")
    seeds = [json.loads(cpsim("run", "seven.toml", "--json", *given)[1])["seed"] for given in ([], ["--seed", "3"])]
    assert seeds == [7, 3]


@pytest.mark.thorough
def test_a_reader_that_goes_away_is_no_invalid_run():
    done = subprocess.run(
        ["bash", "-c", f"'{Path(sys.executable).parent}/cpsim' quirks | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert done.stdout.strip() in {"0", "2"}  # 0: all was written before it went
    assert done.stderr == ""


def test_a_valid_run_as_json(cpsim):
    status, out, err = cpsim("run", "small.toml", "--json", "--output", "out")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["verdict"] == "valid"
    assert document["operations"] == 60
    assert document["operations_per_s"] > 0
    assert document["not_verified"] == []
    run, verdict = (json.loads(Path("out", name).read_text()) for name in ("run.json", "verdict.json"))
    assert document == run | verdict


def test_an_invalid_run_exits_with_1(cpsim, monkeypatch):
    apply_all = Ledger.apply_all

    def without_claims(ledger, project_id, calls, now_us, **_):
        return apply_all(ledger, project_id, [call for call in calls if call[0] != "claim"], now_us)

    monkeypatch.setattr(Ledger, "apply_all", without_claims)
    with fake.Fake({"p": "hush"}, http=fake.ANY_PORT) as site:
        arguments = ["--target", site.addresses["http"], "--project", "p", "--secret-file", "secret", "--json"]
        arguments += ["--assert", "operations>5", "--junit", "out.xml", "--summary", "out.md"]
        status, out, err = cpsim("run", "small.toml", *arguments)
    assert (status, err) == (1, "")
    document = json.loads(out)
    assert document["verdict"] == "invalid"
    assert document["anomalies_by_name"]["lost"] == 30
    assert "--junit" not in document["repeat"]
    cases = {case.get("name"): case for case in ET.parse("out.xml").getroot().iter("testcase")}
    lost = cases[f"nothing is lost: {document['meanings']['lost']}"].find("failure")
    assert lost.get("message").startswith("30 lost: ")
    assert cases["the verdict is valid"].find("failure") is not None
    assert len(cases["assert operations>5"]) == 0
    summary = Path("out.md").read_text(encoding="utf-8")
    assert summary.startswith("### cpsim run small.toml: invalid\n")
    assert re.search(r"^  30 lost$", summary, re.MULTILINE)
    [folder] = Path("runs").iterdir()
    assert re.fullmatch(r"small-\d{8}-\d{6}-\d{6}", folder.name)


def test_an_unknown_run_exits_with_2(cpsim):
    with fake.Fake({"p": "hush"}, unix=Path("cp.sock")):
        status, out, err = cpsim("run", "small.toml", "--target", "./cp.sock", "--json", "--output", "out")
    assert (status, err) == (2, "")
    document = json.loads(out)
    assert document["verdict"] == "unknown"
    assert cpsim("judge", "out", "--json", "--junit", "judged.xml")[0] == 2
    suite = ET.parse("judged.xml").getroot().find("testsuite")
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert suite.find("testcase/error").get("message") == " ".join(document["not_verified"])


def test_one_seed_makes_one_workload(cpsim):
    digests = []
    with fake.Fake({"p": "hush"}, unix=Path("cp.sock")):
        for number, seed in enumerate([1, 1, 2**63 - 1]):
            arguments = ["--target", "unix:cp.sock", "--seed", seed, "--asap", "--json", "--output", number]
            digests.append(json.loads(cpsim("run", "small.toml", *arguments)[1])["workload_sha256"])
    assert digests[0] == digests[1] != digests[2]


# Faults


def test_a_run_with_faults_of_its_scenario_and_of_the_command_line(cpsim):
    Path("failing.toml").write_text(f'faults = ["daemon.lose-reply:kind=claim,count=3"]\n{SMALL}', encoding="utf-8")
    down = "server.down:from=0,until=0.3"
    status, out, err = cpsim("run", "failing.toml", "--fault", down, "--json", "--output", "out")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert [(fault["fault"], fault["fired"]) for fault in document["faults"]] == [
        ("daemon.lose-reply:kind=claim,count=3", 3),
        (down, 1),
    ]
    assert document["by_kind"]["claim"]["unknown"] == 3
    firings = json.loads(Path("out/faults.json").read_text(encoding="utf-8"))["firings"]
    assert sorted(firing["action"] for firing in firings) == ["down", *["lose-reply"] * 3]
    assert document["repeat"].endswith(f"--fault {down}")


def test_only_a_fake_can_have_faults(cpsim):
    with fake.Fake({"p": "hush"}, unix=Path("cp.sock")):
        status, _, err = cpsim("run", "small.toml", "--target", "./cp.sock", "--fault", "hang")
    assert (status, err.partition(":")[2][:32]) == (2, " only a fake takes faults: leave")
    assert not list(Path("runs").iterdir())


def test_a_fake_has_its_own_faults_back_after_a_run(cpsim):
    with fake.Fake({"p": "hush"}, http=fake.ANY_PORT, faults=["server.late=0:kind=meta"]) as site:
        arguments = ["--target", site.addresses["http"], "--project", "p", "--secret-file", "secret", "--json"]
        status, out, _ = cpsim("run", "small.toml", "--fault", "server.lose-reply:nth=5", *arguments)
        assert [str(fault) for fault in site.faults] == ["server.late=0:kind=meta"]
    assert (status, json.loads(out)["faults"][0]["fired"]) == (0, 1)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: cpsim"),
        (["rnu"], "No such command 'rnu'"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["run"], "Missing argument 'SCENARIO'"),
        (["run", "smoke", "more"], "unexpected extra argument"),
        (["run", "smok"], "expected a path or one of black-friday, "),
        (["run", "smok"], 'did you mean "smoke"?'),
        (["run", "smoke", "--fault", "hangs"], "did you mean 'hang'"),
        (["run", "smoke", "--tagret", "x"], "No such option '--tagret'"),
        (["run", "smoke", "--target", "cp.sock"], "cp.sock"),
        (["run", "smoke", "--target", "127.0.0.1:0"], "not a number from 1 to 65535"),
        (["run", "smoke", "--target", "ftp://x/"], "unknown scheme 'ftp'"),
        (["run", "smoke", "--target", ""], "the endpoint is empty"),
        (["run", "smoke", "--target", SERVER], "needs --project ID and --secret-file FILE"),
        (["run", "smoke", "--target", SERVER, "--project", "p"], "needs --project ID and --secret-file FILE"),
        (["run", "smoke", "--target", SERVER, "--server", SERVER], "this --target is a server"),
        (["run", "smoke", "--target", "./x", "--server", "./y"], "--server must be a URL"),
        (["run", "smoke", "--target", "./x", "--server", SERVER], "needs --project ID and --secret-file FILE"),
        (["run", "smoke", "--target", "./x", "--project", "p"], "add --server URL"),
        (["run", "smoke", "--server", SERVER], "go with --target"),
        (["run", "smoke", "--secret-file", "secret"], "go with --target"),
        (["run", "smoke", "--secret-file", "missing"], "'missing' does not exist"),
        (["run", "smoke", "--target", SERVER, "--project", "p", "--secret-file", "empty"], "empty is empty"),
        (["run", "smoke", "--target", SERVER, "--project", "p", "--secret-file", "binary"], "cannot be read"),
        (["run", "smoke", "--seed", "-1"], "-1 is not in the range"),
        (["run", "smoke", "--seed", "x"], "'x' is not a valid integer"),
        (["run", "smoke", "--seed", 2**63], "is not in the range"),
        (["run", "smoke", "--rate", "0"], "'--rate': 0.0 is not in the range"),
        (["run", "smoke", "--rate", "inf"], "'--rate': inf is not in the range"),
        (["run", "smoke", "--rate", "nan"], "'--rate': nan is not a number"),
        (["run", "smoke", "--rate", "fast"], "'fast' is not a valid float"),
        (["run", "smoke", "--rate", "fast"], "expected operations/s, or FROM..TO:10s,R:5s"),
        (["scenarios", "show", "smoke", "--plot", "x.pdf"], "--plot x.pdf: a picture is SVG: name it .svg"),
        (["serve", "--ready-file", "."], "'.' is a directory"),
        (["serve", "--ready-file", ""], "'--ready-file': the path is empty"),
        (["serve", "--unix", ""], "'--unix': the path is empty"),
        (["exec", "--unix", "", "true"], "'--unix': the path is empty"),
        (["daemon", "--unix", ""], "--unix: the path is empty"),
        (["judge", ""], "the path is empty"),
        (["run", "smoke", "--speed", "-2"], "'--speed': -2.0 is not in the range"),
        (["run", "smoke", "--speed", "nan"], "'--speed': nan is not a number"),
        (["run", "smoke", "--rate", "5", "--asap"], "exclude one another"),
        (["run", "smoke", "--rate", "5", "--speed", "2"], "exclude one another"),
        (["run", "smoke", "--in-flight", "0"], "0 is not in the range 1<=x<=10000"),
        (["run", "smoke", "--timeout", "0"], "'--timeout': 0.0 is not in the range"),
        (["run", "smoke", "--timeout", "inf"], "'--timeout': inf is not in the range"),
        (["run", "smoke", "--timeout", "nan"], "'--timeout': nan is not a number"),
        (["run", "smoke", "--slot-prefix", "a,credits=9"], "slot 'a,credits=9' contains ','"),
        (["run", "smoke", "--slot-prefix", ""], "is empty"),
        (["run", "smoke", "--slot-prefix", "x" * 81], "has 81 bytes: at most 80"),
        (["run", "smoke", "--processes", "2", "--virtual"], "leave out --processes, or --virtual"),
        (["load", "smoke", "--target", "./x", "--sed", "5"], "Locust's own follow --. (Did you mean one of: '--seed'"),
        (["load", "smoke", "--target", "./x", "--headless"], "No such option '--headless' of cpsim load"),
        (["verify", "--seed", "5"], "--seed is for --random N"),
        (["verify", "--restart-command", "true"], "--restart-command is for --behind HOST:PORT"),
        (["verify", "--failed-command", "true"], "--failed-command is for --behind HOST:PORT"),
        (["verify", "--flush-interval", "1"], "--flush-interval is for --behind HOST:PORT"),
        (["daemon", "--spool", "x", "--status", "--failed"], "exclude one another"),
        (["daemon", "--spool", "x", "--json"], "add one of them"),
        (["report", ".", "comparison"], "name them with --against PATH"),
        (["serve", "more"], "unexpected extra argument"),
        (["serve", "--tcp", "5667"], "is not HOST:PORT"),
        (["serve", "--tcp", "127.0.0.1:65536"], "is not HOST:PORT"),
        (["serve", "--http", ":80"], "is not HOST:PORT"),
        (["serve", "--http", "http://127.0.0.1:8080"], "has a scheme: write HOST:PORT, as 127.0.0.1:8080"),
        (["record", "-o", "x.csv", "--target", "./x", "--listen", "http://127.0.0.1:1"], "HOST:PORT, without a scheme"),
        (["record", "-o", "x.txt", "--target", "./x", "--listen", ":0"], "x.txt: a recording is a trace"),
        (["scenarios", "write", "smoke", "-o", "x.txt"], "x.txt: a workload is written as Parquet"),
        (["scenarios", "show", "smoke", "--set", "foo"], "--set foo: expected KEY=VALUE"),
        (["report", ".", "--since", "yesterday"], 'since = "yesterday" is not a time'),
        (["report", ".", "--timezone", "Europe/Zuric"], "did you mean Europe/Zurich?"),
        (["serve", "--project", ""], "--project"),
        (["serve", "--project", "a,b"], "'a,b' needs an id without commas"),
        (["serve", "--secret-file", "empty"], "empty is empty"),
        (["serve", "--flush-interval", "-1"], "-1.0 is not in the range"),
        (["serve", "--flush-interval", "nan"], "nan is not a number"),
    ],
)
def test_wrong_usage(cpsim, arguments, said):
    status, out, err = cpsim(*arguments)
    assert (status, out) == (64, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "missing.toml"], r"missing.toml: no such file"),
        (["run", "binary"], r"binary: expected a scenario .*"),
        (["run", "/dev/null"], r"/dev/null: not a regular file, .*"),
        (["run", "folder"], r"folder: a folder, not a file; a run is replayed from folder/journal.parquet"),
        (["run", "binary.py"], r"binary.py: (?!.*line None).*"),
        (["run", "binary.csv"], r"binary.csv: cannot be read as CSV: [^\x00-\x09\x0b-\x1f]*"),
        (["run", "failing.py"], r"failing.py, line 2: ValueError: no"),
        (["run", "broken.toml"], r"broken.toml: not TOML: .*"),
        (["run", "wrong.toml"], r"wrong.toml: duration = .*: expected .*"),
        (["run", "."], r".*"),
        (["run", "small.toml", "--output", "small.toml"], r"small.toml is there already; .*"),
        (["run", "small.toml", "--output", "small.toml/x"], r".*(Not a directory|File exists).*"),
        (["run", "small.toml", "--target", "./nobody"], r"cannot reach ./nobody: .*; is it running there\?"),
        (
            ["run", "small.toml", "--target", SERVER, "--project", "p,q", "--secret-file", "secret"],
            r".*project id must be printable ASCII.*",
        ),
        (
            ["run", "small.toml", "--target", SERVER, "--project", "é\nX: y", "--secret-file", "secret"],
            r".*project id must be printable ASCII.*",
        ),
        (
            ["run", "small.toml", "--target", SERVER, "--project", "p", "--secret-file", "secret"],
            r"cannot reach http://127.0.0.1:1/api: Connection refused; is it running there\?",
        ),
        (
            ["run", "small.toml", "--virtual", "--fault", "crash-after-ok"],
            r"fault 'daemon.crash-after-ok': .*--virtual.*",
        ),
        (["serve", "--unix", "missing/cp.sock"], r"cannot listen at missing/cp.sock: .*"),
        (["serve", "--unix", "small.toml"], r"cannot listen at small.toml: .*"),
        (["serve", "--unix", "x" * 200], r"cannot listen at x+: .*"),
        (["serve", "--tcp", "192.0.2.1:0"], r"cannot listen at 192.0.2.1:0: .*"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(cpsim, monkeypatch, arguments, said):
    Path("broken.toml").write_text("= 5", encoding="utf-8")
    Path("folder").mkdir()
    Path("folder/journal.parquet").touch()
    for name in ("binary.py", "binary.csv"):
        Path(name).write_bytes(b"a,b\n\x1b[31m\x00\xff,2,3\n")
    Path("failing.py").write_text("\nraise ValueError('no')\n", encoding="utf-8")
    Path("wrong.toml").write_text(SMALL.replace('"1d"', '"1x"'), encoding="utf-8")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = sorted(path.name for path in Path().iterdir())
    try:
        status, out, err = cpsim(*arguments)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (status, out) == (2, "")
    assert re.fullmatch(f"cpsim: {said}\n", err)
    after = sorted(path.name for path in Path().iterdir())
    assert [name for name in after if name != "runs"] == before
    assert not Path("runs").exists() or not [*Path("runs").iterdir()]


# Serving


class Serving:
    """`cpsim serve` in a process of its own, once it is ready."""

    def __init__(self, *arguments, environment=None):
        command = [sys.executable, "-m", "cpsim", "serve", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "error"} | (environment or {}),
        )
        self.lines = []

    def read(self, count):
        self.lines += [self.process.stdout.readline() for _ in range(count)]
        return dict(line.split() for line in self.lines)

    def stop(self, number):
        self.process.send_signal(number)
        return self.process.communicate(timeout=280), self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def exchange(path, frame, *, half_close):
    """What `printf FRAME | nc -U PATH` does: with or without closing its side when its input ends."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(280)
        sock.connect(path)
        sock.sendall(frame)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        reply = b""
        while piece := sock.recv(100):  # ends only when the daemon closes
            reply += piece
        return reply


@pytest.mark.thorough
@pytest.mark.parametrize("number", ENDING)
def test_serve(cpsim, number):
    ready_files = ("--ready-file", "ready", "--ready-env", "ready.env")
    with Serving("--unix", "./cp.sock", "--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", *ready_files) as site:
        addresses = site.read(3)
        assert list(addresses) == ["unix", "tcp", "http"]
        assert re.fullmatch(r"127\.0\.0\.1:\d+", addresses["tcp"])
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/api", addresses["http"])
        for half_close in (False, True):
            frame = b"alloc,slot=x-%d,credits=5" % half_close
            assert exchange("cp.sock", frame + b"\n", half_close=half_close) == b"OK"
            assert exchange("cp.sock", b"nonsense\n", half_close=half_close) == b"ER"
        credentials = ["--project", "demo", "--secret-file", "secret"]
        Path("secret").write_text("demo", encoding="utf-8")
        run = ["run", "small.toml", "--target", addresses["tcp"], "--server", addresses["http"], *credentials]
        assert cpsim(*run)[0] == 0
        ready = Path("ready")
        assert ready.read_text(encoding="utf-8") == "".join(site.lines)
        sourced = ". ./ready.env; echo $CREDITPIGGY_ENDPOINT $CREDITPIGGY_TCP $CREDITPIGGY_URL $CREDITPIGGY_PROJECT"
        said = subprocess.run(["sh", "-c", sourced], capture_output=True, text=True, check=True).stdout
        assert said.split() == [*addresses.values(), "demo"]
        (out, err), status = site.stop(number)
        assert (out, err, status) == ("", "", 0)
        assert not Path("cp.sock").exists()
        assert not Path("ready.partial").exists()
        assert not Path("ready.env").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(addresses["tcp"].rpartition(":")[2])), timeout=280)


@pytest.mark.thorough
def test_serve_takes_free_addresses_when_none_is_given(cpsim, tmp_path):
    short = Path("t")
    short.mkdir()
    with Serving(environment={"TMPDIR": str(short)}) as site:
        addresses = site.read(3)
        assert exchange(os.path.relpath(addresses["unix"]), b"alloc,slot=x", half_close=False) == b"OK"
        assert site.stop(signal.SIGTERM) == (("", ""), 0)
    assert [*short.iterdir()] == []


@pytest.mark.thorough
def test_serve_replaces_the_socket_of_a_killed_one_but_no_live_one(cpsim):
    with Serving("--unix", "cp.sock") as first:
        first.read(1)
        status, _, err = cpsim("serve", "--unix", "cp.sock")
        assert status == 2
        assert "another process is serving there" in err
        first.process.kill()
        first.process.communicate()
    assert Path("cp.sock").exists()
    with Serving("--unix", "cp.sock") as second:
        second.read(1)
        assert exchange("cp.sock", b"alloc,slot=x", half_close=False) == b"OK"
        second.stop(signal.SIGTERM)


@pytest.mark.thorough
def test_serve_says_when_it_cannot_write_that_it_is_ready(cpsim):
    done = shell("serve", "--unix", "cp.sock", "--ready-file", "missing/ready")
    assert done.returncode == 2
    assert re.fullmatch(r"cpsim: .*missing/ready.*\n", done.stderr)
    assert not Path("cp.sock").exists()


@pytest.mark.parametrize(
    "command", [["show", "smoke", "--plot", "new/x.svg"], ["write", "smoke", "-o", "new/x.parquet"]]
)
def test_the_folder_of_a_file_is_made(cpsim, command):
    assert cpsim("scenarios", *command)[0] == 0
    assert Path(command[-1]).stat().st_size > 100


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "--help"], 0),
        (["scenarios"], 0),
        (["faults"], 0),
        (["verify", "--list"], 0),
        (["run", "small.toml", "--output", "out"], 0),
        (["verify", "-k", "WIRE-1"], 0),
    ],
)
def test_output_that_nobody_reads(cpsim, arguments, status):
    """Like `cpsim run small.toml | head -1`: what was found does not depend on who reads it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cpsim", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=280, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr


def test_a_server_that_cannot_start_leaves_the_ready_file_of_another(cpsim):
    with socket.create_server(("127.0.0.1", 0)) as other:
        told = f"tcp 127.0.0.1:{other.getsockname()[1]}\n"
        Path("ready").write_text(told, encoding="utf-8")
        status, _, err = cpsim("serve", "--unix", "missing/cp.sock", "--ready-file", "ready")
    assert (status, err.startswith("cpsim: cannot listen")) == (2, True)
    assert Path("ready").read_text(encoding="utf-8") == told


@pytest.mark.thorough
def test_ready_files_go_with_a_server_that_is_killed(here, wait_for):
    with Serving("--unix", "./cp.sock", "--ready-file", "ready", "--ready-env", "env") as site:
        wait_for(lambda: Path("ready").exists() and Path("env").exists())
        site.process.kill()
        wait_for(lambda: not Path("ready").exists() and not Path("env").exists())


@pytest.mark.thorough
def test_a_server_that_is_killed_leaves_its_successors_ready_file(here, wait_for):
    with Serving("--unix", "./one.sock", "--ready-file", "ready", "--ready-env", "env") as killed:
        wait_for(lambda: Path("ready").exists() and Path("env").exists())
        with Serving("--unix", "./two.sock", "--ready-file", "ready"):
            wait_for(lambda: "two" in Path("ready").read_text(encoding="utf-8"))
            killed.process.kill()
            wait_for(lambda: not Path("env").exists())
            assert "two" in Path("ready").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("option", "left"),
    [
        ("--ready-file", "unix {here}/gone.sock\n"),
        ("--ready-file", "unix {here}/old.sock\nhttp http://127.0.0.1:{port}/api\n"),
        ("--ready-env", "CREDITPIGGY_ENDPOINT='{here}/old.sock'\nCREDITPIGGY_PROJECT=demo\n"),
    ],
)
def test_a_ready_file_that_a_killed_server_has_left_is_removed_before_the_next_one_serves(cpsim, option, left):
    with socket.create_server(("127.0.0.1", 0)) as free, socket.socket(socket.AF_UNIX) as killed:
        port = free.getsockname()[1]
        killed.bind("old.sock")
    Path("ready").write_text(left.format(here=Path.cwd(), port=port), encoding="utf-8")
    assert cpsim("serve", "--unix", "missing/cp.sock", option, "ready")[0] == 2
    assert not Path("ready").exists()
