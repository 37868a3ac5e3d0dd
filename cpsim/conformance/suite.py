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
from cpsim.conformance.clause import Level, catalogue
from cpsim.conformance.plugin import ERROR, FAILED, PASSED, QUIRK, SIGHT, TARGET, UNSEEN
from cpsim.conformance.target import TargetView, Traffic, promised, reach
from cpsim.errors import CpsimError
from cpsim.judge.verdict import Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cpsim.conformance.clause import Clause
    from cpsim.conformance.target import Target

FOLDER: Final = Path(__file__).parent
DEVIANT: Final = frozenset((FAILED, QUIRK, ERROR))
OF_THE_USER: Final = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
NO_AUTOLOAD: Final = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"


@dataclass(frozen=True)
class Finding:
    """What one clause came to.

    Attributes:
        clause: which.
        result: pass, deviation, known quirk, not verifiable, error, or planned.
        quirk: the quirk that the deviation is, by name; empty if it is none that is known.
        detail: a sentence.
        expected: what the protocol says.
        got: what came back.
        transcript: what was sent and seen, a line each.
        measured: figures, each as a sentence.
    """

    clause: Clause
    result: str
    quirk: str = ""
    detail: str = ""
    expected: str = ""
    got: str = ""
    transcript: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()

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
    """What a run came to.

    Attributes:
        target: what was examined.
        findings: one for each clause that was chosen.
        sent: how many commands and requests that took.
    """

    target: Target
    findings: list[Finding] = field(default_factory=list)
    sent: int = 0

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
        """Invalid if a must is broken; else unknown if anything failed to run, or nothing could be seen; else valid."""
        if any(finding.result == FAILED and finding.clause.level is Level.MUST for finding in self.findings):
            return Ruling.INVALID
        counts = self.counts
        seen = counts[PASSED] + counts[QUIRK] + counts[FAILED]
        return Ruling.VALID if seen and not counts[ERROR] else Ruling.UNKNOWN

    def document(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {
            "endpoint": str(self.target),
            "profile": self.target.profile,
            "verdict": self.ruling.value,
            "counts": {name: self.counts[name] for name in (PASSED, FAILED, QUIRK, UNSEEN, ERROR)},
            "quirks": self.quirks,
            "commands": self.sent,
            "clauses": [finding.document() for finding in self.findings],
        }


class _Collector:
    """The pytest plugin that takes what each clause came to."""

    def __init__(self, target: Target, sight: TargetView, on_clause: Callable[[str], None]) -> None:
        self.outcome = SuiteResult(target)
        self._sight = sight
        self._on_clause = on_clause
        self._clauses = catalogue()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[TARGET] = self.outcome.target
        config.stash[SIGHT] = self._sight

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._on_clause(nodeid.rpartition("::")[2])

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
            )
        )


def examine(
    target: Target,
    clauses: Sequence[str] = (),
    *,
    junit: Path | None = None,
    rehearse: bool = False,
    on_clause: Callable[[str], None] = lambda _: None,
) -> SuiteResult:
    """Run the suite.

    Args:
        target: what is examined.
        clauses: ids or patterns; none for all.
        junit: where to write JUnit XML.
        rehearse: send nothing; the findings' transcripts say what would be sent.
        on_clause: told which clause begins.

    Raises:
        CpsimError: the target cannot be reached, or pytest cannot run.
    """
    sight = TargetView(target, promised(target), Traffic(None)) if rehearse else reach(target)
    collector = _Collector(target, sight, on_clause)
    arguments = [
        *("--rootdir", str(FOLDER), "-c", os.devnull, "--import-mode=importlib", "--assert=plain"),
        *("-p", plugin.__name__, "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:logging", "-s"),
        *(f"--cp-clause={pattern}" for pattern in clauses),
        *(["--cp-dry-run"] if rehearse else []),
        *([] if junit is None else [f"--junitxml={junit}", "-o", "junit_family=xunit1"]),
        str(FOLDER),
    ]
    with _of_our_own():
        status = pytest.main(arguments, plugins=[collector])
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        if status == pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        raise CpsimError(f"pytest could not run the suite: status {int(status)}")
    sight.close()
    outcome = collector.outcome
    order = {id: number for number, id in enumerate(catalogue())}
    outcome.findings.sort(key=lambda finding: order[finding.clause.id])
    outcome.sent = sight.traffic.sent
    return outcome


@contextmanager
def _of_our_own() -> Iterator[None]:
    """Keep the pytest plugins and options of wherever this runs out of it."""
    before = {name: os.environ.pop(name, None) for name in (*OF_THE_USER, NO_AUTOLOAD)}
    os.environ[NO_AUTOLOAD] = "1"
    try:
        yield
    finally:
        del os.environ[NO_AUTOLOAD]
        os.environ.update({name: value for name, value in before.items() if value is not None})
