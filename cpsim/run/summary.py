"""The figures of a run, and their output on a terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cpsim.config.thresholds import APPLY_DELAY_PREFIXES, Checked, Threshold, metrics
from cpsim.errors import in_one_line
from cpsim.evidence import extensions
from cpsim.evidence.extensions import installed
from cpsim.judge.timeline import timeline
from cpsim.replay.failures import LOST, kind_of
from cpsim.replay.pace import Users
from cpsim.run.latency import Histogram
from cpsim.run.measured import Measured
from cpsim.scenario.formats.arrow import slot_ids
from cpsim.system.mapped import stretches
from cpsim.system.mapped_rows import pieces
from cpsim.ui.printable import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from cpsim.evidence.evidence import Evidence
    from cpsim.evidence.extensions import Metric
    from cpsim.judge.verdict import Verdict
    from cpsim.run.pipeline import ApplyDelay, Run


LATE_MS: Final = 10.0
"""Lateness at the 99th percentile above which a run has missed its pace."""
LIMITS: Final = {
    "target": "the target answered no faster",
    "backlog": "the target's queue of connections was full, or requests for one were lost: try fewer --in-flight",
    "generator": "this generator was at its limit: try --processes, or a less busy machine",
    "ports": "this machine had no free port for a connection: the target's limit is unknown",
    "files": "this process could open no more files: the target's limit is unknown",
}


@dataclass(slots=True)
class Summary:
    """The figures of a run.

    Attributes:
        elapsed_s: seconds from the first send, or the end of the warm-up, to the last answer.
        by_kind: operations of each kind: planned, and with each outcome.
        by_kind_ms: of each kind, service and response times at percentiles, as in `figures`.
        errors: count of each error, most frequent first.
        failures: count of each kind of error: timeout, ER, reset, HTTP 503, ...
        limit: what limited the rate: target, generator, backlog, ports or files; None if the run kept its pace, or a
            worker was lost.
        busy: the share of time in which the sender did not wait.
        service: service time, from send to answer.
        response: response time, from due to answer; None if operations had no due times.
        apply_delay: from answer to application; None if the server's ledger does not show it.
        apply_delay_uncertainty_ms: error bound of the apply delay, from the comparison of two clocks.
        apply_delay_unknown: why the apply delay is unknown; None if it is known.
        lateness_p99_ms: lateness of sending at the 99th percentile; None if operations had no due times.
        per_second: operations answered in each second of the replay.
        seconds: a row per second of the replay, see `latency.by_second`.
        slots: this run's slots by state; None if their states were not seen.
        credits: credits granted to this run's slots; None if they were not seen.
        metrics: those of other packages, by name.
        metrics_unknown: why others of them are unknown, by name.
        virtual_step_s: by how much the server's clock was behind the due times at most, in virtual time; 0 if it was
            exact; None without virtual time.
        warm_up_s: seconds at the beginning that all figures but those of slots, credits and others leave out.
        warm_up_operations: operations due in that time, or sent then if none was due.
        stopped_by: the assert that ended the replay; "" if none did.
        found: the finding that ended the replay; "" if none did.
        checked: thresholds compared with the figures.
    """

    elapsed_s: float
    by_kind: dict[str, dict[str, int]]
    by_kind_ms: dict[str, dict[str, dict[str, float] | None]]
    errors: dict[str, int]
    failures: dict[str, int]
    limit: str | None
    busy: float
    service: Histogram
    response: Histogram | None
    apply_delay: Histogram | None
    apply_delay_uncertainty_ms: float | None
    apply_delay_unknown: str | None
    lateness_p99_ms: float | None
    per_second: list[int]
    seconds: list[dict[str, float | None]]
    slots: dict[str, int] | None
    credits: int | None
    metrics: dict[str, float | None]
    metrics_unknown: dict[str, str]
    virtual_step_s: float | None = None
    warm_up_s: float = 0.0
    warm_up_operations: int = 0
    stopped_by: str = ""
    found: str = ""
    checked: list[Checked] = field(default_factory=list)

    def check(self, thresholds: Sequence[Threshold]) -> None:
        """Compare the run with thresholds."""
        found = metrics(self.figures())
        self.checked = [
            Checked(
                threshold,
                found.get(threshold.metric),
                self.apply_delay_unknown
                if threshold.metric.startswith(APPLY_DELAY_PREFIXES)
                else self.metrics_unknown.get(threshold.metric),
            )
            for threshold in thresholds
        ]

    @property
    def holds(self) -> bool:
        """Whether the run meets all thresholds, and no finding ended it."""
        return not self.found and all(checked.holds for checked in self.checked)

    @property
    def operations(self) -> int:
        """Operations sent."""
        return sum(count for outcomes in self.by_kind.values() for name, count in outcomes.items() if name != "planned")

    @property
    def operations_per_s(self) -> float:
        """Operations answered per second of the replay."""
        return sum(self.per_second) / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def fell_behind(self) -> bool:
        """Whether the run missed its pace by more than LATE_MS."""
        return self.lateness_p99_ms is not None and self.lateness_p99_ms > LATE_MS

    def figures(self) -> dict[str, Any]:
        """The figures of `run.json` and `--json`."""
        return {
            "operations": self.operations,
            "operations_per_s": round(self.operations_per_s, 1),
            "elapsed_s": round(self.elapsed_s, 6),
            "by_kind": self.by_kind,
            "by_kind_ms": self.by_kind_ms,
            "errors": self.errors,
            "failures": self.failures,
            "limit": self.limit,
            "busy": round(self.busy, 3),
            "service_ms": self.service.percentiles_ms(),
            "response_ms": None if self.response is None else self.response.percentiles_ms(),
            "effect_ms": None if self.apply_delay is None else self.apply_delay.percentiles_ms(),
            "effect_uncertainty_ms": self.apply_delay_uncertainty_ms,
            "effect_unknown": self.apply_delay_unknown,
            "lateness_p99_ms": self.lateness_p99_ms,
            "pace_kept": None if self.lateness_p99_ms is None else not self.fell_behind,
            "slots_by_state": self.slots,
            "credits_granted": self.credits,
            "virtual_step_s": self.virtual_step_s,
            "warm_up_s": self.warm_up_s,
            "warm_up_operations": self.warm_up_operations,
            "stopped_by": self.stopped_by or self.found or None,
            "metrics": self.metrics,
            "asserts": [checked.document() for checked in self.checked],
        }


def summarise(
    run: Run, metrics_of_others: Mapping[str, Metric] | None = None, measured: Measured | None = None
) -> Summary:
    """The figures of a run.

    Args:
        run: a run that has ended.
        metrics_of_others: additional metrics; None for those that are installed.
        measured: what was measured of its operations; None if its evidence has them.

    Raises:
        CpsimError: a metric that is installed cannot be loaded.
    """
    whole, delay, warm_up_ns = run.evidence, run.apply_delay, int(run.plan.warm_up_s * 1e9)
    measured = measured or Measured.of(whole, run.plan.warm_up_s)
    failures: Counter[str] = Counter()
    for error, count in measured.errors.items():
        failures[kind_of(error)] += count
    slots, credits = _of_slots(whole)
    found, unknown = of_others(whole, installed(extensions.METRICS) if metrics_of_others is None else metrics_of_others)
    times = measured.times
    return Summary(
        elapsed_s=max(whole.elapsed_s - run.plan.warm_up_s, 0.0),
        by_kind=measured.by_kind,
        by_kind_ms=times.by_kind_ms(),
        errors=measured.errors,
        failures=dict(failures.most_common()),
        limit=None if LOST in whole.errors else _limit(run, measured),
        busy=run.effort.busy,
        service=Histogram.joined(times.service.values()),
        response=Histogram.joined(times.response.values()) if times.response else None,
        apply_delay=_apply_delay(delay, warm_up_ns),
        apply_delay_uncertainty_ms=None if delay.unknown else round(delay.uncertainty_ns / 1e6, 3),
        apply_delay_unknown=delay.unknown or None,
        lateness_p99_ms=measured.lateness_p99_ms,
        per_second=times.per_second,
        seconds=measured.seconds,
        slots=slots,
        credits=credits,
        metrics=found,
        metrics_unknown=unknown,
        virtual_step_s=_virtual_step_s(whole),
        warm_up_s=run.plan.warm_up_s,
        warm_up_operations=measured.warm_up_operations,
        stopped_by=run.stopped_by,
        found=run.found,
    )


def _apply_delay(delay: ApplyDelay, warm_up_ns: int) -> Histogram | None:
    """The apply delay of the commands that were answered after the warm-up."""
    delays_ns, answers_ns = delay.delays_ns, delay.answered_ns
    if delays_ns is None or answers_ns is None:
        return None
    return Histogram.joined(
        Histogram.of(delays_ns[where][answers_ns[where] >= warm_up_ns]) for where in stretches(len(delays_ns))
    )


def _of_slots(evidence: Evidence) -> tuple[dict[str, int] | None, int | None]:
    """The run's slots by state, and the credits granted to them; None where they were not seen."""
    ledger, workload = evidence.ledger, evidence.workload
    if ledger is None:
        return None, None
    ids = slot_ids(workload, "") if workload.slot_ids else None
    projects = [each.lower() for each in evidence.projects]
    own = pa.array(projects, pa.string())
    shown = [name for name in ("project", "slot", "state", "granted") if name in ledger.column_names]
    slots: Counter[str] = Counter()
    credits = 0
    for piece in pieces(ledger.select(shown)):
        if ids is None:
            is_ours = pc.starts_with(piece["slot"], f"{evidence.slot_prefix}-")
        else:  # another project may have slots of the same ids
            is_ours = pc.and_(
                pc.is_in(piece["slot"], value_set=ids), pc.is_in(pc.utf8_lower(piece["project"]), value_set=own)
            )
        ours = piece.filter(is_ours)
        if "state" in shown:
            slots.update({entry["values"]: entry["counts"] for entry in ours["state"].value_counts().to_pylist()})
        if "granted" in shown:
            credits += pc.sum(ours["granted"]).as_py() or 0
    return dict(slots) if "state" in shown else None, credits if "granted" in shown else None


def _virtual_step_s(evidence: Evidence) -> float | None:
    """By how much the server's clock was behind the due times at most, in virtual time."""
    if evidence.virtual_ns is None:
        return None
    ops, due_us, sent_ns = evidence.records["op"], evidence.workload.due_us, evidence.virtual_ns
    behind_us = [(due_us[ops[where]] - sent_ns[ops[where]] // 1_000).max(initial=0) for where in stretches(len(ops))]
    return int(max(behind_us, default=0)) / 1e6


def of_others(evidence: Evidence, more: Mapping[str, Metric]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The metrics of others, and why some are unknown."""
    measured: dict[str, float | None] = {}
    unknown: dict[str, str] = {}
    for name, metric in more.items():
        try:
            value = metric(evidence)
            measured[name] = None if value is None else float(value)
        except Exception as error:  # noqa: BLE001 - somebody else's; the other figures stand
            measured[name], unknown[name] = None, in_one_line(error)
    return measured, unknown


def _limit(run: Run, measured: Measured) -> str | None:
    """What limited the rate of a run; see `Summary.limit`."""
    lateness_p99_ms = measured.lateness_p99_ms
    if isinstance(run.plan.pace, Users) or (lateness_p99_ms is not None and lateness_p99_ms <= LATE_MS):
        return None
    limit = run.effort.limit(measured.sent)
    least_ms = max(LATE_MS, lateness_p99_ms or 0.0) / 2
    is_ours = limit == "target" and measured.own_p99_ms is not None and measured.own_p99_ms() > least_ms
    return "generator" if is_ours else limit


def show(run: Run, summary: Summary, console: Console) -> None:
    """Print the summary of a run."""
    from rich.table import Table  # noqa: PLC0415 - only a run prints tables

    from cpsim.ui.terminal import print_table  # noqa: PLC0415

    plan = run.plan
    where = "an embedded CreditPiggy" if plan.embedded else str(plan.target.endpoint)
    name = escaped(plan.workload.name)
    console.print(f"\n[bold]{name}[/], seed {plan.workload.seed}, at {escaped(where)}, {plan.pace}", highlight=False)
    if summary.fell_behind:
        late = f"operations were sent up to {summary.lateness_p99_ms:,.0f} ms late (p99)"
        why = "" if summary.limit is None else f"; {LIMITS[summary.limit]}"
        console.print(f"[yellow]The pace was not kept[/]: {late}{why}")
    table = Table("operations", "planned", "accepted", "refused", "unknown", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, counts in summary.by_kind.items():
        table.add_row(kind, *(f"{count:,}" for count in counts.values()))
    print_table(table, console)
    for line in _lines(run, summary):
        console.print(line, highlight=False)


def _lines(run: Run, summary: Summary) -> Iterator[str]:
    yield from _note_lines(run, summary)
    for error, count in summary.errors.items():
        yield f"[red]{count:,} x[/] {escaped(error)}"
    done = f"{sum(summary.per_second):,} in {summary.elapsed_s:.2f} s"
    for error, count in run.effort.retried.items():
        yield f"[yellow]{count:,} x[/] {escaped(error)}, retried"
    yield f"throughput    {summary.operations_per_s:,.0f} operations/s ({done})"
    if summary.limit is not None and not summary.fell_behind:
        is_mute = summary.limit == "target" and not any(summary.per_second)
        yield f"limit         {'the target did not answer' if is_mute else LIMITS[summary.limit]}"
    times = {"service time": summary.service, "response time": summary.response, "apply delay": summary.apply_delay}
    for name, recorded in times.items():
        if recorded is not None and recorded.total:
            figures = "  ".join(f"{name} {value:.2f}" for name, value in recorded.percentiles_ms().items())
            yield f"{name:<13} ms  {figures}"
    if summary.apply_delay_unknown is not None:
        yield f"apply delay   [yellow]unknown[/]: {escaped(summary.apply_delay_unknown)}"
    elif summary.apply_delay_uncertainty_ms is not None:
        yield f"clocks        compared to within {summary.apply_delay_uncertainty_ms:.2f} ms"
    if summary.lateness_p99_ms is not None:
        yield f"lateness      ms  p99 {summary.lateness_p99_ms:.2f}"
    yield from _metric_lines(summary)
    for fault in run.evidence.faults:
        yield f"fault         {escaped(fault['fault'])} fired {fault['fired']:,} times"
    yield from _account_lines(run, summary)
    for checked in summary.checked:
        yield f"assert        {'[green]holds[/]' if checked.holds else '[red]fails[/]'}  {escaped(str(checked))}"
    yield from verdict_lines(run.verdict, run.evidence.command)


def _note_lines(run: Run, summary: Summary) -> Iterator[str]:
    """What is odd about the workload, and how coarse the accounts' times are."""
    for note in run.plan.workload.notes:
        yield f"note          {escaped(note)}"
    if summary.warm_up_s:
        what = f"the first {summary.warm_up_s:g} s, {summary.warm_up_operations:,} operations"
        yield f"warm-up       {what}, are not in these figures; they are in the verdict"
    unsent = f"{run.evidence.unsent:,} operations were not sent"
    if summary.stopped_by:
        yield f"stopped       [red]{escaped(summary.stopped_by)}[/] is broken; {unsent}"
    elif summary.found:
        later = "" if run.verdict.counts else "; at the end nothing was wrong any more"
        yield f"stopped       [red]{escaped(summary.found)}[/]; {unsent}{later}"
    if summary.virtual_step_s:
        size = f"[yellow]{summary.virtual_step_s:,.6g} s[/]"
        yield f"resolution    {size}: the accounts' clock jumped by up to that, and their times are early by up to that"


def _metric_lines(summary: Summary) -> Iterator[str]:
    for name, value in summary.metrics.items():
        unknown = f"[yellow]unknown[/]: {escaped(summary.metrics_unknown.get(name, 'this run has none'))}"
        yield f"{escaped(name):<13} {unknown if value is None else f'{value:,.6g}'}"


def _account_lines(run: Run, summary: Summary) -> Iterator[str]:
    """The run's slots, its credits, and whether these are conserved, as far as the accounts show it."""
    if summary.slots is not None:
        states = ", ".join(f"{count:,} {state}" for state, count in summary.slots.items()) or "none"
        yield f"slots         {states}"
    if summary.credits is not None:
        view = run.evidence.view
        shown = set() if view is None or view.machines is None else set(view.machines.column_names)
        compared = run.verdict.checked["sums"] and {"credits", "waiting_credits"} <= shown
        conserved = ", conserved" if compared else ""
        if run.verdict.counts["not conserved"]:
            conserved = ", [red]not conserved[/]"
        yield f"credits       {summary.credits:,} granted{conserved}"


def verdict_lines(verdict: Verdict, command: str) -> Iterator[str]:
    """A verdict as lines with markup; `command` repeats the run."""
    colour = {"valid": "green", "invalid": "red", "unknown": "yellow"}[verdict.ruling]
    checked = ", ".join(f"{count:,} {what}" for what, count in verdict.checked.items())
    but = "" if verdict.counts or not verdict.explains else " but for known quirks"
    yield f"verdict       [bold {colour}]{verdict.ruling}{but}[/] ({checked} checked)"
    if verdict.rests_on:
        yield f"rests on      {', '.join(verdict.rests_on)}"
    for quirk, count in verdict.explained.items():
        yield f"  {count:,} slots show the known quirk {quirk}"
    for quirks, count in verdict.explained_sums.items():
        yield f"  {count:,} sums are off as the known quirk {quirks} makes them"
    for name, count in verdict.counts.items():
        yield f"  [red]{count:,} {name}[/]"
        for found in [found for found in verdict.anomalies if found.name == name][:3]:
            yield f"    {escaped(found.subject)}: {escaped(found.detail)}"
        for example in verdict.examples[name][:1] if name in verdict.examples else []:
            yield f"    {escaped(example.anomaly.subject)}:"
            yield from (f"      {escaped(line)}" for line in timeline(example).lines)
    if verdict.uncertain:
        why = "as outcomes were unknown or commands overlapped"
        yield f"  {verdict.uncertain:,} slots had more than one acceptable state, {why}"
    if verdict.counts and command:
        yield f"repeat with   {escaped(command)}"
    for sentence in verdict.unknowns():
        yield f"  [yellow]not verified:[/] {escaped(sentence)}"
