"""The package needs nothing but the interpreter, and little of that."""

import shutil
import subprocess
import sys
from pathlib import Path

import cpdaemon

SEND = """
import sys
sys.path.insert(0, sys.argv[1])
import cpdaemon
cpdaemon.cpapi_setup("./cp.sock")
cpdaemon.cpapi_alloc("x", credits=5)
print(*sys.modules)
"""


def test_it_sends_from_a_bare_interpreter(unix_peer, tmp_path):
    def handle(connection, peer):
        peer.received.append(connection.recv(1500))
        connection.sendall(b"OK")

    peer = unix_peer(handle)
    shutil.copytree(Path(cpdaemon.__file__).parent, tmp_path / "bare" / "cpdaemon")
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", SEND, str(tmp_path / "bare")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert peer.received == [b"alloc,slot=x,credits=5"]

    heavy = {"dataclasses", "hashlib", "inspect", "json", "re", "ssl", "typing", "http", "urllib", "pathlib"}
    assert heavy.isdisjoint(run.stdout.split())
