"""Hostile replies, a full disk and uploads, each at a small size; `nox -s torture` has them whole."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import replies

SOON = (
    "a body: nested deeply",
    "chunks of 'ffffffffffffffffffff'",
    "chunks of '-10'",
    "length '999999999999999999999999999999'",
)


def test_there_are_over_a_hundred_hostile_replies():
    assert len(replies.REPLIES) > 200
    assert len(replies.FRAMES) > 15


@pytest.fixture
def server():
    with replies.HostileServer() as server:
        yield server


@pytest.mark.parametrize(
    ("subject", "reply"),
    [*product(("client", "courier"), [*SOON, "a head that drips"]), *product(("report",), SOON)],
)
def test_a_hostile_reply_comes_to_an_end(server, tmp_path, monkeypatch, subject, reply):
    monkeypatch.setattr("sys.argv", [])
    assert replies.attempt(server, subject, reply, tmp_path) is None


@pytest.mark.thorough
@pytest.mark.parametrize("subject", ["client", "client of a daemon", "courier"])
def test_each_hostile_reply_comes_to_an_end(server, tmp_path, subject):
    for reply in replies.SUBJECTS[subject][1]:
        assert replies.attempt(server, subject, reply, tmp_path) is None, reply


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("full_disk.py", ["--rounds", "3"]),
        ("full_disk.py", ["--rounds", "3", "--limit"]),
        ("uploads.py", ["--rounds", "4", "--size", "4", "--connections", "3"]),
    ],
)
def test_an_attack_finds_nothing(script, options):
    command = [sys.executable, Path(__file__).with_name(script), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=500, check=False)
    assert done.returncode == 0, json.loads(done.stdout)
