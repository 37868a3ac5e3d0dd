"""What is installed without an extra: how much it is, what works with it, and what says which extra it needs."""

import http.client
import json
import re
import subprocess
import venv
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement

import cpdaemon
import cpsim
from cpdaemon import Client, parse_endpoint
from cpsim.accounts.observer import Observer
from cpsim.config import catalog
from cpsim.scenario import source
from cpsim.system.extras import DISTRIBUTION, EXTRAS, MissingExtra

LIMIT_BYTES = 60_000_000
RUN = "faker, numpy and pyarrow"


def closure(*roots):
    """The installed distributions that requirements ask for, by name."""
    found, waiting, seen = {}, [Requirement(root) for root in roots], set()
    while waiting:
        requirement = waiting.pop()
        distributed = distribution(requirement.name)
        found[distributed.name] = distributed
        for extra in {"", *requirement.extras} - {extra for name, extra in seen if name == distributed.name}:
            seen.add((distributed.name, extra))
            needed = map(Requirement, distributed.requires or [])
            waiting += [each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})]
    return found


def size(distributed):
    """Bytes that a distribution takes, but for bytecode."""
    if distributed.name == DISTRIBUTION:  # its files may be those of a checkout
        files = [path for package in (cpsim, cpdaemon) for path in Path(package.__file__).parent.rglob("*")]
    else:
        files = [Path(file.locate()) for file in distributed.files]
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The Python of an environment with what cpsim and pytest need, and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for distributed in closure(DISTRIBUTION, "pytest").values():
        for name in {file.parts[0] for file in distributed.files} - {"..", "__pycache__"}:
            (site / name).symlink_to(distributed.locate_file(name))
    return folder / "bin" / "python"


@pytest.fixture
def run(light, tmp_path):
    """Run the environment's Python: run(*arguments) -> the finished process."""

    def run(*arguments):
        return subprocess.run(
            [light, *arguments], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=280
        )

    return run


@pytest.fixture
def served(light, tmp_path):
    """Run a command of the environment's cpsim: with served(*arguments) as its first address."""

    @contextmanager
    def served(*arguments):
        command = [light, "-u", "-m", "cpsim", *arguments]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process.stdout.readline().split()[1]
            finally:
                process.terminate()

    return served


def test_what_a_job_managers_tests_install_is_light():
    sizes = {name: size(each) for name, each in closure(DISTRIBUTION, "pytest").items()}
    assert sum(sizes.values()) <= LIMIT_BYTES, sizes


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_libraries_of_an_extra_are_those_that_pip_installs(extra):
    def required(extra):
        for requirement in map(Requirement, distribution(DISTRIBUTION).requires):
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                for inner in requirement.extras:
                    yield from required(inner)
                yield requirement.name

    assert set(required(extra)) - {DISTRIBUTION} == set(EXTRAS[extra])
    assert set(required("all")) - {DISTRIBUTION} == set().union(*EXTRAS.values())


@pytest.mark.thorough
def test_a_test_with_the_fixture_runs_without_an_extra(run, tmp_path):
    (tmp_path / "test_credit.py").write_text("""
import importlib.util
import pytest
from cpdaemon import Client
from cpsim.system.extras import EXTRAS, MissingExtra

def test_credit(creditpiggy):
    client = Client(creditpiggy.endpoint)
    client.alloc("job-1", min=1, max=10)
    client.claim("job-1", "worker-7", credits=25)
    creditpiggy.assert_claimed("job-1", machine="worker-7", credits=10)
    creditpiggy.assert_settled_once()

def test_nothing_else_is_here(creditpiggy):
    assert not [each for each in EXTRAS["report"] + EXTRAS["load"] if importlib.util.find_spec(each)]

def test_a_replay(creditpiggy):
    with pytest.raises(MissingExtra, match="a replay needs"):
        creditpiggy.replay("smoke")
""")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.thorough
def test_a_server_and_a_daemon_serve_without_an_extra(served, tmp_path):
    (tmp_path / "secret").write_text("demo")
    with served("serve", "--http", "127.0.0.1:0") as url:
        delivers = ("--server", url, "--project", "demo", "--secret-file", "secret", "--spool", "spool")
        with served("daemon", "--tcp", "127.0.0.1:0", *delivers) as address:
            client = Client(address)
            client.alloc("job-1", credits=5)
            client.claim("job-1", "worker-7")
        observer = Observer(parse_endpoint(url), ("demo", "demo"), 60.0)  # the daemon delivers before it ends
        view = observer.view()
        (slot,), (machine,) = view.slots.to_pylist(), view.accounts.to_pylist()
        status, body = get(url, "/__cpsim/slots.parquet")
    assert (slot["slot"], slot["state"], slot["granted"]) == ("job-1", "claimed", 5)
    assert (machine["kind"], machine["id"], machine["waiting_credits"]) == ("machine", "worker-7", 5)
    assert (status, json.loads(body)) == (
        501,
        {
            "result": "error",
            "message": f"a table as Parquet, unlike ledger.jsonl, needs {RUN}: pip install '{DISTRIBUTION}[run]'",
        },
    )


def get(url, path):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=280)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "run --help",
        "load --help -- --headless",
        "faults",
        "quirks",
        "reports",
        "scenarios",
        "runs .",
        "completion bash",
    ],
)
def test_what_only_tells_needs_no_extra(run, arguments):
    done = run("-m", "cpsim", *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "needs", "extra"),
    [
        ("run smoke", RUN, "run"),
        ("run smoke --rate 5 --slot-prefix a", RUN, "run"),
        ("record --listen :0 --target 127.0.0.1:9 -o a.csv", RUN, "run"),
        ("scenarios show smoke", RUN, "run"),
        ("scenarios write smoke -o a.parquet", RUN, "run"),
        ("scenarios --schema", RUN, "run"),
        ("load smoke --target 127.0.0.1:9 --rate 5 --find-capacity", RUN, "run"),
        ("load smoke --target 127.0.0.1:9", "faker, numpy, pyarrow, locust and psutil", "load"),
        ("load smoke --target 127.0.0.1:9 -- -h", "faker, numpy, pyarrow, locust and psutil", "load"),
        ("report run", "faker, numpy, pyarrow, duckdb, openpyxl and pandas", "report"),
        ("verify --list", "hypothesis", "test"),
    ],
)
def test_a_command_says_which_extra_it_needs(run, tmp_path, arguments, needs, extra):
    done = run("-m", "cpsim", *arguments.split())
    command = re.match(r"[a-z]+( show| write| --schema)?", arguments)[0]
    assert done.stderr == f"cpsim: cpsim {command} needs {needs}: pip install '{DISTRIBUTION}[{extra}]'\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "extra"), [("cpsim.accounting", "report"), ("cpsim.load", "load")])
def test_a_package_says_which_extra_it_needs(run, package, extra):
    done = run("-c", f"import {package}")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"cpsim\.system\.extras\.MissingExtra: {package} needs .*: pip install '{DISTRIBUTION}\[{extra}\]'", last
    )
    assert issubclass(MissingExtra, ModuleNotFoundError)


def test_the_list_of_scenarios_is_read_without_their_models():
    for name in catalog.scenario_names():
        path = catalog.find_scenario(name)
        scenario = source.load(path)
        assert catalog.describe_scenario(path) == (scenario.description, getattr(scenario, "verdict", "valid"))
