"""A run of the suite, and its verdict."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from cpsim.conformance import plugin
from cpsim.conformance.clause import FILES, Level, catalogue, is_chosen
from cpsim.conformance.plugin import (
    DEVIANT,
    ERROR,
    FAILED,
    NOT_VERIFIABLE,
    PASSED,
    QUIRK,
    TARGET,
    TARGET_VIEW,
    clause_of,
)
from cpsim.conformance.target import reach, rehearsed
from cpsim.conformance.tidying import announced
from cpsim.errors import CpsimError
from cpsim.judge.verdict import Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cpsim.conformance.clause import Clause
    from cpsim.conformance.leavings import Left
    from cpsim.conformance.target import Target, TargetView

FOLDER: Final = Path(__file__).parent
USER_VARIABLES: Final = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
NO_AUTOLOAD: Final = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"


@dataclass(frozen=True)
class Finding:
    """The result of one clause.

    Attributes:
        clause: which.
        result: pass, deviation, known quirk, not verifiable, error, or planned.
        quirk: the quirk that the deviation is, by name; empty if it is none that is known.
        detail: a sentence.
        expected: what the protocol says.
        got: what came back.
        transcript: what was sent and seen, a line each.
        measured: figures, each as a sentence.
        elapsed_s: seconds that it took.
    """

    clause: Clause
    result: str
    quirk: str = ""
    detail: str = ""
    expected: str = ""
    got: str = ""
    transcript: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    elapsed_s: float = 0.0

    def document(self) -> dict[str, Any]:
        """It as JSON has it."""
        clause = self.clause
        return {
            "id": clause.id,
            "sentence": clause.sentence,
            "section": clause.section,
            "level": clause.level.value,
            "tier": clause.tier,
            "result": self.result,
            "quirk": self.quirk or None,
            "detail": self.detail or None,
            "expected": self.expected or None,
            "got": self.got or None,
            "transcript": list(self.transcript),
            "measured": list(self.measured),
        }


@dataclass
class SuiteResult:
    """The result of a run.

    Attributes:
        target: what was examined.
        findings: one for each clause that was chosen, or was reached before an interruption.
        planned: how many clauses were chosen.
        interrupted: whether the run ended before its end.
        untidied: whether its end, when what is outstanding is discarded, was interrupted too.
        sent: how many commands and requests that took.
        left: what is left at the target; None if nothing was sent to it.
        last: what the end of the run would send, in a dry run.
    """

    target: Target
    findings: list[Finding] = field(default_factory=list)
    planned: int = 0
    interrupted: bool = False
    untidied: bool = False
    sent: int = 0
    left: Left | None = None
    last: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How many clauses came to each result."""
        return Counter(finding.result for finding in self.findings)

    @property
    def deviant(self) -> dict[str, str]:
        """The clauses that did not pass, though they were visible: their ids, and the quirk that each names."""
        return {finding.clause.id: finding.quirk for finding in self.findings if finding.result in DEVIANT}

    @property
    def quirks(self) -> list[str]:
        """The names of the quirks that were found."""
        return sorted({finding.quirk for finding in self.findings} - {""})

    @property
    def ruling(self) -> Ruling:
        """Invalid if a must is broken; else unknown if not all could be run, or nothing could be seen; else valid."""
        if any(finding.result == FAILED and finding.clause.level is Level.MUST for finding in self.findings):
            return Ruling.INVALID
        counts = self.counts
        seen = counts[PASSED] + counts[QUIRK] + counts[FAILED]
        return Ruling.VALID if seen and not (counts[ERROR] or self.interrupted) else Ruling.UNKNOWN

    def document(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {
            "endpoint": str(self.target),
            "profile": self.target.profile,
            "verdict": self.ruling.value,
            "interrupted": self.interrupted,
            "counts": {name: self.counts[name] for name in (PASSED, FAILED, QUIRK, NOT_VERIFIABLE, ERROR)},
            "quirks": self.quirks,
            "commands": self.sent,
            "left": None if self.left is None else self.left.document(),
            "clauses": [finding.document() for finding in self.findings],
        }


class _Collector:
    """The pytest plugin that collects the result of each clause."""

    def __init__(
        self,
        target: Target,
        target_view: TargetView,
        on_clause: Callable[[str], None],
        on_finding: Callable[[SuiteResult], None],
    ) -> None:
        self.outcome = SuiteResult(target)
        self._target_view = target_view
        self._on_clause, self._on_finding = on_clause, on_finding
        self._clauses = catalogue()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[TARGET] = self.outcome.target
        config.stash[TARGET_VIEW] = self._target_view

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.outcome.planned = len(session.items)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        found = clause_of(item)
        if found is not None:
            self._on_clause(found.id)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = {name: str(value) for name, value in report.user_properties}
        if report.when == "teardown" or "result" not in said:
            return
        self.outcome.findings.append(
            Finding(
                self._clauses[said["clause"]],
                said["result"],
                said["quirk"],
                said["detail"],
                said.get("expected", ""),
                said.get("got", ""),
                tuple(said["transcript"].splitlines()),
                tuple(str(value) for name, value in report.user_properties if name == "measured"),
                report.duration,
            )
        )
        self._on_finding(self.outcome)


def examine(
    target: Target,
    clauses: Sequence[str] = (),
    *,
    rehearse: bool = False,
    on_clause: Callable[[str], None] = lambda _: None,
    on_finding: Callable[[SuiteResult], None] = lambda _: None,
) -> SuiteResult:
    """Run the suite; a KeyboardInterrupt ends it early, and what was found until then is kept.

    Args:
        target: what is examined.
        clauses: ids or patterns; none for all.
        rehearse: send nothing; the findings' transcripts list what would be sent.
        on_clause: called with the id of each clause that begins.
        on_finding: called when a clause has ended, with what was found so far; the last finding is that clause's.

    Raises:
        CpsimError: the target cannot be reached, or pytest cannot run.
    """
    target_view = rehearsed(target) if rehearse else reach(target)
    collector = _Collector(target, target_view, on_clause, on_finding)
    files = {FILES[id] for id, clause in catalogue().items() if is_chosen(clause, clauses)}
    arguments = [
        *("--rootdir", str(FOLDER), "-c", os.devnull, "--import-mode=importlib", "--assert=plain"),
        *("-p", plugin.__name__, "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:logging", "-s"),
        *(f"--cp-clause={pattern}" for pattern in clauses),
        *(["--cp-dry-run"] if rehearse else []),
        *(sorted(files) or [str(FOLDER)]),
    ]
    try:
        with _without_user_plugins():
            status = pytest.main(arguments, plugins=[collector])
    except KeyboardInterrupt:  # again, while what was outstanding was discarded
        status = pytest.ExitCode.INTERRUPTED
        collector.outcome.untidied = True
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}:
        raise CpsimError(f"pytest could not run the suite: status {int(status)}")
    target_view.close()
    outcome = collector.outcome
    outcome.interrupted = status == pytest.ExitCode.INTERRUPTED
    order = {id: number for number, id in enumerate(catalogue())}
    outcome.findings.sort(key=lambda finding: order[finding.clause.id])
    outcome.sent, outcome.left = target_view.transport.sent, target_view.left
    outcome.last = announced(target_view) if rehearse else []
    return outcome


@contextmanager
def _without_user_plugins() -> Iterator[None]:
    """Run without the user's pytest plugins and options."""
    before = {name: os.environ.pop(name, None) for name in (*USER_VARIABLES, NO_AUTOLOAD)}
    os.environ[NO_AUTOLOAD] = "1"
    try:
        yield
    finally:
        del os.environ[NO_AUTOLOAD]
        os.environ.update({name: value for name, value in before.items() if value is not None})
