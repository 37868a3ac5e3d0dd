"""Makes docs/conformance.md: which clause finds which quirk, as found by running the suite, and every clause.

python tests/verify/conformance/page.py > docs/conformance.md
"""

import os
import tempfile
from pathlib import Path

from cpdaemon.endpoint import parse_endpoint
from cpsim.fake import ANY_PORT, Fake
from cpsim.quirks import QUIRKS
from cpsim.verify.conformance.clause import SECTIONS, catalogue
from cpsim.verify.conformance.suite import examine
from cpsim.verify.conformance.target import Target

MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")
INVISIBLE = {
    "ack-before-delivery": "the daemon has to be killed",
    "drop-on-error": "the server behind the daemon has to refuse a batch",
    "errors-ignored": "the server behind the daemon has to refuse commands, and the daemon has to show what it does",
    "resend-duplicates": "the reply to a batch has to be lost",
    "busy-when-down": "the server behind the daemon has to be down",
}
"""Quirks that no clause can show, for what it would take."""
FLUSH_INTERVAL_S = {"flush-starves": 0.2}
"""For quirks that show only where the daemon keeps commands for a while."""
HEAD = """\
# The conformance suite

`cpsim verify ENDPOINT` checks an endpoint against [protocol.md](protocol.md), clause by clause. The clauses are a
pytest suite in the package, so what pytest can do with a suite can be done with this one:

    pytest --pyargs cpsim.verify.conformance -p cpsim.verify.conformance.plugin --cp-target 127.0.0.1:5667

`pytest -p cpsim.verify.conformance.plugin --help` lists the options that begin with `--cp-`.

This page is made by `python tests/verify/conformance/page.py > docs/conformance.md`, and a test checks that it is true.

## Which clause finds which quirk

With a quirk switched on alone in the fake, these clauses report it, by its name, and no other clause reports anything.

"""
TAIL = """
What it would take to see the others, which no client of a daemon and a server can see by itself:

"""
CLAUSES = """
## The clauses

What a clause needs: a *daemon* to send frames to, a *server* to send requests to, an*other* project there, or a server
whose *accounts* can be looked into. Where that is not there, the clause is not verifiable, and is never said to pass.
A *should* is where the protocol leaves room; it does not decide the verdict.

"""


def find(quirk):
    """The ids of the clauses that report a quirk when it is switched on alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        interval_s = FLUSH_INTERVAL_S.get(quirk, 0.0)
        options = {"quirks": frozenset([quirk]), "flush_interval_s": interval_s}
        with Fake(dict([MINE, OTHER]), unix=Path("cp.sock"), http=ANY_PORT, **options) as fake:
            server = parse_endpoint(fake.addresses["http"])
            target = Target(daemon=parse_endpoint("./cp.sock"), server=server, credentials=MINE, other=OTHER)
            outcome = examine(target)
        os.chdir("/")
    return [finding.clause.id for finding in outcome.findings if finding.quirk == quirk]


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
    visible = [f"| `{quirk}` | {QUIRKS[quirk].tier} | {', '.join(ids)} |" for quirk, ids in found.items()]
    others = [f"| `{quirk}` | {why} |" for quirk, why in INVISIBLE.items()]
    table = "\n".join(["| quirk | tier | clauses |", "|---|---|---|", *visible, ""])
    rest = "\n".join(["| quirk | what it takes |", "|---|---|", *others, ""])
    return HEAD + table + TAIL + rest + CLAUSES + clauses()


if __name__ == "__main__":
    print(page({quirk: find(quirk) for quirk in QUIRKS if quirk not in INVISIBLE}), end="")
