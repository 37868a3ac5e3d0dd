"""The scripts that bother the fake, at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)


def run(script, *options):
    command = [sys.executable, Path(__file__).with_name(script), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    figures = json.loads(done.stdout)
    assert done.returncode == 0, figures
    return figures


def test_malformed_frames_and_requests_are_answered_or_closed():
    figures = run("fuzz.py", "--frames", "1000", "--bodies", "2000", "--seed", "3")
    assert figures["frames"]["answers"]["ER"] > 900
    assert figures["bodies"]["answers"]["400"] > 500
    assert {"401", "500", "closed"} <= figures["bodies"]["answers"].keys()


def test_idle_connections_starve_nobody():
    figures = run("idle.py", "--connections", "300", "--commands", "200")
    assert figures.keys() == {"unix", "tcp", "http"}


def test_what_is_soaked_stays_as_it_was():
    figures = run("soak.py", "--minutes", "0", "--round", "1")
    assert figures["rounds"] == 4
    assert figures["last"]["operations"] > 100
