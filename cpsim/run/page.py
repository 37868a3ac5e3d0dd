"""The page of a run: `report.html`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from cpsim.errors import CpsimError
from cpsim.evidence.evidence import Seen
from cpsim.evidence.journal import OperationOutcome
from cpsim.faults.spec import Fault
from cpsim.judge.history import History
from cpsim.judge.timeline import timeline, timeline_of
from cpsim.judge.verdict import Ruling
from cpsim.run.latency import Histogram, timed_records
from cpsim.run.over_time import OverTime
from cpsim.run.summary import LIMITS
from cpsim.scenario.workload import FRAME, KIND_NAMES
from cpsim.system.mapped import stretches
from cpsim.ui.charts import UNKNOWN, Band, Chart, Ranking, Series, figure
from cpsim.ui.pages import template

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.timeline import Timeline
    from cpsim.run.pipeline import Run
    from cpsim.run.summary import Summary

SECTIONS: Final = {
    "verdict": "Verdict",
    "time": "Over time",
    "latency": "Latency",
    "commands": "Commands",
    "slots": "Slots",
    "timelines": "Worst slots",
    "repeat": "Repeat it",
    "machine": "Machine",
}
SHOWN_ANOMALIES: Final = 100
TICKS: Final = 500
"""Places along a chart at which firings are told apart."""
SLOWEST: Final = 3
"""Slots shown of those with the longest service time, and the commands shown before and after the slowest one."""
AROUND: Final = 10
TENTHS_OF_DECADES: Final = 40
"""Points of a percentile curve, which has 99.99% at its end."""


class Drawn(NamedTuple):
    """What a page draws of the operations of a run.

    Attributes:
        over_time: None if nothing was sent.
        slowest: the timelines of the slots with the longest service times.
    """

    over_time: OverTime | None
    slowest: Sequence[Timeline]

    @classmethod
    def of(cls, run: Run) -> Drawn:
        """Of a run whose evidence has its operations."""
        slowest = [timeline for _, timeline in slowest_of(run.evidence)]
        return cls(OverTime.of(run.evidence, run.apply_delay), slowest)


def html(
    run: Run,
    summary: Summary,
    document: dict[str, Any],
    verdict: dict[str, Any],
    *,
    live: str = "",
    drawn: Drawn | None = None,
) -> str:
    """The page.

    Args:
        run: a run that has ended.
        summary: its figures.
        document: `run.json`.
        verdict: `verdict.json`.
        live: where the page will be when the run has ended, of a run that goes on; "" of one that has ended.
        drawn: what it draws of the run's operations; None if its evidence has them.
    """
    drawn = drawn or Drawn.of(run)
    over_time = drawn.over_time
    faults = None if over_time is None else _faults(run, over_time)
    kept = itertools.chain(*run.verdict.examples.values())
    return template("cpsim.run", "page.html.j2").render(
        title=f"{document['scenario']}: {verdict['verdict']}",
        contents="This run",
        sections=SECTIONS.items(),
        run=document,
        plan=run.plan,
        summary=summary,
        verdict=verdict,
        tiles=_tiles(summary),
        reasons=list(_reasons(run, summary)),
        over_time=over_time,
        is_virtual=run.evidence.virtual_ns is not None,
        faults=faults,
        charts=[] if over_time is None else _charts_over_time(over_time, summary, faults or [], run),
        percentiles=_percentiles(summary),
        times={
            "service time, from send to answer": summary.service,
            "response time, from due to answer": summary.response,
            "apply delay, from OK to applied": summary.apply_delay,
        },
        by_kind=list(_by_kind(summary)),
        slots=None if summary.slots is None else _slots(summary.slots),
        examples=[(each, timeline(example)) for each, example in zip(verdict["examples"], kept, strict=True)],
        slowest=drawn.slowest,
        retried=run.effort.retried,
        limit=None if summary.limit is None else LIMITS[summary.limit],
        shown_anomalies=SHOWN_ANOMALIES,
        figure=figure,
        unknown=UNKNOWN,
        live=live,
        planned=sum(counts["planned"] for counts in summary.by_kind.values()),
    )


def _tiles(summary: Summary) -> list[tuple[str, str]]:
    """The leading figures, with their names."""

    def ms(times: Histogram | None, name: str) -> str:
        found = {} if times is None else times.percentiles_ms()
        return f"{figure(found[name])} ms" if name in found else "unknown"

    outcomes = {name: sum(counts[name] for counts in summary.by_kind.values()) for name in ("refused", "unknown")}
    is_due = summary.response is not None
    times = summary.response if is_due else summary.service
    kind = "response time" if is_due else "service time"
    return [
        ("operations sent", f"{summary.operations:,}"),
        ("answered per second", figure(round(summary.operations_per_s, 1)) if summary.elapsed_s else "unknown"),
        (f"{kind}, median", ms(times, "p50")),
        (f"{kind}, p99", ms(times, "p99")),
        ("apply delay, p99", ms(summary.apply_delay, "p99")),
        ("refused", f"{outcomes['refused']:,}"),
        ("outcome unknown", f"{outcomes['unknown']:,}"),
    ]


def _reasons(run: Run, summary: Summary) -> Iterator[tuple[str, str]]:
    """Why the run is what it is: each reason with its class in the stylesheet, the gravest first."""
    verdict = run.verdict
    if verdict.ruling == Ruling.VALID:
        but = " but for known quirks" if verdict.explains else ""
        yield "good", f"All that was checked is as the protocol says it should be{but}."
    for name, count in verdict.counts.most_common():
        yield "bad", f"{count:,} {name}: {verdict.meanings[name]}"
    for checked in summary.checked:
        yield ("good" if checked.holds else "bad"), f"assert {'holds' if checked.holds else 'fails'}: {checked}"
    for sentence in verdict.unknowns():
        yield "notice", f"Not verified: {sentence}"
    for what, explained in (("slots show", verdict.explained), ("sums are off by", verdict.explained_sums)):
        yield from (("notice", f"{count:,} {what} the known quirk {quirk}") for quirk, count in explained.items())
    if verdict.uncertain:
        why = "as outcomes were unknown or commands overlapped"
        yield "notice", f"{verdict.uncertain:,} slots had more than one acceptable state, {why}"
    yield from _parts_of_run(run, summary)
    if summary.fell_behind:
        late = f"operations were sent up to {summary.lateness_p99_ms:,.0f} ms late (p99)"
        why = "" if summary.limit is None else f"; {LIMITS[summary.limit]}"
        yield "notice", f"The pace was not kept: {late}{why}."
    if summary.virtual_step_s:
        step = f"{summary.virtual_step_s:,.6g} s"
        yield "notice", f"The clock of the accounts jumped by up to {step}: their times are early by up to that."
    for note in run.plan.workload.notes:
        yield "notice", f"Note: {note}."
    if run.evidence.faults_unknown:
        yield "notice", f"Which faults fired is not known: {run.evidence.faults_unknown}."


def _parts_of_run(run: Run, summary: Summary) -> Iterator[tuple[str, str]]:
    """What the run did not send, and what its figures leave out."""
    unsent = f"{run.evidence.unsent:,} operations were not sent"
    if run.evidence.interrupted:
        yield "notice", f"The run was interrupted: {unsent}."
    if run.stopped_by:
        yield "bad", f"The assert {run.stopped_by} was broken, which ended the replay: {unsent}."
    elif run.found:
        later = "" if run.verdict.counts else " At the end nothing was wrong any more."
        yield "bad", f"A finding ended the replay: {unsent}. It was {run.found}.{later}"
    if summary.warm_up_s:
        left_out = f"{summary.warm_up_operations:,} operations of the first {summary.warm_up_s:g} s"
        yield "notice", f"The figures are without {left_out}; the verdict, and what is drawn over time, are of all."


def _faults(run: Run, over_time: OverTime) -> list[dict[str, Any]]:
    """Faults that were set, and outages that were seen, each with its begin and end in seconds, if it has them."""
    evidence, since_s, rows = run.evidence, run.faults_since_s, []
    for each in evidence.faults:
        begin, end = (
            (None, None) if evidence.virtual_ns is not None else _stretch(each["fault"], since_s, over_time.end_s)
        )
        rows.append({"name": each["fault"], "begin": begin, "end": end, "fired": each["fired"], "colour": "open"})
    for begin, end in over_time.outages:
        rows.append(
            {"name": "outage: nothing was answered", "begin": begin, "end": end, "fired": None, "colour": "bad"}
        )
    return rows


def _stretch(text: str, since_s: float, end_s: float) -> tuple[float, float] | tuple[None, None]:
    """When a fault may fire in a replay of `end_s` seconds; None if it has no times of its own, or others."""
    try:
        fault = Fault.parse(text)
    except CpsimError:  # of a server that has other faults
        return None, None
    begin = max(0.0, (fault.from_s or 0.0) + since_s)
    end = end_s if fault.until_s is None else min(fault.until_s + since_s, end_s)
    has_times = fault.from_s is not None or fault.until_s is not None
    return (round(begin, 3), round(end, 3)) if has_times and begin < end else (None, None)


def _charts_over_time(
    over_time: OverTime, summary: Summary, faults: Sequence[Mapping[str, Any]], run: Run
) -> list[Chart]:
    """All that is known of the run over time, on one axis."""
    bands = [Band(row["begin"], row["end"], row["name"], row["colour"]) for row in faults if row["begin"] is not None]
    evidence = run.evidence
    is_virtual = evidence.virtual_ns is not None
    firings = [] if is_virtual else [firing["time_s"] + run.faults_since_s for firing in evidence.firings]
    tick_s = over_time.end_s / TICKS
    ticks = sorted({round(round(time_s / tick_s) * tick_s, 3) for time_s in firings if 0 <= time_s <= over_time.end_s})

    def chart(title: str, series: Sequence[Series], *, is_log: bool = False, note: str = "") -> Chart:
        return Chart(
            title, "seconds", "second", over_time.begins_s, series, bands=bands, ticks=ticks, group="run",
            is_log=is_log, note=note,
        )  # fmt: skip

    def quantiles(columns: Mapping[str, Sequence[float | None]]) -> list[Series]:
        return [
            Series(name, values, colour, is_dashed=name == "max")
            for colour, (name, values) in enumerate(columns.items())
        ]

    rates = [Series("achieved", over_time.achieved)]
    if over_time.offered is not None:
        rates.append(Series("offered", over_time.offered, 1, is_dashed=True))
    no_offer = "Offered is not known: at this pace, operations have no due times."
    cut = "The last interval is not whole: its rates are not shown." if over_time.is_cut else ""
    charts = [
        chart("Operations per second", rates, note=f"{no_offer if over_time.offered is None else ''} {cut}".strip()),
        chart(
            "Refused operations, and those whose outcome is unknown, per second",
            [Series("refused", over_time.refused, 4), Series("unknown", over_time.unknown, 1)],
        ),
    ]
    if over_time.response_ms is not None:
        charts.append(chart("Response time, ms, by when it was due", quantiles(over_time.response_ms), is_log=True))
    charts.append(chart("Service time, ms", quantiles(over_time.service_ms), is_log=True))
    queues = [Series("sent and not answered", over_time.in_flight)]
    note = ""
    if over_time.apply_delay_ms is not None and over_time.pending is not None:
        charts.append(chart("Apply delay, ms, by when OK came", quantiles(over_time.apply_delay_ms), is_log=True))
        queues.append(Series("acknowledged and not applied", over_time.pending, 1))
        note = "Acknowledged commands are those whose time of application the server's accounts show."
    elif summary.apply_delay_unknown:
        note = f"Apply delay and the queue behind OK are not known: {summary.apply_delay_unknown}."
    charts.append(chart("Queue at the end of each interval, operations", queues, note=note))
    return charts


def _percentiles(summary: Summary) -> Chart | None:
    """The curves of all times, up to 99.99%; None if there are none."""
    times = {"service time": summary.service, "response time": summary.response, "apply delay": summary.apply_delay}
    x = [10 ** (point / TENTHS_OF_DECADES * 4) for point in range(TENTHS_OF_DECADES + 1)]
    series = [
        Series(name, [recorded.quantile_ms(1 - 1 / each) for each in x], colour)
        for colour, (name, recorded) in enumerate(times.items())
        if recorded is not None and recorded.total
    ]
    known = [x[row] for row in range(len(x)) if any(one.values[row] is not None for one in series)]
    if len(known) < 2:
        return None
    series = [Series(one.name, one.values[: len(known)], one.colour) for one in series]
    note = "A curve ends where so few values are beyond that the greatest of them would tell the rest."
    return Chart("Milliseconds at each percentile", "percentile", "percentile", known, series, is_log=True, note=note)


def _by_kind(summary: Summary) -> Iterator[tuple[str, dict[str, int], dict[str, float]]]:
    """Each kind of command with its counts and its service times in milliseconds."""
    for kind, counts in summary.by_kind.items():
        yield kind, counts, summary.by_kind_ms.get(kind, {}).get("service_ms") or {}


def _slots(slots: Mapping[str, int]) -> Ranking:
    return Ranking("Slots by outcome", ["slots"], [(state, [count]) for state, count in slots.items()], "{:,}".format)


def slowest_of(evidence: Evidence) -> Iterator[tuple[int, Timeline]]:
    """The slots with the longest service times, which come first; none in virtual time, which has none."""
    if evidence.virtual_ns is not None:
        return
    records = timed_records(evidence)
    longest, took_ns = np.empty((2, 0), np.int64)  # places, and how long they took
    for where in stretches(len(records)):
        places = np.flatnonzero(evidence.workload.kind[records["op"][where]] != FRAME) + where.start
        longest = np.append(longest, places)
        took_ns = np.append(took_ns, records["answered_ns"][places] - records["sent_ns"][places])
        most = np.argsort(-took_ns, kind="stable")[: SLOWEST * AROUND]
        longest, took_ns = longest[most], took_ns[most]
    found: dict[int, tuple[int, int]] = {}
    for place, took in zip(longest.tolist(), took_ns.tolist(), strict=True):
        found.setdefault(int(evidence.workload.slot[records["op"][place]]), (place, took))
    for slot, (place, took) in list(found.items())[:SLOWEST]:
        own = evidence.of_slots([slot])
        history = History.of(replace(own, seen=own.seen or Seen(0, 0)))
        outcome = OperationOutcome(int(records["outcome"][place])).name.lower()
        kind = KIND_NAMES[evidence.workload.kind[records["op"][place]]]
        for number, steps in history.steps(np.ones(history.slots, bool)):
            slowest = max(range(len(steps)), key=lambda at: steps[at].over_ns - steps[at].span.earliest_ns)
            shown = steps[max(0, slowest - AROUND) : slowest + AROUND + 1]
            title = f"{history.slot_id(number)}: {kind} was {outcome} after {took / 1e6:,.3f} ms"
            yield took, timeline_of(title, shown)
