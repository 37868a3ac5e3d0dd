"""What a run of the suite found, as test cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.conformance import table
from cpsim.conformance.clause import Level
from cpsim.conformance.plugin import ERROR, FAILED, NOT_VERIFIABLE, PASSED, QUIRK
from cpsim.conformance.suite import SuiteResult
from cpsim.conformance.walk import CLAUSE
from cpsim.judge.verdict import Ruling
from cpsim.ui.results import OF_RULINGS, Case, CaseOutcome, Results
from cpsim.ui.terminal import printed

if TYPE_CHECKING:
    from cpsim.conformance.leavings import Left
    from cpsim.conformance.suite import Finding
    from cpsim.conformance.walk import Walks

OUTCOMES: Final = {
    PASSED: CaseOutcome.PASSED,
    FAILED: CaseOutcome.FAILED,
    QUIRK: CaseOutcome.SKIPPED,
    NOT_VERIFIABLE: CaseOutcome.SKIPPED,
    ERROR: CaseOutcome.ERROR,
}


def results_of(outcome: SuiteResult | Walks) -> Results:
    """The results of a run. A case fails, or has an error, exactly if the verdict is not `valid`."""
    if not isinstance(outcome, SuiteResult):
        return _of_walks(outcome)
    found = Results(
        outcome.ruling.value,
        [_case(finding) for finding in outcome.findings],
        printed(lambda console: table.show_all(outcome, console)),
        _properties(outcome.left),
    )
    if outcome.ruling is Ruling.UNKNOWN and not found.bad:
        found = found.with_error("the verdict is known", table.summary(outcome))
    return found


def _case(finding: Finding) -> Case:
    clause = finding.clause
    result, message = OUTCOMES[finding.result], finding.detail
    if finding.result == FAILED and clause.level is Level.SHOULD:
        result, message = CaseOutcome.SKIPPED, f"deviates from a should, which does not decide: {message}"
    elif finding.result == QUIRK:
        message = f"known quirk {finding.quirk}: {message}"
    return Case(
        name=f"{clause.id}: {clause.sentence}",
        outcome=result,
        message=message,
        detail="" if finding.result in {PASSED, NOT_VERIFIABLE} else table.explained(finding),
        properties=(
            ("clause", clause.id),
            ("section", clause.section),
            ("level", clause.level.value),
            ("result", finding.result),
            ("quirk", finding.quirk),
            *(("measured", figure) for figure in finding.measured),
        ),
        elapsed_s=finding.elapsed_s,
    )


def _of_walks(walks: Walks) -> Results:
    text = printed(lambda console: table.show_walks(walks, console))
    message = str(walks.deviation or walks.not_verified or ("interrupted" if walks.interrupted else ""))
    detail = "" if walks.ruling is Ruling.VALID else text
    case = Case(f"{CLAUSE.id}: {CLAUSE.sentence}", OF_RULINGS[walks.ruling.value], message, detail)
    return Results(walks.ruling.value, [case], text, {"seed": str(walks.seed)} | _properties(walks.left))


def _properties(left: Left | None) -> dict[str, str]:
    return {} if left is None else {"left": "\n".join(left.lines())}
