"""`cpsim verify URL --restart-command`: a server with a store keeps what it accepted, and one without is found out."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

CPSIM = f"{sys.executable} -P -m cpsim"
START = """
cd "{here}"
rm -f ready
{cpsim} serve --http 127.0.0.1:{port} --project p --secret-file secret {options} --ready-file ready >> log 2>&1 &
echo $! > pid
until [ -e ready ]; do sleep 0.02; done
"""
RESTART = """
cd "{here}"
kill -$1 $(cat pid)
while kill -0 $(cat pid) 2> /dev/null; do sleep 0.02; done
sh start.sh
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "results"),
    [("--store ledger", {"pass"}), ("", {"deviation"})],
    ids=["store", "memory"],
)
def test_what_was_accepted_is_there_after_a_kill(tmp_path, monkeypatch, page, options, results):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    Path("secret").write_text("hush", encoding="utf-8")
    start = START.format(here=tmp_path, cpsim=CPSIM, port=port, options=options)
    Path("start.sh").write_text(start, encoding="utf-8")
    Path("restart.sh").write_text(RESTART.format(here=tmp_path), encoding="utf-8")
    subprocess.run(["sh", "start.sh"], check=True, timeout=280)
    try:
        command = [
            *(*CPSIM.split(), "verify", f"http://127.0.0.1:{port}/api", "--project", "p", "--secret-file", "secret"),
            *("-k", "RESTART-*", "--json", "--restart-command", f"sh {tmp_path}/restart.sh {{signal}}"),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    finally:
        os.kill(int(Path("pid").read_text(encoding="utf-8")), signal.SIGKILL)
    assert re.fullmatch(page.PROGRESS, run.stderr)
    assert {clause["result"] for clause in json.loads(run.stdout)["clauses"]} == results


def test_a_daemon_alone_is_not_restarted():
    command = [*CPSIM.split(), "verify", "127.0.0.1:1", "--restart-command", "true"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 64
    assert "--behind" in run.stderr
