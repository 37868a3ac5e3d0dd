"""A job manager in shell, in a process of its own, and CreditPiggy."""

import subprocess
from pathlib import Path

import pytest

RUN_JOBS = Path(__file__).with_name("run_jobs.sh")


def run_jobs(jobs):
    """Runs a list of jobs, and returns what came of it; CreditPiggy's addresses are in the environment."""
    return subprocess.run(["sh", RUN_JOBS], input=jobs, capture_output=True, text=True, check=False)


@pytest.mark.creditpiggy(environment=True)
def test_jobs_are_credited(creditpiggy):
    done = run_jobs("job-1 worker-7 echo 1000\njob-2 worker-8 exit 3\n")
    assert done.returncode == 0, done.stderr
    creditpiggy.assert_claimed("job-1", machine="worker-7", counters={"job/success": 1, "job/events": 1000})
    creditpiggy.assert_discarded("job-2", reason="exit-3")
    creditpiggy.assert_settled_once("job-1", "job-2")
    creditpiggy.assert_no_slot_leaked()


@pytest.mark.creditpiggy(environment=True)
def test_what_is_not_taken_is_not_run(creditpiggy, tmp_path):
    with creditpiggy.faults.error(kind="alloc", nth=1):
        done = run_jobs(f"job-1 worker-7 touch {tmp_path}/ran\njob-2 worker-7 echo 5\n")
    assert done.returncode == 1
    assert done.stderr == "not taken by CreditPiggy: alloc,slot=job-1,credits=5\n"
    assert list(creditpiggy.slots) == ["job-2"]
    assert list(tmp_path.iterdir()) == []
