"""What a command found, as test cases: JUnit XML, Markdown, and what GitHub's workflows show."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from cpsim.errors import CpsimError, in_one_line
from cpsim.system.replacing import replacing
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

MOST_ANNOTATIONS: Final = 10
"""Annotations of one level that GitHub shows for a step."""
MOST_ROWS: Final = 200
MOST_LETTERS: Final = 100_000
"""Letters of a command's output in Markdown: GitHub takes a megabyte for each step."""


class CaseOutcome(StrEnum):
    """What came of a test case; the value is the name of its element in JUnit XML."""

    PASSED = "passed"
    FAILED = "failure"
    ERROR = "error"
    SKIPPED = "skipped"


WORDS: Final = {
    CaseOutcome.FAILED: "failed",
    CaseOutcome.ERROR: "error",
    CaseOutcome.SKIPPED: "skipped",
    CaseOutcome.PASSED: "passed",
}
OF_RULINGS: Final = {"valid": CaseOutcome.PASSED, "invalid": CaseOutcome.FAILED, "unknown": CaseOutcome.ERROR}


@dataclass(frozen=True, slots=True)
class Case:
    """One test case.

    Attributes:
        name: what is tested, as a sentence; the same in every run.
        outcome: what came of it.
        message: why it did not pass, in a line.
        detail: more about it, in lines.
        properties: of the case, by name; a name may stand several times.
        elapsed_s: seconds that it took.
    """

    name: str
    outcome: CaseOutcome
    message: str = ""
    detail: str = ""
    properties: tuple[tuple[str, str], ...] = ()
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Results:
    """What a command found.

    Attributes:
        verdict: in a word.
        cases: its test cases.
        output: what the command printed for people.
        properties: of all cases together.
    """

    verdict: str
    cases: list[Case] = field(default_factory=list)
    output: str = ""
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> list[Case]:
        """The cases that failed or could not be tried."""
        return [case for case in self.cases if case.outcome in {CaseOutcome.FAILED, CaseOutcome.ERROR}]

    def with_error(self, name: str, message: str) -> Results:
        """The results with one more case, which could not be tried."""
        return replace(self, cases=[*self.cases, Case(name, CaseOutcome.ERROR, message)])


class ResultFiles:
    """The files of `--junit` and `--summary`, and what GitHub's workflows show; a context manager.

    They are written when the context ends, also by an error, which is then a test case. A file of an earlier run is
    removed at the beginning, so that one that is there is of this run.

    Args:
        title: the command, such as "cpsim verify".
        junit: takes JUnit XML.
        summary: takes Markdown.
        describe: what to say of the exception that ends the context; None for nothing.
        environment: that of the process; see GitHub's `GITHUB_ACTIONS` and `GITHUB_STEP_SUMMARY`.

    Raises:
        CpsimError: a file cannot be written.
        OSError: there can be no such file, which shows before the command begins.
    """

    def __init__(
        self,
        title: str,
        junit: Path | None,
        summary: Path | None,
        describe: Callable[[BaseException], str | None] = in_one_line,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._title = title
        self._junit, self._summary = junit, summary
        self._describe = describe
        self._step_summary = environment.get("GITHUB_STEP_SUMMARY")
        self._annotates = environment.get("GITHUB_ACTIONS") == "true"
        self._results: Results | None = None

    @property
    def are_wanted(self) -> bool:
        """Whether anybody takes the results."""
        return bool(self._junit or self._summary or self._step_summary or self._annotates)

    def add(self, make: Callable[[], Results]) -> None:
        """Take the results of the command, which are only made if they are wanted."""
        if self.are_wanted:
            self._results = make()

    def fail(self, why: str) -> None:
        """Take why the command did not run to its end, beside its results, if there are any."""
        self._results = (self._results or Results("unknown")).with_error("the command ran to its end", why)

    def __enter__(self) -> Self:
        for path in filter(None, (self._junit, self._summary)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                path.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        why = None if error is None else self._describe(error)
        if why is not None:
            self.fail(why)
        results = self._results
        if results is None or not self.are_wanted:
            return
        failures = [
            *_written("--junit", self._junit, junit(self._title, results)),
            *_written("--summary", self._summary, markdown(self._title, results).encode()),
        ]
        if self._step_summary:
            try:
                with Path(self._step_summary).open("a", encoding="utf-8") as file:
                    file.write(markdown(self._title, results) + "\n")
            except OSError as problem:
                print(f"cpsim: GITHUB_STEP_SUMMARY: {problem.strerror}", file=sys.stderr)
        if self._annotates:
            for line in workflow_commands(self._title, results):
                print(line, file=sys.stderr)
        if failures and error is None:
            raise CpsimError("; ".join(failures))
        for failure in failures:
            print(f"cpsim: {failure}", file=sys.stderr)


def _written(option: str, path: Path | None, content: bytes) -> list[str]:
    """Write a file; returns why it could not be written."""
    if path is None:
        return []
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        return [f"{option} {path} cannot be written: {error.strerror}"]
    return []


def junit(title: str, results: Results) -> bytes:
    """Results as JUnit XML, in UTF-8."""
    counts = Counter(case.outcome for case in results.cases)
    figures = {
        "name": title,
        "tests": str(len(results.cases)),
        "failures": str(counts[CaseOutcome.FAILED]),
        "errors": str(counts[CaseOutcome.ERROR]),
        "skipped": str(counts[CaseOutcome.SKIPPED]),
        "time": f"{sum(case.elapsed_s for case in results.cases):.3f}",
    }
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", figures)
    _add_properties(suite, [("verdict", results.verdict), *results.properties.items()])
    for case in results.cases:
        element = ET.SubElement(
            suite, "testcase", {"classname": title, "name": printable(case.name), "time": f"{case.elapsed_s:.3f}"}
        )
        _add_properties(element, case.properties)
        if case.outcome is not CaseOutcome.PASSED:
            found = ET.SubElement(element, case.outcome, {"message": printable(case.message)})
            found.text = printable(case.detail or case.message)
    ET.indent(root)
    data: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return data + b"\n"


def _add_properties(element: ET.Element, properties: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> None:
    if properties:
        group = ET.SubElement(element, "properties")
        for name, value in properties:
            ET.SubElement(group, "property", {"name": printable(name), "value": printable(value)})


def markdown(title: str, results: Results) -> str:
    """Results as Markdown: the verdict, what did not pass, and what the command printed."""
    counts = Counter(case.outcome for case in results.cases)
    told = ", ".join(f"{counts[outcome]:,} {word}" for outcome, word in WORDS.items() if counts[outcome])
    lines = [f"### {_inert(title)}: {_inert(results.verdict)}", "", told or "no checks"]
    if results.bad:
        lines += ["", "| | check | why |", "| --- | --- | --- |"]
        for case in results.bad[:MOST_ROWS]:
            lines.append(f"| {WORDS[case.outcome]} | {_inert(case.name)} | {_inert(case.message)} |")
        if len(results.bad) > MOST_ROWS:
            lines.append(f"| | and {len(results.bad) - MOST_ROWS:,} more | |")
    if results.output:
        output = printable(results.output.strip("\n"))
        if len(output) > MOST_LETTERS:
            output = f"{output[:MOST_LETTERS]}\n..."
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", output)), default=0))
        lines += ["", f"{fence}text", output, fence]
    return "\n".join(lines) + "\n"


def _inert(text: str) -> str:
    """A text in one line, as Markdown shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&@:])", r"\\\1", " ".join(printable(text).split()))


def workflow_commands(title: str, results: Results) -> list[str]:
    """Workflow commands by which GitHub shows what did not pass."""
    shown = results.bad if len(results.bad) <= MOST_ANNOTATIONS else results.bad[: MOST_ANNOTATIONS - 1]
    lines = [_annotation(f"{title}: {case.name}", case.message or results.verdict) for case in shown]
    if len(shown) < len(results.bad):
        lines.append(_annotation(title, f"{len(results.bad) - len(shown):,} more did not pass"))
    return lines


def _annotation(title: str, message: str) -> str:
    """A workflow command `::error`; colons and commas would end its title, and a line break the command."""
    data, name = (
        printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for text in (message, title)
    )
    return f"::error title={name.replace(':', '%3A').replace(',', '%2C')}::{data}"
