"""A secret is read from its file, and shows up nowhere else: in no output, no file and no process list."""

import subprocess
import sys
from pathlib import Path

import pytest

from cpsim import fake

PROJECT, SECRET, TOKEN = "proj", "xyzzy-hush-secret", "xyzzy-hush-token"
SMALL = """
description = "small"
duration = "1h"
population = { machines = 2, users = 1 }
arrivals = { model = "constant", jobs = 5 }
run_time = { model = "constant", value = "10min" }
"""
SERVE = f"""
http = "127.0.0.1:0"
store = "store"
control_token_file = "token"
[[project]]
id = "{PROJECT}"
secret_file = "secret"
[[daemon]]
unix = "d.sock"
project = "{PROJECT}"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a scenario, a configuration, the secret and the token of a control API."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("small.toml", SMALL), ("serve.toml", SERVE), ("secret", SECRET), ("token", TOKEN)):
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def site(place):
    """A fake in this process, beside the test's folder."""
    with fake.Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=fake.ANY_PORT) as started:
        yield started


@pytest.fixture
def cpsim(command_line, capfd):
    """Return cpsim(*arguments) -> what the command has said, it and its processes."""

    def call(*arguments):
        if arguments[0] == "load":  # which has to come before all that Locust changes
            command = [sys.executable, "-m", "cpsim", *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        return subprocess.CompletedProcess(arguments, command_line(*arguments), *capfd.readouterr())

    return call


def kept(folder):
    """The files, but for the secret's own, that have the secret or the token in them."""
    given = {"secret", "token"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in given]
    assert files
    return [path.name for path in files if any(word.encode() in path.read_bytes() for word in (SECRET, TOKEN))]


@pytest.mark.parametrize("secret", ["secret", "wrong"])
@pytest.mark.parametrize(
    "command",
    [
        ("run", "small.toml", "--target", "{url}", "--output", "run", "--timeout", "1"),
        ("run", "small.toml", "--target", "./cp.sock", "--server", "{url}", "--output", "run", "--processes", "2"),
        ("load", "small.toml", "--target", "{url}", "--output", "run"),
        ("verify", "{url}", "--junit", "verify.xml", "--json", "-k", "ALLOC-*", "-k", "AUTH-*"),
    ],
    ids=["run over HTTP", "run in two processes", "load", "verify"],
)
def test_what_speaks_to_a_server_does_not_repeat_its_secret(place, site, cpsim, command, secret):
    Path("wrong").write_text(f"{SECRET}-not", encoding="utf-8")
    account = ["--project", PROJECT, "--secret-file", secret]
    locust = ["--", "--headless"] if command[0] == "load" else []
    found = cpsim(*(word.format(url=site.addresses["http"]) for word in command), *account, *locust)
    assert "Traceback" not in found.stderr
    assert found.returncode in ({0} if secret == "secret" and command[0] != "verify" else {0, 1, 2}), found.stderr
    Path("wrong").unlink()
    assert SECRET not in found.stdout + found.stderr
    assert kept(place) == []


@pytest.fixture
def serving(wait_for):
    """Return serving(*arguments) -> (a process that serves, its addresses); ended after the test."""
    started = []

    def start(*arguments):
        ready, log = Path(f"ready-{len(started)}"), Path(f"log-{len(started)}")
        command = [sys.executable, "-m", "cpsim", *arguments, "--ready-file", str(ready)]
        with log.open("wb") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=output))
        wait_for(lambda: ready.exists() or started[-1].poll() is not None)
        assert ready.exists(), log.read_text(encoding="utf-8")
        return started[-1], dict(line.split(" ") for line in ready.read_text(encoding="utf-8").splitlines())

    yield start
    for process in reversed(started):
        process.terminate()
        process.wait(100)


def test_what_serves_does_not_repeat_what_it_was_given(place, serving, cpsim):
    server, addresses = serving("serve", "--config", "serve.toml")
    account = ["--server", addresses["http"], "--project", PROJECT, "--secret-file", "secret"]
    daemon, _ = serving("daemon", *account, "--unix", "m.sock", "--spool", "spool")
    run = cpsim("run", "small.toml", "--target", "./m.sock", *account, "--output", "run", "--timeout", "1")
    assert run.returncode == 2, run.stderr  # the control API keeps the accounts from who has no token
    listed = [command_line(process.pid) for process in (server, daemon)]
    daemon.terminate()
    daemon.wait(100)
    assert all(word not in text for word in (SECRET, TOKEN) for text in (*listed, run.stdout, run.stderr))
    assert kept(place) == []


def command_line(pid):
    """What a process list shows of a process."""
    entry = Path(f"/proc/{pid}/cmdline")
    if entry.exists():
        return entry.read_bytes().decode()
    return subprocess.run(
        ["ps", "-ww", "-o", "args", "-p", str(pid)], capture_output=True, text=True, check=True
    ).stdout
