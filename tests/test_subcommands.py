"""Each subcommand once, as a process of its own: what the default run has of each, beside calls within the process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpdaemon import cpapi_alloc, cpapi_setup
from cpsim.cli import cli
from cpsim.fake import ANY_PORT, Fake

CPSIM = [sys.executable, "-P", "-m", "cpsim"]
PROJECT = ("--project", "p", "--secret-file", "secret")
SMALL = """
description = "test"
duration = "1d"
population = { machines = 2, users = 1 }
arrivals = { model = "constant", jobs = 5 }
run_time = { model = "constant", value = "10min" }
"""
ENDS = {
    "completion": ["bash"],
    "exec": ["--allow-refusals", "true"],
    "expect": ["{server}", "idle"],
    "faults": [],
    "judge": [str(Path(__file__).parent / "samples/v0.3/run")],
    "load": ["small.toml", "--target", "./site.sock", "--server", "{server}", *PROJECT, "--", "--headless"],
    "quirks": [],
    "report": ["{server}", "outcomes"],
    "reports": [],
    "run": ["small.toml"],
    "runs": [str(Path(__file__).parent / "samples/v0.3")],
    "scenarios": [],
    "verify": ["./site.sock", "-k", "WIRE-1"],
}
SERVES = {
    "daemon": ["--unix", "own.sock", "--spool", "spool.db", "--server", "{server}", *PROJECT],
    "proxy": ["--listen", "./own.sock", "--target", "./site.sock"],
    "record": ["--listen", "./own.sock", "--target", "./site.sock", "--output", "recorded.csv"],
    "serve": ["--unix", "own.sock"],
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(command, arguments): a process of cpsim in a folder with a site, which is killed in the end."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL, encoding="utf-8")
    Path("secret").write_text("hush", encoding="utf-8")
    started = []
    with Fake({"p": "hush"}, unix=Path("site.sock"), http=ANY_PORT) as site:

        def run(command, arguments):
            given = [argument.replace("{server}", site.addresses["http"]) for argument in arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen([*CPSIM, command, *given], **pipes))
            return started[-1]

        yield run
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("command", ENDS)
def test_what_ends_by_itself(start, command):
    process = start(command, ENDS[command])
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert said


@pytest.mark.parametrize("command", SERVES)
def test_what_serves_until_it_is_told_to_end(start, command):
    process = start(command, SERVES[command])
    assert "own.sock" in process.stdout.readline()
    cpapi_setup("./own.sock")
    cpapi_alloc("slot-1")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=280)
    assert "Traceback" not in said


def test_no_subcommand_is_left_out():
    assert ENDS.keys() | SERVES.keys() == cli.commands.keys()
