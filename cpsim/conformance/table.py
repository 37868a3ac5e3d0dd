"""Prints the results of a run."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from cpsim.conformance.clause import SECTIONS, Level, Need
from cpsim.conformance.plugin import DEVIANT, ERROR, FAILED, NOT_VERIFIABLE, PASSED, QUIRK
from cpsim.judge.verdict import Ruling
from cpsim.ui.printable import printable
from cpsim.ui.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from cpsim.conformance.clause import Clause
    from cpsim.conformance.leavings import Left
    from cpsim.conformance.suite import Finding, SuiteResult
    from cpsim.conformance.walk import Walks

STYLES: Final = {PASSED: "green", FAILED: "bold red", QUIRK: "yellow", NOT_VERIFIABLE: "dim", ERROR: "bold magenta"}
HEADINGS: Final = ("clause", "section", "result", "what it says")


def show(outcome: SuiteResult, console: Console, *, verbose: bool = False) -> None:
    """Print which clauses deviate, those that pass too if `verbose`, what cannot be seen, and the verdict."""
    shown = [each for each in outcome.findings if verbose or each.result in DEVIANT]
    if shown:
        _show_rows(shown, console)
    for finding in outcome.findings:
        for figure in finding.measured:
            _print(console, f"\nmeasured by {finding.clause.id}: {figure}")
    for reason, ids in _not_verifiable(outcome.findings).items():
        _print(console, f"\nnot verifiable: {', '.join(ids)}\n  {reason}")
    _show_left(outcome.left, console)
    if outcome.untidied:
        _print(console, "\nwhat is left there was not looked at: the run was interrupted again")
    _print(console, "\n" + summary(outcome))


def show_all(outcome: SuiteResult, console: Console) -> None:
    """Print what was sent and seen of each clause that deviates, and then as `show` does."""
    for finding in outcome.findings:
        show_finding(finding, console)
    show(outcome, console)


def show_finding(finding: Finding, console: Console) -> None:
    """Print what was sent and seen of a clause, if it deviates."""
    if finding.result in DEVIANT:
        _print(console, explained(finding) + "\n")


def _show_rows(findings: Sequence[Finding], console: Console) -> None:
    """Print what each clause came to, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(HEADINGS[-1])
    rows = [_row(finding) for finding in findings]
    for finding, (id, section, result, sentence) in zip(findings, rows, strict=True):
        table.add_row(id, section, Text(result, STYLES[finding.result]), Text(sentence))
    if console.is_terminal:
        print_table(table, console)
    else:  # a line each, however wide
        widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
        for row in (HEADINGS, *rows):
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            _print(console, "  ".join(cells).rstrip())


def show_walks(walks: Walks, console: Console) -> None:
    """Print the result of random sequences, and the lines that repeat the shortest one that deviates."""
    if walks.deviation is not None:
        deviation = walks.deviation
        _print(console, f"deviation: {deviation.what}\n  expected  {deviation.expected}\n  got       {deviation.got}")
        for title, lines in (("in Python", walks.python()), ("in a shell", walks.shell())):
            _print(console, "\n".join([f"\nthe same, {title}; to run it twice, change the ids:\n", *lines]))
    if walks.not_verified:
        _print(console, f"not verifiable: {walks.not_verified}")
    sent = f"{walks.sequences:,} sequences, {walks.commands:,} commands, seed {walks.seed}"
    if walks.interrupted:
        sent += "; interrupted"
    for quirk, count in walks.known_quirks.items():
        _print(console, f"the known quirk {quirk} shows {count:,} times")
    but = " but for known quirks" if walks.known_quirks and walks.ruling is Ruling.VALID else ""
    _show_left(walks.left, console)
    _print(console, f"\nverdict {walks.ruling}{but}: {sent}")


def _show_left(left: Left | None, console: Console) -> None:
    """Print what is left at the target."""
    if left is not None:
        _print(console, "\n" + "\n".join(left.lines()))


def _row(finding: Finding) -> tuple[str, str, str, str]:
    clause = finding.clause
    result = f"{finding.result} {finding.quirk}".rstrip() if finding.result in {FAILED, QUIRK} else finding.result
    sentence = clause.sentence if clause.level is Level.MUST else f"{clause.sentence} (should)"
    return clause.id, clause.section, result, sentence


def explained(finding: Finding) -> str:
    """A finding with all that was sent and seen."""
    clause = finding.clause
    quirk = f" ({finding.quirk})" if finding.quirk else ""
    lines = [
        f"{clause.id}  {finding.result}{quirk}: {clause.sentence}",
        f"  protocol  section {clause.section}, {SECTIONS[clause.section]}",
    ]
    if finding.expected:
        what = finding.detail.partition(": expected ")[0]
        lines += [f"  expected  {what} = {finding.expected}", f"  got       {finding.got}"]
    else:
        lines.append(f"  because   {finding.detail}")
    return "\n".join([*lines, *(f"  | {line}" for line in finding.transcript)])


def summary(outcome: SuiteResult) -> str:
    """The verdict in a line or two."""
    counts = outcome.counts
    parts = [f"{counts[name]:,} {_WORDS[name][counts[name] != 1]}" for name in _WORDS if counts[name]]
    should = sum(finding.result == FAILED and finding.clause.level is Level.SHOULD for finding in outcome.findings)
    if should:
        parts.append(f"{should:,} of the deviations from a should, which does not decide")
    if outcome.interrupted:
        after = f"after {len(outcome.findings):,} of {outcome.planned:,} clauses"
        parts.insert(0, f"interrupted {after if outcome.planned else 'before the first clause'}")
    lines = [f"verdict {outcome.ruling}: {', '.join(parts)}; {outcome.sent:,} commands and requests were sent"]
    if outcome.quirks:
        lines.append(f"quirks  {', '.join(outcome.quirks)}")
    return "\n".join(lines)


_WORDS: Final = {
    PASSED: ("clause passes", "clauses pass"),
    FAILED: ("deviates", "deviate"),
    QUIRK: ("shows a known quirk", "show a known quirk"),
    NOT_VERIFIABLE: ("cannot be verified here", "cannot be verified here"),
    ERROR: ("could not be checked", "could not be checked"),
}


def progress(outcome: SuiteResult) -> str:
    """How far a run is: `57/198, 1 deviation`."""
    counts = outcome.counts
    words = {FAILED: ("deviation", "deviations"), ERROR: ("error", "errors")}
    found = [f"{counts[name]:,} {forms[counts[name] != 1]}" for name, forms in words.items() if counts[name]]
    return ", ".join([f"{len(outcome.findings):,}/{outcome.planned:,}", *(found or ["no deviation"])])


def show_plan(outcome: SuiteResult, console: Console) -> None:
    """Print what each clause would send."""
    for finding in outcome.findings:
        _print(console, f"{finding.clause.id}  {finding.clause.sentence}")
        lines = finding.transcript if finding.result != NOT_VERIFIABLE else (f"nothing: it {finding.detail}",)
        for line in lines:
            _print(console, f"  {line}")
    if outcome.last:
        _print(console, "at the end")
        for line in outcome.last:
            _print(console, f"  {line}")
    count = sum(len(finding.transcript) for finding in outcome.findings)
    _print(
        console,
        f"\n{len(outcome.findings):,} clauses, about {count:,} commands and requests, and those to look and wait",
    )


def show_clauses(clauses: Iterable[Clause], console: Console) -> None:
    """Print the clauses."""
    for clause in clauses:
        needs = ", ".join(need.name.lower() for need in Need if need in clause.needs)
        quirks = f"; may show {', '.join(clause.quirks)}" if clause.quirks else ""
        _print(console, f"{clause.id:<11} {clause.sentence}")
        _print(console, f"{'':<11} {clause.level}, section {clause.section}, needs {needs}{quirks}")


def listed(clauses: Iterable[Clause]) -> list[dict[str, object]]:
    """The same as a document."""
    return [
        {
            "clause": clause.id,
            "section": clause.section,
            "level": str(clause.level),
            "sentence": clause.sentence,
            "needs": [need.name.lower() for need in Need if need in clause.needs],
            "quirks": list(clause.quirks),
        }
        for clause in clauses
    ]


def _not_verifiable(findings: Iterable[Finding]) -> dict[str, list[str]]:
    reasons = defaultdict[str, list[str]](list)
    for finding in findings:
        if finding.result == NOT_VERIFIABLE:
            reasons[finding.detail].append(finding.clause.id)
    return reasons


def _print(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)
