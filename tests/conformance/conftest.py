"""What the suite is proven on: fakes with quirks, and strangers."""

import importlib.util
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance.clause import Need, catalogue
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target
from cpsim.fake import ANY_PORT, Fake

FOLDER = Path(__file__).parent
MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")
PAIR = {Need.DAEMON, Need.SERVER, Need.OTHER, Need.ACCOUNTS}
OF_THE_PAIR = [id for id, clause in catalogue().items() if PAIR.issuperset(clause.needs)]
"""The clauses that a daemon and its own server can show, without --thorough and without being started again."""

OF_TIME = {"DELIVER-11", "DELIVER-12", "WIRE-14"}
"""The clauses that are not verifiable on a machine that is too busy to send in time."""


def load(name):
    """A program of this folder, which may import others of it, as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="session")
def page():
    """The program that makes docs/conformance.md."""
    return load("page")


@pytest.fixture(scope="session")
def plain_server():
    """A server that is right, and has seams for what is not."""
    return load("plain_server")


@pytest.fixture(scope="session")
def planted():
    """The faults to plant in it."""
    return load("planted")


@pytest.fixture(scope="session")
def planted_daemons():
    """The program that plants faults in a plain daemon."""
    return load("planted_daemons")


@pytest.fixture(scope="session")
def of_the_pair():
    """The clauses that a daemon and its own server can show."""
    return OF_THE_PAIR


@pytest.fixture(scope="session")
def unseen_when_busy():
    """The clauses that are not verifiable on a machine that is too busy to send in time."""
    return OF_TIME


@pytest.fixture(scope="session")
def unseen():
    """unseen(outcome): the clauses that are not verifiable, and not because this machine is busy."""

    def unseen(outcome):
        return {each.clause.id for each in outcome.findings if each.result == "not verifiable"} - OF_TIME

    return unseen


@pytest.fixture(scope="session")
def stranger_bugs():
    """Every way in which a stranger can be wrong."""
    return load("stranger").BUGS


@contextmanager
def stranger(bug=""):
    """A stranger in a process of its own; yields where its daemon and its server are."""
    command = [sys.executable, str(FOLDER / "stranger.py"), *filter(None, [bug])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield [parse_endpoint(process.stdout.readline().strip()) for _ in range(2)]
        process.communicate()


@pytest.fixture
def examine_fake(tmp_path, monkeypatch):
    """examine_fake(quirks, clauses, tier=..., **target): what the suite finds in a fake that has these quirks."""
    monkeypatch.chdir(tmp_path)

    def run(
        quirks=(),
        clauses=OF_THE_PAIR,
        *,
        tier="pair",
        tcp=False,
        flush_interval_s=0.0,
        store=None,
        rehearse=False,
        **target,
    ):
        listen = {"tcp": ANY_PORT} if tcp else {"unix": Path("cp.sock")}
        options = {"quirks": frozenset(quirks), "flush_interval_s": flush_interval_s, "store": store}
        with Fake(dict([MINE, OTHER]), http=ANY_PORT, **listen, **options) as fake:
            if tier != "server":
                target["daemon"] = parse_endpoint(fake.addresses["tcp"] if tcp else "./cp.sock")
            if tier != "daemon":
                target |= {"server": parse_endpoint(fake.addresses["http"]), "credentials": MINE, "other": OTHER}
            return examine(Target(**target), clauses, rehearse=rehearse)

    return run


@pytest.fixture
def examine_stranger():
    """examine_stranger(bug, clauses, tier=..., **target): what the suite finds in a stranger."""

    def run(bug="", clauses=(), *, tier="pair", **target):
        with stranger(bug) as (daemon, server):
            if tier != "server":
                target["daemon"] = daemon
            if tier != "daemon":
                target |= {"server": server, "credentials": MINE, "other": OTHER}
            return examine(Target(timeout_s=target.pop("timeout_s", 1.0), **target), clauses)

    return run


@pytest.fixture
def examine_daemon(tmp_path, monkeypatch, page):
    """examine_daemon(*options, clauses=..., profile=...): the status of `cpsim verify --behind`, and what it says."""
    monkeypatch.chdir(tmp_path)
    with page.middle() as examine:
        yield examine
