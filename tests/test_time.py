"""What a test may not do with time: sleep, or measure it. It waits for what happens, counts, or moves a clock."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLEEP = re.compile(r"\bsleep$|\bEvent\(\)\.wait$")
MEASURE = re.compile(r"^((time\.)?(monotonic|perf_counter|process_time|thread_time)(_ns)?|time\.time(_ns)?)$")
SLEEPING = {
    "conformance/plain_daemon.py": "a daemon that is slow, or waits before it sends again",
    "benchmarks/served.py": "waits for a server to start",
    "cpdaemon/test_aio.py": "has other tasks of an event loop run",
    "record/test_limits_page.py": "likewise",
    "server/test_expectations.py": "likewise",
    "conftest.py": "looks again and again at what no test can be told of",
    "samples/make.py": "likewise, by itself; it made the samples",
    "support/late.py": "has threads be late",
    "store/kill.py": "kills a process after some time",
    "torture/full_disk.py": "leaves a disk full for some time",
    "testing/test_clock.py": "the clock is the test's, and this moves it",
}
"""Where a test sleeps, and why."""
MEASURING = {
    "benchmarks": "what they are for",
    "conftest.py": "guards against hanging",
    "conformance/plain_server.py": "a server's own clock, by which slots expire",
    "cpdaemon/test_transport.py": "how long a timeout takes at least",
    "robustness": "figures of scripts, which decide nothing, and guards against hanging",
    "run/test_capacity.py": "a target that takes its time for each command",
    "samples/make.py": "guards against hanging",
    "store/kill.py": "a figure, and a guard against hanging",
    "torture/torture.py": "a figure, which decides nothing",
}
"""Where a test looks at the machine's clock, and why."""


def calling(pattern, path):
    """The lines of a source that call what a pattern matches."""
    text = path.read_text(encoding="utf-8")
    if not re.search(r"sleep\(|Event\(\)|time\(|_time_ns|monotonic|perf_counter", text):
        return  # without being parsed, which takes long
    for node in ast.walk(ast.parse(text)):
        is_named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        if is_named and pattern.search(ast.unparse(node.func)):
            yield node.lineno


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [(SLEEP, SLEEPING), (MEASURE, MEASURING)],
    ids=["sleeps", "measures"],
)
def test_no_test_does(pattern, allowed):
    found = {path.relative_to(HERE) for path in HERE.rglob("*.py") if [*calling(pattern, path)]}
    others = {str(path) for path in found if not any(path.is_relative_to(place) for place in allowed)}
    assert others == set()
    assert {place for place in allowed if not any(path.is_relative_to(place) for path in found)} == set()


@pytest.mark.parametrize("line", ["sleep(1)", "time.sleep(0)", "clock.sleep(1)", "threading.Event().wait(0.1)"])
def test_what_it_is_to_sleep(tmp_path, line):
    (tmp_path / "slept.py").write_text(f"def test_nothing():\n    {line}\n", encoding="utf-8")
    assert list(calling(SLEEP, tmp_path / "slept.py")) == [2]


@pytest.mark.parametrize(
    ("line", "measures"),
    [("time.monotonic()", True), ("perf_counter_ns()", True), ("time.time()", True), ("clock.monotonic()", False)],
)
def test_what_it_is_to_measure(tmp_path, line, measures):
    (tmp_path / "measured.py").write_text(f"def test_nothing():\n    {line}\n", encoding="utf-8")
    assert list(calling(MEASURE, tmp_path / "measured.py")) == [2] * measures
