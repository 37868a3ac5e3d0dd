"""The command line as people and shells meet it: examples, completion, colours, pipes, and lists for programs."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys

import click
import pytest

from cpsim.cli import cli, main
from cpsim.cli.load import START
from cpsim.faults.spec import ACTIONS
from cpsim.quirks import QUIRKS

CPSIM = [sys.executable, "-m", "cpsim"]
ESCAPE = "\x1b["


def run(*arguments, **environment):
    """What a command says to a pipe, with its status."""
    env = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}} | environment
    return subprocess.run([*CPSIM, *arguments], capture_output=True, text=True, check=False, env=env, timeout=280)


@pytest.fixture
def call(monkeypatch, capfd, with_pandas):
    """call(*arguments, **environment): the same, in this process."""

    def call(*arguments, **environment):
        with monkeypatch.context() as patched:
            for name in ("NO_COLOR", "FORCE_COLOR"):
                patched.delenv(name, raising=False)
            patched.setattr(sys, "argv", ["cpsim", *arguments])
            for name, value in environment.items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as exited:
                main()
        return subprocess.CompletedProcess(arguments, exited.value.code, *capfd.readouterr())

    return call


def on_a_terminal(*arguments, **environment):
    """What a command says to a terminal."""
    outer, inner = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    env |= {"TERM": "xterm-256color"} | environment
    with subprocess.Popen([*CPSIM, *arguments], stdin=inner, stdout=inner, stderr=inner, env=env) as process:
        os.close(inner)
        said = b""
        while True:
            try:
                piece = os.read(outer, 65536)
            except OSError:  # Linux: nobody is left at the other end
                break
            if not piece:
                break
            said += piece
        os.close(outer)
        process.wait(60)
    return said.decode()


def commands(command=cli, path=()):
    """Every command, with the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = list(commands())


@pytest.mark.parametrize(("path", "command"), ALL, ids=lambda part: " ".join(part) if isinstance(part, tuple) else "")
def test_every_help_has_an_example(call, path, command):
    del command
    words = r"\s+".join(["cpsim", *path])
    assert re.search(rf"^  +(\w+ .*)?{words}\b", call(*path, "--help").stdout.partition("\n\n")[2], re.MULTILINE)


@pytest.mark.parametrize(("path", "command"), ALL, ids=lambda part: " ".join(part) if isinstance(part, tuple) else "")
def test_every_option_says_what_it_is_for(path, command):
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert all(each.help for each in options), path


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("quirks",), ("scenarios",), ("run", "smokey")])
def test_a_pipe_gets_plain_text(arguments):
    done = run(*arguments)
    assert ESCAPE not in done.stdout + done.stderr


def test_a_terminal_gets_progress_and_colours_and_no_color_takes_the_colours(tmp_path):
    shown = on_a_terminal("run", "smoke", "--output", str(tmp_path / "a"))
    assert re.search(r"\x1b\[[\d;]*3\dm", shown)
    plain = on_a_terminal("run", "smoke", "--output", str(tmp_path / "b"), NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38)[;m]", plain)
    assert "valid" in plain


@pytest.mark.parametrize("columns", ["20", "40"])
def test_a_narrow_terminal_loses_nothing(call, here, columns):
    for arguments in (("--help",), ("run", "--help"), ("quirks",), ("reports",)):
        narrow, wide = call(*arguments, COLUMNS=columns), call(*arguments, COLUMNS="200")
        assert narrow.returncode == 0
        assert set(re.findall(r"--[a-z-]+[a-z]", narrow.stdout)) >= set(re.findall(r"^  (--[a-z-]+)", wide.stdout))
    summary = call("run", "smoke", "--virtual", "--json", COLUMNS=columns)
    assert json.loads(summary.stdout)["verdict"] == "valid"


def test_a_narrow_terminal_breaks_no_word_and_no_number(tmp_path):
    summary = on_a_terminal("run", "smoke", "--output", str(tmp_path / "run"), COLUMNS="30", TERM="dumb")
    assert re.search(r"operations +planned +accepted +refused +unknown", summary)
    report = on_a_terminal("report", str(tmp_path / "run"), "summary", COLUMNS="30", TERM="dumb")
    assert re.search(r"allocated +claimed +discarded +expired +outstanding", report)


def test_a_reader_that_has_enough_is_no_error_to_be_seen():
    command = f"{sys.executable} -m cpsim quirks | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout.startswith("ascii-only")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["quirks", "faults", "scenarios", "reports"])
def test_lists_are_there_for_programs(call, name):
    listed = json.loads(call(name, "--json").stdout)
    text = call(name).stdout
    if name == "faults":
        assert [each["action"] for each in listed["actions"]] == list(ACTIONS)
        listed = [*listed["actions"], *({"key": key} for key in listed["keys"])]
    assert len(listed) > 5
    for each in listed:
        assert re.search(rf"^{re.escape(next(iter(each.values())))}\b", text, re.MULTILINE)
    assert all(each.get("effect", each.get("description", "")) in text for each in listed)


@pytest.fixture
def complete(call):
    """complete(*words): what a shell is offered for the last word."""

    def complete(*words):
        done = call(_CPSIM_COMPLETE="zsh_complete", COMP_WORDS=" ".join(["cpsim", *words]), COMP_CWORD=str(len(words)))
        assert done.stderr == ""
        return done.stdout.split("\n")[1::3]

    return complete


def test_a_shell_completes_what_there_is(complete):
    assert complete("ru") == ["run", "runs"]
    assert complete("ser") == ["serve"]
    assert complete("run", "black") == ["black-friday", "black-hole"]
    assert complete("load", "smo") == ["smoke"]
    assert complete("verify", "-k", "claim-15") == ["CLAIM-15"]
    assert complete("run", "--assert", "lat") == ["lateness_p99_ms"]
    assert complete("load", "--assert", "p99_ms[cl") == ["p99_ms[claim]"]
    assert complete("run", "--target", "./a.so") == complete("verify", "./a.so") == ["./a.so"]  # the shell looks
    assert complete("scenarios", "show", "chal") == ["challenge"]
    assert complete("run", "--think") == ["--think-time"]
    assert complete("serve", "--quirk", "") == list(QUIRKS)
    assert complete("serve", "--fault", "server.s") == ["server.status"]
    assert complete("serve", "--profile", "dep") == ["deployed"]
    assert complete("expect", "http://127.0.0.1:1", "cl") == ["claimed"]
    assert complete("exec", "--rule", "no-s") == ["no-slot-leaked"]
    assert complete("faults", "") == ["add", "list", "remove"]
    assert complete("faults", "add", "server.s") == ["server.status"]
    assert complete("completion", "") == ["bash", "zsh", "fish"]
    assert complete("run", "./some/file.to") == ["./some/file.to"]  # the shell looks for files


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_cpsim(call, shell):
    done = call("completion", shell)
    assert done.returncode == 0
    assert "_CPSIM_COMPLETE=" + f"{shell}_complete" in done.stdout


def test_bash_takes_the_script_and_completes(tools):
    script = (
        'eval "$(cpsim completion bash)"; COMP_WORDS=(cpsim scen); COMP_CWORD=1; '
        '$(complete -p cpsim | sed "s/.*-F \\([^ ]*\\).*/\\1/") cpsim scen cpsim; echo "${COMPREPLY[@]}"'
    )
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PATH": tools}, timeout=280
    )
    assert done.stdout.strip() == "scenarios"


@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        (("rnu",), "Did you mean 'run'?"),
        (("run",), "Try 'cpsim run --help' for help."),
        (("run", "smokey"), 'did you mean "smoke"?'),
        (("serve", "--quirk", "re-claim"), "did you mean 'reclaim'?"),
        (("serve", "--fault", "daemon.hangs"), "did you mean 'hang'?"),
        (("run", "smoke", "--assert", "p99<1"), "did you mean 'p99_ms'?"),
        (("run", "smoke", "--target", "http://localhost:1/api"), "--project ID and --secret-file FILE"),
        (("daemon",), "--spool FILE"),
        (("completion", "tcsh"), "'bash', 'zsh', 'fish'"),
    ],
)
def test_an_error_says_what_to_type_next(call, arguments, next_step):
    done = call(*arguments)
    assert done.returncode in {2, 64}
    assert next_step in done.stderr
    assert "Traceback" not in done.stderr


def test_the_clauses_as_a_document(call):
    listed = json.loads(call("verify", "--list", "--json", "-k", "CLAIM-*").stdout)
    assert {each["clause"].partition("-")[0] for each in listed} == {"CLAIM"}
    assert set(listed[0]) == {"clause", "section", "level", "sentence", "needs", "quirks"}


INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
{begin}
"""


def test_ctrl_c_while_the_program_is_loaded():
    code = INTERRUPTED.format(module="cpsim.cli.group", begin="runpy.run_module('cpsim', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=280)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "cpsim: interrupted\n")


def test_ctrl_c_while_locust_is_loaded():
    code = INTERRUPTED.format(module="locust.main", begin=START)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=280)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "cpsim: interrupted\n")
