"""`cpsim exec`: a command beside a fake, what it finds in its environment, and what its exit status says."""

import os
import pty
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cpsim.clock import SYSTEM_CLOCK
from cpsim.system.command import CannotExecute, run_command
from cpsim.system.threads import Thread
from cpsim.testing import ManualClock

CPSIM = [sys.executable, "-P", "-m", "cpsim"]
SEND = """
import os, socket, sys
for frame in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.environ["CREDITPIGGY_ENDPOINT"])
        sock.sendall(frame.encode() + b"\\n")
        sock.recv(2)
"""
SENT = ("-P", "-S", "-c", SEND)


def test_the_addresses_are_in_the_environment(cpsim, here):
    script = (
        'env | grep ^CREDITPIGGY_ > variables; cat "$CREDITPIGGY_SECRET_FILE" > secret; test -S "$CREDITPIGGY_ENDPOINT"'
    )
    status, out, err = cpsim("exec", "--project", "physics", "sh", "-c", script)
    assert (status, out) == (0, "")
    assert err == "cpsim: warning: no command has come: does COMMAND use CREDITPIGGY_ENDPOINT?\n"
    variables = dict(line.split("=") for line in (here / "variables").read_text().splitlines())
    assert sorted(variables) == [
        f"CREDITPIGGY_{name}" for name in ("CONTROL", "ENDPOINT", "PROJECT", "SECRET_FILE", "TCP", "URL")
    ]
    assert variables["CREDITPIGGY_PROJECT"] == "physics"
    assert variables["CREDITPIGGY_URL"].replace("/api", "/__cpsim") == variables["CREDITPIGGY_CONTROL"]
    assert len((here / "secret").read_text()) == 32
    assert not Path(variables["CREDITPIGGY_ENDPOINT"]).exists()
    assert not Path(variables["CREDITPIGGY_SECRET_FILE"]).exists()


def test_addresses_and_a_secret_can_be_given(cpsim, here):
    (here / "hush").write_text("hush\n")
    script = (
        'test "$CREDITPIGGY_SECRET_FILE" = "$PWD/hush" && test -S cp.sock && test "${CREDITPIGGY_TCP%:*}" = 127.0.0.1'
    )
    given = ("--unix", "cp.sock", "--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--secret-file", "hush")
    assert cpsim("exec", *given, "--", "sh", "-c", script)[0] == 0


def test_a_good_run_is_silent_and_a_refusal_has_a_status_of_its_own(cpsim):
    good = ("alloc,slot=job-1", "claim,slot=job-1,machine=w")
    rules = ("--rule", "settled-once", "--rule", "no-slot-leaked")
    assert cpsim("exec", *rules, "--", sys.executable, *SENT, *good) == (0, "", "")
    status, out, err = cpsim("exec", sys.executable, *SENT, *good, "claim,slot=job-1,machine=w")
    assert (status, out) == (65, "")
    lines = err.splitlines()
    assert lines[:2] == ["cpsim: project 'demo' breaks the rule no-refusals:", "1 refused by the accounts:"]
    assert "claim,slot=job-1,machine=w   refused: " in lines[2]


def test_what_is_delivered_at_the_end_counts(cpsim):
    leaked = ("--flush-interval", "3600", "--rule", "no-slot-leaked", "--allow-refusals")
    status, _, err = cpsim(
        "exec", *leaked, "--", sys.executable, *SENT, "alloc,slot=job-1", "claim,slot=job-2,machine=w"
    )
    assert status == 65
    assert err.splitlines()[:3] == [
        "cpsim: project 'demo' breaks the rule no-slot-leaked:",
        "slots allocated and never settled: 1:",
        "  job-1: allocated",
    ]
    assert "no-refusals" not in err


def test_a_command_that_fails_has_its_own_status_and_the_record(cpsim):
    script = f'"{sys.executable}" -P -S -c "$0" alloc,slot=job-1 nonsense; exit 3'
    status, _, err = cpsim("exec", "--fault", "daemon.late=0", "sh", "-c", script, SEND)
    assert status == 3
    assert "project 'demo' breaks the rule no-refusals:" in err
    assert "project 'demo'; slots: 1 allocated" in err
    assert "last commands of 1 received:" in err
    assert "faults fired:" in err


def test_what_was_not_delivered_leaves_the_rules_unknown(cpsim):
    given = ("--fault", "server.status=503", "--", sys.executable, *SENT, "alloc,slot=job-1")
    status, _, err = cpsim("exec", *given)
    assert status == 65
    assert "project 'demo': 1 commands were not delivered: nobody knows if rules hold" in err
    assert cpsim("exec", "--allow-refusals", *given)[0] == 0


def test_a_client_that_waits_too_long_breaks_a_rule(cpsim):
    given = ("--fault", "daemon.late=0.05:nth=1", "--longest-wait")
    send = (sys.executable, *SENT, "alloc,slot=job-1")
    status, _, err = cpsim("exec", *given, "10ms", "--", *send)
    assert status == 65
    lines = err.splitlines()
    assert lines[0] == "cpsim: callers that waited longer than 0.01 s:"
    assert lines[1].endswith(" s: alloc,slot=job-1")
    assert cpsim("exec", *given, "2min", "--", *send) == (0, "", "")


def test_projects_that_the_tests_add_are_judged_too(cpsim):
    script = """
import json, os, socket, urllib.request
added = json.load(urllib.request.urlopen(os.environ["CREDITPIGGY_CONTROL"] + "/projects/add?project=tests", b""))
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(added["unix"])
    sock.sendall(b"claim,slot=job-1,machine=w\\n")
    sock.recv(2)
"""
    faulty = ("--fault", "daemon.error:slot=job-9", "--rule", "faults-fired")
    status, _, err = cpsim("exec", *faulty, sys.executable, "-P", "-c", script)
    assert status == 65
    assert "project 'tests' breaks the rule no-refusals:" in err
    assert err.count("faults that never fired: 1:\n  daemon.error:slot=job-9") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["./missing"], 127, "cpsim: ./missing: No such file or directory"),
        (["--", "."], 126, "cpsim: .: Permission denied"),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL, "project 'demo'; slots: none"),
        ([], 64, "Missing argument 'COMMAND...'"),
        (["--rule", "setled-once", "true"], 64, "did you mean 'settled-once'?"),
        (["--project", "a,b", "true"], 64, "'a,b' needs an id without commas"),
        (["--fault", "crash-after-ok", "true"], 2, "serve it in its own process"),
        (["--unix", "missing/cp.sock", "true"], 2, "cannot listen"),
    ],
)
def test_what_cannot_be_run(cpsim, here, arguments, status, said):
    found, out, err = cpsim("exec", *arguments)
    assert (found, out) == (status, "")
    assert said in " ".join(err.split())


def test_a_command_gets_the_signal_and_decides_what_becomes_of_it():
    script = 'trap "exit 7" TERM; kill -TERM $PPID; while :; do :; done'
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(["sh", "-c", script], os.environ, ManualClock()) == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_cannot_be_started_leaves_the_signals_as_they_were():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CannotExecute):
        run_command(["/"], os.environ, ManualClock())
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def without_nohup():
    """Whatever has started the tests, a closed terminal is not ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("without_nohup")
@pytest.mark.parametrize(("trap", "ended_by"), [("", signal.SIGTERM), ('trap "" TERM', signal.SIGKILL)])
def test_a_command_ends_with_the_parent_of_cpsim_and_is_killed_if_it_does_not(here, trap, ended_by):
    asked = []

    def parent():
        asked.append(1)
        return 2 if len(asked) > 1 and Path("began").exists() else 1

    command = ["sh", "-c", f"{trap}\n: > began; exec sleep 1000"]
    assert run_command(command, os.environ, ManualClock(), parent) == 128 + ended_by


def test_a_command_ends_when_a_thread_of_the_fake_has_failed(here, wait_for):
    def fail():
        wait_for(Path("began").exists)
        raise RuntimeError("unexpected")

    Thread(fail, "failing").start()
    status = run_command(["sh", "-c", ": > began; exec sleep 1000"], os.environ, SYSTEM_CLOCK, lambda: 1)
    assert status == 128 + signal.SIGTERM


def is_served(path):
    """Whether somebody listens at a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
        sock.connect(path)
        return True
    return False


@pytest.mark.thorough
@pytest.mark.usefixtures("without_nohup")
def test_the_fake_and_the_command_end_with_the_process_that_has_started_them(here, wait_for):
    inner = "exec sleep 1000"
    script = f"\"{sys.executable}\" -P -m cpsim exec --unix cp.sock -- sh -c 'echo $$ > pid; {inner}'; :"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as starter:
        try:
            pid = int(wait_for(lambda: Path("pid").exists() and Path("pid").read_text()))
            assert is_served("cp.sock")
            starter.kill()

            def is_over():
                with suppress(ProcessLookupError):
                    os.kill(pid, 0)
                    return False
                return not Path("cp.sock").exists()

            wait_for(is_over)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(starter.pid, signal.SIGKILL)


@pytest.mark.thorough
def test_ctrl_c_is_the_commands(here, wait_for):
    outer, inner = pty.openpty()
    script = 'trap "exit 7" INT; : > began; while :; do sleep 0.1; done'
    with subprocess.Popen(
        [*CPSIM, "exec", "--", "sh", "-c", script],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509 - makes it the session's terminal
    ) as process:
        os.close(inner)
        wait_for(lambda: Path("began").exists())
        os.write(outer, b"\x03")
        assert process.wait(100) == 7
    os.close(outer)
