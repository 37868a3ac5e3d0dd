"""The examples in other languages, each with its own test runner, as its first lines say how to run it."""

import shlex
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNNERS = {
    "node/credit.test.mjs": "node",
    "perl/credit.t": "prove",
    "rust/tests/credit.rs": "cargo",
    "shell/test_run_jobs.sh": "sh",
}
"""The tests of each example, and the program that runs them; .ci/run installs all but cargo where they are missing."""


@pytest.mark.parametrize("name", RUNNERS)
def test_the_tests_of_an_example_pass(cpsim, tools, tmp_path, monkeypatch, name):
    if shutil.which(RUNNERS[name]) is None:
        pytest.skip(f"there is no {RUNNERS[name]}")
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "examples" / name.partition("/")[0])
    monkeypatch.setenv("PATH", tools)
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    command = text.partition("Run: ")[2].partition("\n")[0]
    program, *arguments = shlex.split(command)
    assert program == "cpsim"
    status, _, err = cpsim(*arguments)  # what the tests print is shown if they fail
    assert (status, err) == (0, "")
