"""Pages of past runs, each one file: all runs and how they did over time, and two runs compared."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from cpsim.run.comparison import LEAST_ALIKE, changes, over_time
from cpsim.ui.charts import UNKNOWN, Chart, Series, figure
from cpsim.ui.pages import template
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cpsim.evidence.past import PastRun
    from cpsim.run.comparison import ComparedRuns

SHOWN_SERIES: Final = 12
"""Scenarios at a target and a pace with charts of their own, those that ran last."""
LEAST_POINTS: Final = 2
CURVES: Final = {"latency.hgrm": "Service time", "response.hgrm": "Response time", "effect.hgrm": "Apply delay"}
TENTHS_OF_DECADES: Final = 40
"""Points of a percentile curve, which has 99.99% at its end."""


def all_runs(runs: Sequence[PastRun], count: int, folder: Path, page: Path, scenario: str = "") -> str:
    """The page of runs.

    Args:
        runs: to show, the newest first.
        count: of all that there are; the others are older.
        folder: that holds them.
        page: where the page will be, for the links to the runs' own pages.
        scenario: what all runs are of; empty for any.
    """
    series = over_time(runs)
    lasting = {key: of_key for key, of_key in series.items() if len(of_key) >= LEAST_POINTS}
    latest = sorted(lasting, key=lambda key: lasting[key][-1].at, reverse=True)[:SHOWN_SERIES]
    did_otherwise = {
        run.path: change for of_key in series.values() for run, change in zip(of_key, changes(of_key), strict=True)
    }
    sections = {"runs": "Runs", "time": "Over time"}
    return template("cpsim.run", "runs.html.j2").render(
        title=f"Runs of {printable(scenario)}" if scenario else "Past runs",
        contents="Past runs",
        sections=sections.items(),
        folder=printable(str(folder)),
        runs=runs,
        count=count,
        links={run.path: _report(run, page) for run in runs},
        did_otherwise=did_otherwise,
        series=[(*key, len(lasting[key]), _charts(lasting[key], number)) for number, key in enumerate(latest)],
        left_out=len(lasting) - len(latest),
        figure=figure,
        printable=printable,
    )


def compared_runs(compared: ComparedRuns, page: Path) -> str:
    """The page of two runs beside one another. `page` is where it will be, for the links to the runs' own pages."""
    sections = {
        "differences": "What differs",
        "figures": "Performance",
        "curves": "Percentiles",
        "accounts": "Accounts",
    }
    return template("cpsim.run", "compared.html.j2").render(
        title="Two runs compared",
        contents="Two runs",
        sections=sections.items(),
        compared=compared,
        pair=[(run, _report(run, page)) for run in (compared.one, compared.other)],
        charts=list(filter(None, (_curves(compared, file, name) for file, name in CURVES.items()))),
        least_alike=LEAST_ALIKE,
        figure=figure,
        printable=printable,
        unknown=UNKNOWN,
    )


def _report(run: PastRun, page: Path) -> str | None:
    """The address of a run's own page, from another page; None if it has none."""
    report = run.path / "report.html"
    return quote(os.fsencode(os.path.relpath(report, page.parent))) if report.is_file() else None


def _charts(runs: Sequence[PastRun], number: int) -> list[Chart]:
    """Rate and times of runs of the same over time; the table of all runs has their figures."""
    x = [run.at.timestamp() for run in runs]
    kind = runs[-1].times[0]
    known = [run.times[1] if run.times[0] == kind else {} for run in runs]
    rate = Chart(
        "Operations answered per second", "time", "when", x, [Series("operations/s", [run.rate for run in runs])],
        group=f"series{number}", has_table=False,
    )  # fmt: skip
    times = [
        Series(f"{kind} {name}", [_above_0(each.get(name)) for each in known], colour)
        for colour, name in enumerate(("p50", "p99", "max"))
    ]
    delays = [{} if run.figures is None else run.figures.effect_ms or {} for run in runs]
    if any(delays):
        times.append(Series("apply delay p99", [_above_0(each.get("p99")) for each in delays], 4, is_dashed=True))
    note = "A gap is a run whose figure is not known. The table of all runs has the figures."
    return [rate, replace(rate, title="Milliseconds", series=times, is_log=True, note=note)]


def _above_0(value: float | None) -> float | None:
    """The value on a logarithmic axis, which has no 0."""
    return value if value is not None and value > 0 else None


def _curves(compared: ComparedRuns, file: str, name: str) -> Chart | None:
    """The percentile curves of both runs; None unless both have one."""
    read = [_percentiles(run.path / file) for run in (compared.one, compared.other)]
    x = [10 ** (point / TENTHS_OF_DECADES * 4) for point in range(TENTHS_OF_DECADES + 1)]
    values = [[_above_0(_at(curve, 1 - 1 / each)) for each in x] for curve in read]
    known = [row for row in range(len(x)) if any(each[row] is not None for each in values)]
    if not all(read) or len(known) < LEAST_POINTS:
        return None
    end = known[-1] + 1
    series = [
        Series(run.name, each[:end], colour)
        for colour, (run, each) in enumerate(zip((compared.one, compared.other), values, strict=True))
    ]
    title = f"{name}: milliseconds at each percentile"
    return Chart(title, "percentile", "percentile", x[:end], series, is_log=True)


def _percentiles(path: Path) -> list[tuple[float, float, int]]:
    """The lines of an `.hgrm` file: share, milliseconds, and how many values are up to there; none if it is damaged."""
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) >= 3 and words[0][0].isdigit() and math.isfinite(value := float(words[0])):
                found.append((float(words[1]), value, int(words[2])))
    except (OSError, ValueError):
        return []
    return found


def _at(curve: Sequence[tuple[float, float, int]], share: float) -> float | None:
    """Milliseconds that so large a share of the values does not exceed; None if only the greatest would tell."""
    if not curve or 1 - share < 1 / max(1, curve[-1][2]) * (1 - 1e-9):
        return None
    return next((value for upto, value, _ in curve if upto >= share - 1e-9), None)
