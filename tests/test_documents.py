"""Everything that README.md and docs/ show is run.

A snippet is run by its language. One that has a file's name beside it is that file: of this project, and then the
snippet must be part of it, or of the reader, and then it is written where the later ones find it; tests are run. A
reader's file that is among the examples, which are checked like other sources, is the whole of it.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from ports import free_port
from prepared import prepared

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FRESH = "python3 -m venv"
PATIENT = {
    "p99_ms<1000": "p99_ms<100000",
    "p99_ms<=100*baseline": "p99_ms<=100000*baseline",
    "--p99-ms 50 ": "--p99-ms 500 ",
}
"""What snippets ask of times, and what is asked here: how long an answer takes is the machine's affair."""
LEFT_BEHIND = ("ready", "forwarding", "creditapi.socket", "site.socket")


class Snippet(NamedTuple):
    """A fenced block: its language, the name of its file if it has one, and its text."""

    language: str
    name: str
    text: str

    @property
    def command(self):
        """What runs it, if it is to be run."""
        if not self.name:
            return {"sh": ["bash", "-euc", self.text], "python": [sys.executable, "-c", self.text]}[self.language]
        if not self.name.startswith("test_"):
            return None
        runner = ["unittest"] if "import unittest\n" in self.text else ["pytest", "-q", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", *runner, self.name]


def snippets(document):
    """The snippets of a document, but for those that want a fresh machine."""
    blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Snippet(*block) for block in blocks if not block[2].startswith(FRESH)]


@pytest.fixture(scope="module")
def programs(tools, tmp_path_factory):
    """A PATH with `tools`, and a `cpsim` that need not import all it needs for each of some 170 commands."""
    folder = tmp_path_factory.mktemp("cpsim")
    with prepared(folder):
        yield os.pathsep.join([str(folder), tools])


@pytest.mark.thorough
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "document", [*filter(snippets, DOCUMENTS)], ids=lambda document: str(document.relative_to(ROOT))
)
def test_the_snippets_run_one_after_the_other(document, tmp_path, programs):
    port = str(free_port())
    tests = []
    for snippet, following in pairwise([*snippets(document), None]):
        if (ROOT / snippet.name).is_file() and snippet.name:
            assert snippet.text in (ROOT / snippet.name).read_text(encoding="utf-8"), snippet.name
            continue
        if snippet.name:
            example = ROOT / "tests" / "examples" / snippet.name
            assert not example.is_file() or example.read_text(encoding="utf-8") == snippet.text, snippet.name
            (tmp_path / snippet.name).write_text(snippet.text, encoding="utf-8")
        for left in LEFT_BEHIND:
            (tmp_path / left).unlink(missing_ok=True)
        command = snippet.command
        if command is None:
            continue
        if is_pytest(snippet):
            tests.append(snippet.name)
            if is_pytest(following):
                continue  # which runs them together
            command, tests = [*command[:-1], *tests], []
        for asked, patient in {"8080": port, **PATIENT}.items():
            command = [part.replace(asked, patient) for part in command]
        status, said = run(command, tmp_path, programs)
        assert status == 0, snippet.text + said
        shows_tracebacks = is_pytest(snippet)  # Celery's log has those of tasks that fail
        assert shows_tracebacks or "Traceback" not in said, snippet.text + said


def is_pytest(snippet):
    """Whether a snippet is a file of tests of the reader's that pytest runs."""
    return snippet is not None and "pytest" in (snippet.command or ()) and not (ROOT / snippet.name).is_file()


def run(command, folder, path):
    """The status of a command and what it said, and nothing of it left running.

    Of the plugins that are here for our own tests, pytest does not load those that take the longest.
    """
    port = str(free_port())  # for Locust's master: other tests may have one
    with subprocess.Popen(
        command,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
        | {"PATH": path, "LOCUST_MASTER_BIND_PORT": port, "LOCUST_MASTER_NODE_PORT": port}
        | {"PYTEST_ADDOPTS": "-p no:anyio -p no:faker -p no:schemathesis"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=600)
        finally:
            with suppress(ProcessLookupError):  # a snippet that failed may have left a server behind
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def test_what_snippets_ask_of_times_is_known():
    shown = "".join(snippet.text for document in DOCUMENTS for snippet in snippets(document))
    asked = {words.strip().removeprefix("--") for words in PATIENT}
    assert set(re.findall(r"p99[\w-]*[<= ]+[\d.][\w.*]*", shown)) == asked


def test_every_example_is_shown_and_so_run():
    shown = {snippet.name for document in DOCUMENTS for snippet in snippets(document)}
    assert {path.name for path in (ROOT / "tests/examples").iterdir() if path.is_file()} <= shown


def test_there_are_two_commands_for_a_fresh_machine():
    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    fresh = [text.strip() for text in re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)]
    fresh = [text for text in fresh if text.startswith(FRESH)]
    assert len(fresh) == 2
    assert fresh[1] in (ROOT / ".ci/run").read_text(encoding="utf-8")


LINKS = [
    (document, link)
    for document in DOCUMENTS
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
]


@pytest.mark.parametrize(("document", "link"), LINKS, ids=lambda part: getattr(part, "name", part))
def test_links_lead_somewhere(document, link):
    assert (document.parent / link).exists()
