"""What a run came to, as test cases: its verdict, each anomaly that there can be, what is not verified, and asserts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.config.thresholds import Checked
from cpsim.judge.verdict import Ruling
from cpsim.ui.results import OF_RULINGS, Case, CaseOutcome, Results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cpsim.config.thresholds import Threshold
    from cpsim.judge.verdict import Verdict
    from cpsim.run.capacity import Capacity

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


def results_of_search(found: Capacity, thresholds: Sequence[Threshold], output: str) -> Results:
    """The results of a search: whether a rate passes, and the asserts on the figures of the highest that does."""
    name = f"a rate passes with a p99 of at most {found.p99_ms:g} ms"
    if found.ended is not None:
        case, verdict = Case(name, CaseOutcome.ERROR, found.ended), "unknown"
    elif found.best is None:
        case, verdict = Case(name, CaseOutcome.FAILED, "none does"), "no rate passes"
    else:
        case, verdict = Case(name, CaseOutcome.PASSED), f"{found.best.offered_per_s:,.0f} operations/s pass"
    checked = [Checked(each, None) for each in thresholds] if found.best is None else found.best.summary.checked
    return Results(verdict, [case, *asserts_of(checked)], output)


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
