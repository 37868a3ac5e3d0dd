"""What a run came to, as test cases: its verdict, each anomaly that there can be, what is not verified, and asserts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.judge.verdict import Ruling
from cpsim.ui.results import OF_RULINGS, Case, CaseOutcome, Results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cpsim.config.thresholds import Checked
    from cpsim.judge.verdict import Verdict

SHOWN: Final = 3
"""Anomalies of one kind that a case shows."""


def results_of(verdict: Verdict, output: str, checked: Iterable[Checked] = ()) -> Results:
    """The results of a run. A case fails, or has an error, exactly if the run's exit status is not 0.

    Args:
        verdict: on its evidence.
        output: what is printed of it.
        checked: its asserts.
    """
    asserts = asserts_of(checked)
    but = ", and an assert fails" if any(case.outcome is CaseOutcome.FAILED for case in asserts) else ""
    properties = {f"checked {what}": str(count) for what, count in verdict.checked.items()}
    cases = [_ruling(verdict), *_anomalies(verdict), *_others(verdict), *asserts]
    return Results(f"{verdict.ruling}{but}", cases, output, properties)


def asserts_of(checked: Iterable[Checked]) -> list[Case]:
    """A case for each assert."""
    outcomes = {True: CaseOutcome.PASSED, False: CaseOutcome.FAILED}
    return [Case(f"assert {each.threshold}", outcomes[each.holds], str(each)) for each in checked]


def _ruling(verdict: Verdict) -> Case:
    ruling = verdict.ruling
    message = {
        Ruling.VALID: "",
        Ruling.INVALID: ", ".join(f"{count:,} {name}" for name, count in verdict.counts.items()),
        Ruling.UNKNOWN: " ".join(verdict.unknowns()),
    }[ruling]
    return Case("the verdict is valid", OF_RULINGS[ruling.value], message)


def _anomalies(verdict: Verdict) -> Iterator[Case]:
    """A case for each anomaly; where not all could be verified, one that was not found is skipped."""
    for name, meaning in verdict.meanings.items():
        found = [f"{each.subject}: {each.detail}" for each in verdict.anomalies if each.name == name][:SHOWN]
        if verdict.counts[name]:
            outcome, message = CaseOutcome.FAILED, f"{verdict.counts[name]:,} {name}: {'; '.join(found[:1])}"
        elif verdict.unknowns():
            outcome, message = CaseOutcome.SKIPPED, "not found, but not all could be verified"
        else:
            outcome, message = CaseOutcome.PASSED, ""
        yield Case(f"nothing is {name}: {meaning}", outcome, message, "\n".join(found))


def _others(verdict: Verdict) -> Iterator[Case]:
    """What could not be verified, and known quirks."""
    for sentence in verdict.unknowns():
        yield Case(f"not verified: {sentence}", CaseOutcome.SKIPPED, sentence)
    for quirk, count in (*verdict.explained.items(), *verdict.explained_sums.items()):
        yield Case(f"known quirk {quirk}", CaseOutcome.SKIPPED, f"it explains {count:,} deviations")
