"""Makes docs/conformance.md: which clause finds which quirk, as found by running the suite, and every clause.

python tests/conformance/page.py > docs/conformance.md
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from ports import free_port

from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance.clause import SECTIONS, Need, catalogue
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target
from cpsim.fake import ANY_PORT, Fake
from cpsim.quirks import QUIRKS

MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")
OF_THE_MIDDLE = {
    "ack-before-delivery": ["FORWARD-15"],
    "drop-on-error": ["FORWARD-8", "FORWARD-26", "FORWARD-27"],
    "errors-ignored": ["FORWARD-12"],
    "resend-duplicates": ["FORWARD-9"],
    "busy-when-down": ["FORWARD-14"],
}
"""Quirks that show only where the server behind the daemon is ours, and by what."""
OF_BOTH = {
    "flush-starves": ["FORWARD-5"],
    "reorder-classes": ["FORWARD-6"],
    "cut-values": ["FORWARD-23"],
    "single-read": ["FORWARD-22", "FORWARD-23"],
}
"""Quirks of the daemon that show there too."""
FLUSH_INTERVAL_S = {"flush-starves": 0.2}
"""For quirks that show only where the daemon keeps commands for a while."""
PROGRESS = r"(\d+/\d+, (no|\d+) deviations?\n)*"
"""What `cpsim verify --json` says on standard error meanwhile, and nothing else."""
HEAD = """\
# The conformance suite

`cpsim verify ENDPOINT` checks an endpoint against [protocol.md](protocol.md), clause by clause. The clauses are a
pytest suite in the package, so pytest runs them too:

    pytest --pyargs cpsim.conformance -p cpsim.conformance.plugin --cp-target 127.0.0.1:5667

`pytest -p cpsim.conformance.plugin --help` lists the options that begin with `--cp-`.

This page is made by `python tests/conformance/page.py > docs/conformance.md`, and a test checks that it is true.

## Which clause finds which quirk

With one quirk switched on in the fake, these clauses report it by name, and no other clause reports a deviation.
`cpsim verify DAEMON --behind HOST:PORT` checks the FORWARD clauses; the server that the daemon forwards to is then
cpsim's own.

"""
CPSIM = f"{sys.executable} -P -m cpsim"
FLUSH_S = "0.2"
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
CLAUSES = """
## The clauses

The needs: *daemon*, a daemon to send frames to; *server*, a server to send requests to; *other*, a second project
there; *accounts*, a server with cpsim's control API; *behind*, to be the server behind the daemon; *restart*, to
restart the daemon or the server; *failed*, to ask the daemon for refused commands; *thorough*, to be allowed what is
risky at a live system, or takes long. A clause without its needs is not verifiable, and never passes. A *should* is
where the protocol leaves room; it does not decide the verdict.

"""


NONE = "none: the document leaves it open"


def find(quirk):
    """The ids of the clauses that report a quirk when it is switched on alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        interval_s = FLUSH_INTERVAL_S.get(quirk, 0.0)
        options = {"quirks": frozenset([quirk]), "flush_interval_s": interval_s}
        with Fake(dict([MINE, OTHER]), unix=Path("cp.sock"), http=ANY_PORT, **options) as fake:
            server = parse_endpoint(fake.addresses["http"])
            where = {"daemon": parse_endpoint("./cp.sock"), "server": server}
            target = Target(**where, credentials=MINE, other=OTHER, thorough=True)
            elsewhere = {Need.BEHIND, Need.RESTART}
            of_the_pair = [id for id, clause in catalogue().items() if not elsewhere & {*clause.needs}]
            outcome = examine(target, of_the_pair)
        os.chdir("/")
    return [finding.clause.id for finding in outcome.findings if finding.quirk == quirk]


@contextmanager
def middle():
    """Yields examine(*options): what `cpsim verify --behind` says of a `cpsim daemon` with these options; here."""
    here = Path.cwd()
    port = free_port()

    def examine_daemon(*options, clauses=("FORWARD-*",), profile="documented"):
        Path("site.ini").write_text(INI.format(port=port, flush=FLUSH_S), encoding="utf-8")
        Path("secret").write_text("hush", encoding="utf-8")
        start = START.format(here=here, cpsim=CPSIM, options=" ".join(options))
        Path("start.sh").write_text(start, encoding="utf-8")
        Path("restart.sh").write_text(RESTART.format(here=here), encoding="utf-8")
        subprocess.run(["sh", "start.sh"], check=True, timeout=280)
        command = [
            *(*CPSIM.split(), "verify", "./d.sock", "--behind", f"127.0.0.1:{port}", "--project", "p"),
            *("--secret-file", "secret", "--flush-interval", FLUSH_S, "--profile", profile, "--json", "--timeout", "4"),
            *("--restart-command", f"sh {here}/restart.sh {{signal}}"),
            *("--failed-command", f"{CPSIM} daemon --spool {here}/spool --failed"),
            *(part for clause in clauses for part in ("-k", clause)),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        assert re.fullmatch(PROGRESS, run.stderr), run.stderr
        return run.returncode, json.loads(run.stdout)

    try:
        yield examine_daemon
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(Path("pid").read_text(encoding="utf-8")), signal.SIGKILL)


def clauses():
    """The table of the clauses."""
    lines = ["| clause | level | section | needs | what it says |", "|---|---|---|---|---|"]
    for clause in catalogue().values():
        needs = ", ".join(need.name.lower() for need in clause.needs)
        sentence = clause.sentence.replace("|", "\\|")
        lines.append(f"| {clause.id} | {clause.level} | {clause.section} | {needs} | {sentence} |")
    sections = "; ".join(f"{number} {title}" for number, title in SECTIONS.items())
    return "\n".join([*lines, "", f"Sections of protocol.md: {sections}.", ""])


def page(found):
    """The page.

    Args:
        found: the ids of the clauses that report a quirk, by its name.
    """
    rows = [f"| `{quirk}` | {QUIRKS[quirk].tier} | {', '.join(ids) or NONE} |" for quirk, ids in found.items()]
    return HEAD + "\n".join(["| quirk | tier | clauses |", "|---|---|---|", *rows, ""]) + CLAUSES + clauses()


def find_in_the_middle(quirk):
    """Likewise for the clauses about what a daemon forwards."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # without a spool, nothing says what was refused; and only one quirk changes the pace, which takes long to see
        left_out = {"FORWARD-12"} if quirk == "ack-before-delivery" else set()
        left_out |= set() if quirk == "busy-when-down" else {"FORWARD-14"}
        with middle() as examine_daemon:
            names = [name for name in catalogue() if name.startswith("FORWARD-") and name not in left_out]
            _, document = examine_daemon("--quirk", quirk, clauses=names)
        os.chdir("/")
    return [row["id"] for row in document["clauses"] if row["quirk"] == quirk]


if __name__ == "__main__":
    seen = {
        quirk: ([] if quirk in OF_THE_MIDDLE else find(quirk))
        + (find_in_the_middle(quirk) if quirk in OF_THE_MIDDLE or quirk in OF_BOTH else [])
        for quirk in QUIRKS
    }
    print(page(seen), end="")
