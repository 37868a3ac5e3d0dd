"""Docstrings where Python has left them out, arguments that cannot be used, and memory that runs out."""

import subprocess
import sys

import pytest

from cpsim.errors import in_one_line, reason
from cpsim.fake import Fake
from cpsim.system.checks import WrongArgument
from cpsim.system.docstrings import docstring


def documented():
    """Say what it does.

    More.
    """


def test_a_docstring_that_was_left_out_is_read_from_the_source(monkeypatch):
    monkeypatch.setattr(documented, "__doc__", None)
    assert docstring(documented) == "Say what it does.\n\nMore."


@pytest.mark.thorough
def test_without_docstrings_there_are_clauses_and_help():
    python = [sys.executable, "-OO", "-m", "cpsim"]
    done = subprocess.run([*python, "verify", "-k", "CLAIM-1"], capture_output=True, text=True, check=True)
    assert "verdict valid: 1 clause" in done.stdout
    done = subprocess.run([*python, "verify", "--help"], capture_output=True, text=True, check=True)
    assert "clause by clause" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"http": "127.0.0.1:8080"}, r"http is '127\.0\.0\.1:8080', and must be a TcpEndpoint, such as TcpEndpoint"),
        ({"store": "ledger.db"}, r"store is 'ledger\.db', and must be a pathlib\.Path"),
        ({"quirks": "bulk-abort"}, "quirks is 'bulk-abort', and must be a list"),
        ({"sites": ["physics"]}, "a site is 'physics', and must be a Site"),
        ({"faults": "hang"}, "faults is 'hang', and must be a list"),
    ],
)
def test_a_constructor_says_what_it_needs(options, said):
    with pytest.raises(WrongArgument, match=said):
        Fake({"p": "s"}, **options)


def test_memory_that_runs_out_is_a_reason():
    assert reason(MemoryError()) == in_one_line(MemoryError()) == "out of memory"
    assert reason(MemoryError("8 GiB")) == "out of memory: 8 GiB"
