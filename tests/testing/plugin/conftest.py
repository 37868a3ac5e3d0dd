"""Test runs inside tests: what the plugin does to a project that uses it."""

import numpy as np  # noqa: F401 - a run in this process forgets what it has imported, and numpy cannot be imported twice
import pytest

JOB_MANAGER = """
from cpdaemon import Client

def run_job(endpoint, job, on, credits=5):
    with Client(endpoint) as client:
        client.alloc(job, credits=credits)
        client.counters(job, **{"job/events": 1000})
        client.claim(job, on)
"""


@pytest.fixture
def project(pytester):
    """A folder with a job manager; `pytester.makepyfile` adds the tests, which import `run_job` from it."""
    pytester.makepyfile(manager=JOB_MANAGER)
    pytester.syspathinsert()
    return pytester


@pytest.fixture
def run(project, monkeypatch):
    """Runs the tests of a source, in this process or apart from it, and returns what came of it.

    No plugins are loaded but those named, by their entry points: others would take most of the time.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(source, *options, apart=False, plugins=("cpsim",)):
        project.makepyfile(test_it=source)
        start = project.runpytest_subprocess if apart else project.runpytest_inprocess
        return start(*(f"-p{plugin}" for plugin in ("no:cacheprovider", *plugins)), *options)

    return run
