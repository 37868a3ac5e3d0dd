"""Slurm's hooks, the files that docs/how-to/slurm.md shows: in a Slurm of the test's own, and each by itself."""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import slurm_cluster

HOOKS = Path(__file__).parents[1] / "examples/slurm"
SETTINGS = (HOOKS / "settings.sh").read_text(encoding="utf-8")
PLACE = {
    "/etc/slurm/slurm.conf": "slurm.conf",
    "/var/lib/creditpiggy": "state",
    "/var/run/creditapi.socket": "creditapi.socket",
}
"""Where a site has what the test has in a folder."""
ENDLESS = "trap 'exit 0' TERM; touch {running}; sleep 300 & wait"
"""A job that exits with 0 when it is told to end."""
AT_THE_SECOND_TIME = '[ "$SLURM_RESTART_COUNT" ] || { touch {running}; sleep 300; }'
"""A job that ends if it is run again."""


@pytest.fixture
def place():
    """A folder with a short path, which other users can enter."""
    with tempfile.TemporaryDirectory(prefix="cps-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "state").mkdir()
        yield path


@pytest.fixture
def hooks(place, creditpiggy, tools):
    """The hooks, with the settings of this place."""
    if shutil.which("setsid") is None:
        pytest.skip("no setsid: Slurm's hooks are for Linux")
    shutil.copytree(HOOKS, place / "hooks")
    settings = place / "hooks/settings.sh"
    text = SETTINGS.replace("/usr/bin:/bin", tools)
    for shown, name in PLACE.items():
        text = text.replace(shown, str(place / name))
    settings.write_text(text.replace("nc -w 5", "nc -w 60", 1), encoding="utf-8")
    creditpiggy.listen_at(place / "creditapi.socket", mode=0o666)
    return place / "hooks"


# In a Slurm


@pytest.fixture
def slurm(place, hooks, wait_for):
    """A Slurm with these hooks."""
    if why_not := slurm_cluster.why_not():
        assert slurm_cluster.REQUIRED not in os.environ, why_not
        pytest.skip(why_not)
    shutil.chown(place / "state", "slurm", "slurm")
    with slurm_cluster.slurm(place, hooks, wait_for) as cluster:
        yield cluster


@pytest.fixture
def jobs(slurm, place, wait_for):
    """Jobs that have ended, are running, or will never run: their ids by what becomes of them."""
    running = place / "running"
    running.mkdir()
    running.chmod(0o777)

    def submit(script, *options):
        return slurm.submit(script.replace("{running}", f"{running}/$SLURM_JOB_ID"), *options)

    made = {
        "overdue": submit(ENDLESS, "--time=1"),
        "cancelled": submit(ENDLESS),
        "requeued": submit(AT_THE_SECOND_TIME, "--requeue"),
        "given up": submit(AT_THE_SECOND_TIME, "--requeue"),
        "lost": submit(ENDLESS, "--no-requeue", "--partition=failing"),
        "lost once": submit(AT_THE_SECOND_TIME, "--requeue", "--partition=failing"),
    }
    wait_for(lambda: len([*running.iterdir()]) == len(made))
    submit("true", "--array=1-8")
    submit('[ "$SLURM_ARRAY_TASK_ID" != 2 ]', "--array=1-3")
    for script in ("true", "exit 3", "kill -9 $$", "exit 255"):
        submit(script)
    submit("sleep 1.1", "--cpus-per-task=3")
    submit("true", "--nodes=2")
    return made | {
        "named": submit("true", "--job-name=a,credits=1000000"),
        "held": submit("true", "--hold"),
        "not begun": submit("true", "--begin=now+1hour"),
        "held array": submit("true", "--hold", "--array=1-3"),
        "cancelled in its prolog": submit(ENDLESS, "--hold"),
    }


@pytest.mark.timeout(400)
def test_what_slurm_has_noted_is_what_is_credited(creditpiggy, slurm, jobs, place, wait_for):
    slurm.command("scontrol", "update", f"jobid={jobs['overdue']}", "endtime=now")
    slurm.kill_node("n3")
    slurm.command("scontrol", "requeue", f"{jobs['requeued']},{jobs['given up']}")
    slurm.wait_for_jobs("completing")
    with creditpiggy.faults.late(3, kind="alloc", slot=f"cp-{jobs['cancelled in its prolog']}"):
        slurm.command("scontrol", "release", jobs["cancelled in its prolog"])
        wait_for(lambda: creditpiggy.faults.firings)
        cancelled = ("cancelled", "given up", "held", "not begun", "held array", "cancelled in its prolog")
        slurm.command("scancel", *(jobs[each] for each in cancelled))
        creditpiggy.wait_for_discard(f"cp-{jobs['cancelled in its prolog']}", timeout_s=100)
    slurm.start_node("n3")
    slurm.wait_for_jobs()
    wait_for(lambda: not [*(place / "state").iterdir()])  # the last hook is run when the last job has ended
    wait_for(lambda: all(slot.state in {"claimed", "discarded"} for slot in creditpiggy.slots.values()))

    record = slurm.record()
    earlier = {jobs["requeued"]: "requeued", jobs["given up"]: "requeued", jobs["lost once"]: "node_fail"}
    expected = dict(chain.from_iterable(outcomes(job, earlier.get(job["JobId"])) for job in record))
    creditpiggy.assert_outcomes({name: outcome for name, (outcome, *_) in expected.items()})
    slots = creditpiggy.slots
    assert {name: (slot.state, slot.machine or slot.reason, slot.meta.get("exit")) for name, slot in slots.items()} == {
        name: tuple(outcome) for name, (*outcome, _) in expected.items()
    }
    used = {name: cpu_s for name, (*_, cpu_s) in expected.items() if cpu_s is not None}
    assert {name: slots[name].counters["job/cpuusage"] for name in used} == used
    assert {slot.granted for slot in slots.values() if slot.state == "claimed"} == {1}
    ended = Counter(job["JobState"] for job in record)
    assert ended == {"COMPLETED": 16, "FAILED": 4, "CANCELLED": 6, "TIMEOUT": 1, "NODE_FAIL": 1}
    assert slots[f"cp-{jobs['named']}"].meta["name"] == "a_credits_1000000"
    creditpiggy.assert_settled_once()
    creditpiggy.assert_no_slot_leaked()
    creditpiggy.assert_no_claim_before_alloc()


def outcomes(job, reason_of_earlier):
    """A job's slots, by Slurm's record of it: state, machine or reason, exit status, and CPU seconds if it has them."""
    name = f"cp-{job['JobId']}" if "ArrayJobId" not in job else f"cp-{job['ArrayJobId']}_{job['ArrayTaskId']}"
    *earlier, last = (f"{name}-r{run}" if run else name for run in range(int(job["Restarts"]) + 1))
    for run in earlier:
        yield run, ("discarded", reason_of_earlier, None, None)
    if not job["NodeList"]:
        return  # it was not run, or not again
    hours, minutes, seconds = map(int, job["RunTime"].split(":"))
    cpu_s = (hours * 3600 + minutes * 60 + seconds) * int(job["NumCPUs"])
    state = job["JobState"].lower()
    if state == "completed":
        yield last, ("claimed", job["BatchHost"], job["ExitCode"], cpu_s)
    else:
        yield last, ("discarded", state, job["ExitCode"] if state == "failed" else None, cpu_s)


# One hook after the other, with what Slurm gives them


@pytest.fixture
def call(hooks, place):
    """call(hook, **variables): run a hook as Slurm does, for job 7 unless another is named."""
    (place / "bin").mkdir()
    scontrol = place / "bin/scontrol"  # this one needs no configuration
    scontrol.write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "n1\\nn2\\n"\n', encoding="utf-8")
    scontrol.chmod(0o755)
    settings = hooks / "settings.sh"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("PATH=", f"PATH={place}/bin:"), encoding="utf-8")
    given = {
        "prolog_slurmctld": {"SLURM_CLUSTER_NAME": "cp", "SLURM_JOB_ID": "7", "SLURM_JOB_USER": "ann"}
        | {"SLURM_JOB_PARTITION": "all", "SLURM_JOB_NAME": "simulate", "SLURM_JOB_RESTART_COUNT": "0"},
        "job_completed": {"JOBID": "7", "JOBSTATE": "COMPLETED", "NODES": "n[1-2]", "EXITCODE": "0:0", "PROCS": "4"}
        | {"START": "1700000000", "END": "1700000100"},
    }

    def call(hook, **variables):
        done = subprocess.run(
            [hooks / f"{hook}.sh"], env=given[hook] | variables, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    return call


@pytest.fixture
def left(place):
    """left(): the names of the files that hooks have left."""
    return lambda: sorted(path.name for path in (place / "state").iterdir())


def test_a_run_is_credited_by_the_minutes_of_its_processors(call, creditpiggy, left):
    call("prolog_slurmctld")
    call("job_completed")
    creditpiggy.assert_claimed("cp-7", machine="n1", credits=7, counters={"job/cpuusage": 400}, meta={"exit": "0:0"})
    assert left() == []


def test_who_comes_second_settles(call, creditpiggy, left):
    call("job_completed", JOBSTATE="CANCELLED", START="4000000000", END="4000000001")
    call("prolog_slurmctld")
    creditpiggy.assert_discarded("cp-7", reason="cancelled", counters={"job/cpuusage": 4})
    assert left() == []


def test_what_an_earlier_run_has_left_is_none_of_the_next_ones_business(call, creditpiggy, left):
    call("job_completed", JOBSTATE="PENDING")  # its prolog was killed before it did anything
    call("prolog_slurmctld", SLURM_JOB_RESTART_COUNT="1")
    call("prolog_slurmctld", SLURM_JOB_RESTART_COUNT="2")  # nobody was told of the end of the one before
    call("job_completed")
    creditpiggy.assert_outstanding("cp-7-r1")
    creditpiggy.assert_claimed("cp-7-r2")
    assert left() == []


def test_a_controller_that_is_restarted_allocates_once(call, creditpiggy):
    call("prolog_slurmctld", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="1")
    call("prolog_slurmctld", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="1")
    assert [*creditpiggy.slots] == ["cp-6_1"]


def test_a_job_that_is_resized_or_was_not_begun_is_not_settled(call, creditpiggy, left):
    call("prolog_slurmctld")
    call("job_completed", JOBSTATE="RESIZING")
    call("job_completed", JOBSTATE="CANCELLED", JOBID="8", NODES="")
    creditpiggy.assert_outstanding("cp-7")
    assert left() == ["7"]


@pytest.mark.parametrize("fault", ["daemon.hang", "refuse"])
def test_a_job_runs_without_a_daemon_and_is_not_credited(call, hooks, creditpiggy, left, place, fault):
    settings = hooks / "settings.sh"
    settings.write_text(settings.read_text(encoding="utf-8").replace("nc -w 60", "nc -w 1"), encoding="utf-8")
    with creditpiggy.faults.during(fault):
        call("prolog_slurmctld")
    call("job_completed")
    assert creditpiggy.journal == []
    assert left() == ["not-taken"]
    assert (place / "state/not-taken").read_text("utf-8") == "alloc,slot=cp-7,min=1,expire=50400\n"


@pytest.mark.parametrize("program", ["nc", "ncat", "socat"])
@pytest.mark.parametrize("to", ["DAEMON", "5667"])
def test_each_way_to_talk_reaches_the_daemon(creditpiggy, program, to):
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    (way,) = re.findall(rf"^(?:# )?talk\(\) {{ ((?:timeout 5 )?{program} .*{to}.*); }}$", SETTINGS, re.MULTILINE)
    script = re.sub(r"\b5\b", "60", way).replace("127.0.0.1", "$HOST").replace("5667", "$PORT")
    host, port = creditpiggy.tcp.split(":")
    environment = {"PATH": os.environ["PATH"], "DAEMON": creditpiggy.unix, "HOST": host, "PORT": port}
    done = subprocess.run(
        ["sh", "-c", script], input=b"alloc,slot=job-1\n", env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"OK")
    creditpiggy.assert_outstanding("job-1")
