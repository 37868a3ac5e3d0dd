"""HTCondor's job hooks, the files that docs/how-to/htcondor.md shows: called as its manual says that it calls them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOOKS = Path(__file__).parents[1] / "examples/htcondor"
AD = """\
ClusterId = 12
Cmd = "/home/ann/simulate,credits=1000000"
GlobalJobId = "submit.example.org#12.0#1700000000"
JobPrio = 0
NumShadowStarts = 1
Owner = "ann"
ProcId = 0
RequestCpus = 2
Requirements = (TARGET.Arch == "X86_64") && (TARGET.OpSys == "LINUX") && (TARGET.Owner =?= "ann")
"""
"""The ClassAd of a job, in part."""
SUCCESS = {"ExitBySignal": "false", "ExitCode": "0"}
SLOT = "submit.example.org#12.0#1700000000#1"


@pytest.fixture
def call(tmp_path, creditpiggy, tools):
    """call(hook, ad, *arguments): what a hook prints, and what it says on standard error."""
    shutil.copytree(HOOKS, tmp_path / "hooks")
    settings = tmp_path / "hooks/settings.sh"
    text = settings.read_text(encoding="utf-8").replace("PATH=/usr/bin:/bin", f"PATH={tools}")
    address = creditpiggy.tcp.replace(":", " ")
    settings.write_text(text.replace("-w 5 creditpiggy.example.org 5667", f"-w 60 {address}", 1), encoding="utf-8")

    def call(hook, ad, *arguments):
        command = [tmp_path / f"hooks/{hook}.sh", *arguments]
        done = subprocess.run(command, input=ad, env={}, capture_output=True, text=True, check=False)
        assert done.returncode == 0
        return done.stdout, done.stderr

    return call


def with_attributes(ad, attributes):
    """An ad with attributes in the place of others, or besides."""
    kept = [line for line in ad.splitlines() if line.partition(" = ")[0] not in attributes]
    return "\n".join([*kept, *(f"{name} = {value}" for name, value in attributes.items())]) + "\n"


def prepared(call, ad=AD):
    """The ad of a job that has begun a minute and a half ago."""
    printed, errors = call("prepare_job", ad)
    assert errors == ""
    attributes = dict(line.split(" = ") for line in printed.splitlines())
    assert attributes.keys() == {"CreditPiggySlot", "CreditPiggyBegan"}
    return with_attributes(ad, attributes | {"CreditPiggyBegan": int(attributes["CreditPiggyBegan"]) - 90})


def test_a_job_that_succeeds_is_credited_to_the_machine(call, creditpiggy):
    ad = prepared(call)
    creditpiggy.assert_outstanding(SLOT, min=1, meta={"owner": "ann"})
    assert call("job_exit", with_attributes(ad, SUCCESS), "exit") == ("", "")
    slot = creditpiggy.assert_claimed(SLOT, machine=os.uname().nodename)
    assert slot.counters["job/cpuusage"] >= 180
    assert slot.granted == slot.counters["job/cpuusage"] // 60 + 1
    creditpiggy.assert_settled_once()


@pytest.mark.parametrize(
    ("how", "attributes", "reason"),
    [
        ("exit", {"ExitCode": "3"}, "exit-3"),
        ("exit", {"ExitBySignal": "TRUE", "ExitSignal": "9"}, "signal-9"),
        ("remove", {}, "remove"),
        ("hold", {}, "hold"),
        ("evict", {}, "evict"),
    ],
)
def test_any_other_end_is_not(call, creditpiggy, how, attributes, reason):
    assert call("job_exit", with_attributes(prepared(call), SUCCESS | attributes), how) == ("", "")
    creditpiggy.assert_discarded(SLOT, reason=reason)
    creditpiggy.assert_settled_once()


def test_each_run_has_a_slot(call, creditpiggy):
    call("job_exit", prepared(call), "evict")
    again = prepared(call, with_attributes(AD, {"NumShadowStarts": "2", "RequestCpus": "ifThenElse(true, 2, 1)"}))
    call("job_exit", with_attributes(again, SUCCESS), "exit")
    creditpiggy.assert_discarded(SLOT)
    slot = creditpiggy.assert_claimed(f"{SLOT[:-1]}2")
    assert 90 <= slot.counters["job/cpuusage"] < 180


def test_what_a_user_writes_forges_nothing(call, creditpiggy):
    prepared(call, with_attributes(AD, {"Owner": '"ann,credits=9\\"="'}))
    creditpiggy.assert_outstanding(SLOT, meta={"owner": "ann_credits_9__"})


def test_the_configuration_names_the_hooks():
    named = re.findall(r"_HOOK_\w+ = .*/(\w+\.sh)$", (HOOKS / "creditpiggy.conf").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in HOOKS.iterdir() if os.access(path, os.X_OK))


def test_a_job_runs_without_a_daemon_and_is_not_credited(call, creditpiggy):
    with creditpiggy.faults.refuse():
        assert call("prepare_job", AD) == ("", f"not taken by CreditPiggy: alloc,slot={SLOT},min=1,expire=50400\n")
        assert call("job_exit", with_attributes(AD, SUCCESS), "exit") == ("", "")
    assert creditpiggy.journal == []
