"""What the plugin costs: next to nothing where no test uses it, and little where all do."""

import resource
import statistics
import subprocess
import sys
import time

import pytest

HEAVY = (
    "{'pandas', 'numpy', 'pyarrow', 'locust', 'gevent', 'uvicorn', 'uvloop', 'httptools', 'msgspec', 'faker', 'click'}"
)

LOADING = """
import importlib.metadata, sys, time
import pytest
begun_s = time.process_time()
import cpsim.pytest_plugin
print(time.process_time() - begun_s)
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
    assert "uvicorn" in loaded
    assert not {"numpy", "pandas", "pyarrow", "locust", "gevent", "faker"} & set(loaded.split())


def test_loading_takes_less_than_50_ms():
    times_s = [
        float(subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert statistics.median(times_s) < 0.05


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


def test_a_thousand_tests_take_less_than_25_s_of_one_core(run):
    """What the processor spends on them, so that others on this machine do not count."""

    def spent_s():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before_s, begun_s = spent_s(), time.monotonic()
    run(THOUSAND, "-q", apart=True).assert_outcomes(passed=1000)
    print(f"{spent_s() - before_s:.1f} s of processor, {time.monotonic() - begun_s:.1f} s by the clock")
    assert spent_s() - before_s < 25
