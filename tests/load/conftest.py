"""A site to load, and `cpsim load` in processes of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from ports import free_port

from cpsim.fake import ANY_PORT, Fake

PROJECT, SECRET = "demo", "demo-secret"


class Site(NamedTuple):
    """A daemon and its server, with the options that lead there."""

    fake: Fake
    options: list


class Loads:
    """Starts `cpsim load` in a folder; none of them outlives its test."""

    def __init__(self, folder, options):
        self.folder = folder
        self.options = options
        self.started = []

    def start(self, scenario, *locust, options=(), variables=None):
        command = [sys.executable, "-P", "-m", "cpsim", "load", scenario, *self.options, *options, "--", *locust]
        own = str(free_port())  # of a master that has its workers as children: others may have the usual one
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ
            | {"LOCUST_SKIP_URL_CHECK": "1", "LOCUST_MASTER_BIND_PORT": own, "LOCUST_MASTER_NODE_PORT": own}
            | (variables or {}),
        )
        self.started.append(process)
        return process

    def end(self):
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text(SECRET)
    with Fake({PROJECT: SECRET}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        server = ["--server", fake.addresses["http"], "--project", PROJECT, "--secret-file", "secret"]
        yield Site(fake, ["--target", "./d.sock", *server])


@pytest.fixture
def loads(site, tmp_path):
    started = Loads(tmp_path, site.options)
    yield started
    started.end()


@pytest.fixture
def port():
    return str(free_port())
