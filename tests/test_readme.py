"""Everything that README.md shows is run."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
FRESH = "python3 -m venv"
SNIPPETS = [(language, text) for language, text in BLOCKS if not text.startswith(FRESH)]
NETCAT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[2])
    sock.sendall(sys.stdin.buffer.read())
    while data := sock.recv(100):
        sys.stdout.buffer.write(data)
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder for the snippets, with stand-ins for tools that not every machine has."""
    folder = tmp_path
    tools = folder / "bin"
    tools.mkdir()
    (folder / "netcat.py").write_text(NETCAT, encoding="utf-8")
    netcat = tools / "nc"
    netcat.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/netcat.py" "$@"\n', encoding="utf-8")
    netcat.chmod(0o755)
    curl = tools / "curl"
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[-1], timeout=10).read().decode())"
    curl.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{fetch}' \"$@\"\n", encoding="utf-8")
    curl.chmod(0o755)
    return folder


def test_the_snippets_run_one_after_the_other(workplace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(workplace / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, text in SNIPPETS:
        for left in ("ready", "forwarding", "creditapi.socket", "site.socket"):
            (workplace / left).unlink(missing_ok=True)
        command = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}[language]
        with subprocess.Popen(
            [*command, text.replace("8080", port)],
            cwd=workplace,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as snippet:
            try:
                said, _ = snippet.communicate(timeout=60)
            finally:
                with suppress(ProcessLookupError):  # a snippet that failed may have left a server behind
                    os.killpg(snippet.pid, signal.SIGKILL)
        assert snippet.returncode == 0, text + said
        assert "Traceback" not in said, text + said


def test_there_are_two_commands_for_a_fresh_machine() -> None:
    fresh = [text.strip() for _, text in BLOCKS if text.startswith(FRESH)]
    assert len(fresh) == 2
    assert fresh[1] in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
