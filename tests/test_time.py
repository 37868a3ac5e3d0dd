"""What a test may not do with time: sleep. It waits for what happens, or moves a clock."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLEEPING = {
    "conftest.py": "looks again and again at what no test can be told of",
    "samples/make.py": "likewise, by itself; it made the samples",
    "store/kill.py": "kills a process after some time",
    "testing/test_clock.py": "the clock is the test's, and this moves it",
}
"""Where a test sleeps, and why."""
YET = {
    *("benchmarks/served.py", "daemon/conftest.py", "daemon/test_courier.py", "daemon/test_listener.py"),
    *("daemon/test_main.py", "daemon/test_quirks.py"),
    "store/test_store.py",
}
"""Where a test sleeps and ought not to."""


def sleeps(path):
    """The lines of a source that sleep: by that name, or waiting for an event that nobody can set."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and re.search(r"\bsleep$|\bEvent\(\)\.wait$", ast.unparse(node.func)):
            yield node.lineno


def test_no_test_sleeps():
    found = {str(path.relative_to(HERE)) for path in HERE.rglob("*.py") if [*sleeps(path)]}
    assert found - YET == SLEEPING.keys()


@pytest.mark.parametrize("line", ["sleep(1)", "time.sleep(0)", "clock.sleep(1)", "threading.Event().wait(0.1)"])
def test_what_it_is_to_sleep(tmp_path, line):
    (tmp_path / "slept.py").write_text(f"def test_nothing():\n    {line}\n", encoding="utf-8")
    assert list(sleeps(tmp_path / "slept.py")) == [2]
