"""What the plugin costs: next to nothing where no test uses it, and little where all do."""

import subprocess
import sys

import pytest

HEAVY = "{'pandas', 'numpy', 'pyarrow', 'locust', 'gevent', 'uvloop', 'httptools', 'msgspec', 'faker', 'click'}"

LOADING = """
import sys
import pytest
before = set(sys.modules)
import cpsim.pytest_plugin
print(*sorted(sys.modules.keys() - before))
"""


@pytest.fixture
def loaded_by(run, project):
    """Runs tests with no plugin but this one, and says what of the heavy they have loaded."""
    project.makeconftest(f"""
        import sys
        def pytest_unconfigure():
            print("loaded:", *sorted({HEAVY} & set(sys.modules)))
            print("testing:", "cpsim.testing" in sys.modules)
    """)

    def loaded_by(source):
        result = run(source, "-s", apart=True)
        result.assert_outcomes(passed=1)
        return [line for line in result.outlines if line.startswith(("loaded:", "testing:"))]

    return loaded_by


def test_a_run_without_it_loads_nothing_heavy(loaded_by):
    assert loaded_by("def test_it(): pass") == ["loaded:", "testing: False"]


def test_a_run_with_it_loads_no_frames(loaded_by):
    loaded, testing = loaded_by("def test_it(creditpiggy): assert creditpiggy.slots == {}")
    assert testing == "testing: True"
    assert {"httptools", "uvloop"} <= set(loaded.split())
    assert not {"numpy", "pandas", "pyarrow", "locust", "gevent", "faker"} & set(loaded.split())


def test_loading_it_imports_next_to_nothing():
    loaded = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True).stdout
    assert set(loaded.split()) <= {"cpsim", "cpsim.clock", "cpsim.pytest_plugin", "difflib"}


THOUSAND = """
    import time
    import pytest
    from cpdaemon import cpapi_alloc, cpapi_claim, cpapi_setup

    @pytest.mark.parametrize("number", range(1000))
    def test_it(creditpiggy, number):
        cpapi_setup(creditpiggy.endpoint)
        cpapi_alloc(f"job-{number}", credits=5)
        cpapi_claim(f"job-{number}", "worker-7")
        creditpiggy.assert_claimed(f"job-{number}", machine="worker-7", credits=5)
"""


def test_a_thousand_tests_pass(run):
    run(THOUSAND, "-q", apart=True).assert_outcomes(passed=1000)


COUNTED = """
import sys, threading
from cpdaemon import Client
from cpsim.testing import CreditPiggy

def test():
    with CreditPiggy() as creditpiggy:
        with Client(creditpiggy.endpoint) as client:
            client.alloc("job-1", credits=5)
            client.claim("job-1", "worker-7")
        creditpiggy.assert_claimed("job-1", machine="worker-7", credits=5)

calls = 0

def count(frame, event, argument):
    global calls
    calls += event == "call"

test()
counts = []
for _ in range(5):
    calls = 0
    threading.setprofile(count)
    sys.setprofile(count)
    test()
    sys.setprofile(None)
    counts.append(calls)
print(min(counts))  # a busy machine makes one look again
"""


def test_a_test_costs_little():
    """It calls some 1,050 functions of Python, in all threads, from the start of its CreditPiggy to the end."""
    counted = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True).stdout
    assert 100 < int(counted) < 1_600
