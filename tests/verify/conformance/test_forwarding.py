"""`cpsim verify DAEMON --behind ADDRESS`: the middle under test, as documented and with each quirk alone."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

FLUSH_S = "0.2"
CPSIM = f"{sys.executable} -P -m cpsim"
START = """
cd "{here}"
rm -f ready
{cpsim} daemon --config site.ini --spool spool {options} --ready-file ready >> log 2>&1 &
until [ -e ready ]; do sleep 0.02; done
"""
RESTART = """
cd "{here}"
pid=$(cat pid)
kill -$1 $pid
while kill -0 $pid 2> /dev/null; do sleep 0.02; done
rm -f pid
sh start.sh
"""
INI = """
[api]
api_url = http://127.0.0.1:{port}/api
api_key = p
api_secret = hush
flush_interval = {flush}
[server]
bind = d.sock
pidfile = pid
"""
DAEMON_QUIRKS = {
    "ack-before-delivery": {"FORWARD-15"},
    "drop-on-error": {"FORWARD-8"},
    "errors-ignored": {"FORWARD-12"},
    "resend-duplicates": {"FORWARD-9"},
    "flush-starves": {"FORWARD-5"},
    "reorder-classes": {"FORWARD-6"},
    "busy-when-down": {"FORWARD-14"},
}


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """Return daemon(*options) -> what `cpsim verify` says of a `cpsim daemon` with these options."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def examine(*options, clauses=("FORWARD-*",), profile="documented"):
        Path("site.ini").write_text(INI.format(port=port, flush=FLUSH_S))
        Path("secret").write_text("hush")
        Path("start.sh").write_text(START.format(here=tmp_path, cpsim=CPSIM, options=" ".join(options)))
        Path("restart.sh").write_text(RESTART.format(here=tmp_path))
        subprocess.run(["sh", "start.sh"], check=True, timeout=30)
        command = [
            *(*CPSIM.split(), "verify", "./d.sock", "--behind", f"127.0.0.1:{port}", "--project", "p"),
            *("--secret-file", "secret", "--flush-interval", FLUSH_S, "--profile", profile, "--json"),
            *("--restart-command", f"sh {tmp_path}/restart.sh {{signal}}"),
            *("--failed-command", f"{CPSIM} daemon --spool {tmp_path}/spool --failed"),
            *(part for clause in clauses for part in ("-k", clause)),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
        assert not run.stderr, run.stderr
        return run.returncode, json.loads(run.stdout)

    yield examine
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(Path("pid").read_text()), signal.SIGKILL)


def broken(document):
    return {(row["id"], row["quirk"]) for row in document["clauses"] if row["result"] in {"deviation", "error"}}


def test_a_daemon_as_documented_keeps_every_promise(daemon):
    status, document = daemon()
    assert broken(document) == set()
    assert (status, document["verdict"]) == (0, "valid")
    assert {row["result"] for row in document["clauses"]} == {"pass"}
    measured = [figure for row in document["clauses"] for figure in row["measured"]]
    assert [figure.partition(":")[0] for figure in measured] == [
        "from acknowledgement to arrival",
        "acknowledged with the server up",
        "acknowledged with the server down and thousands waiting",
    ]


@pytest.mark.parametrize("quirk", DAEMON_QUIRKS)
def test_each_quirk_is_found_by_its_name_and_nothing_else(daemon, quirk):
    others = [f"FORWARD-{number}" for number in range(1, 16) if number != 14 or quirk == "busy-when-down"]
    # without a spool, nothing says what was refused
    forgets = {"FORWARD-12"} if quirk == "ack-before-delivery" else set()
    status, document = daemon("--quirk", quirk, clauses=[name for name in others if name not in forgets])
    assert broken(document) == {(clause, quirk) for clause in DAEMON_QUIRKS[quirk]}
    assert (status, document["quirks"]) == (1, [quirk])


def test_the_daemon_in_production_has_the_quirks_that_are_known(daemon):
    clauses = [f"FORWARD-{number}" for number in range(1, 16) if number not in {12, 14}]
    status, document = daemon("--profile", "deployed", clauses=clauses, profile="deployed")
    assert broken(document) == set()
    assert document["quirks"] == sorted(DAEMON_QUIRKS.keys() - {"errors-ignored", "busy-when-down"})
    assert (status, document["verdict"]) == (0, "valid")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("http://127.0.0.1:1/api", "--behind", "127.0.0.1:0"), "is a server itself"),
        (("./d.sock", "--behind", "nowhere"), "is not HOST:PORT"),
        (("./d.sock", "--behind", "127.0.0.1:0"), "needs --project ID and --secret-file FILE"),
        (("./d.sock", "--behind", "127.0.0.1:0", "--server", "http://127.0.0.1:1/api"), "exclude one another"),
    ],
)
def test_wrong_usage(tmp_path, options, said):
    run = subprocess.run(
        [*CPSIM.split(), "verify", *options], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert run.returncode == 64
    assert said in run.stderr


def test_an_address_that_is_taken(tmp_path):
    (tmp_path / "secret").write_text("hush")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [
            *CPSIM.split(),
            "verify",
            "./d.sock",
            "--behind",
            address,
            "--project",
            "p",
            "--secret-file",
            "secret",
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith(f"cpsim: cannot be the server at {address}: Address already in use")
