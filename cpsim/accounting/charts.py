"""Charts as SVG; colours are classes of the page's style sheet."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from cpsim.accounting.values import heading, human_text, records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.accounting.blocks import Figure

WIDTH: Final = 720
HEIGHT: Final = 270
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 30
BAR: Final = 26
MOST_BARS: Final = 30
LABEL: Final = 34
SECOND_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)
TIME_STEPS_S: Final = (
    *SECOND_S,
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3_600 * hours for hours in (1, 2, 3, 6, 12)),
    *(86_400 * days for days in (1, 2, 7, 14, 28, 91, 182, 365)),
)


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places on the page."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value is."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.begin + share * (self.end - self.begin), 2)


def draw(figure: Figure) -> Markup:
    """The SVG of a figure; empty if there is nothing to draw."""
    columns = [figure.x, *figure.y]
    rows = [row for row in records(figure.frame[columns]) if row[0] is not None]
    if not rows:
        return Markup()
    if figure.kind == "ranking":
        return _ranking(figure, rows)
    if figure.kind in {"line", "area"}:
        return _lines(figure, _summed(rows) if "project" in figure.frame else rows)
    return _bars(figure, _summed(rows))


def legend(figure: Figure) -> list[tuple[int, str]]:
    """The colour number and name of each series; empty if there is one."""
    return [(number, heading(name)) for number, name in enumerate(figure.y)] if len(figure.y) > 1 else []


def _summed(rows: list[list[Any]]) -> list[list[Any]]:
    """One row for each x: those of several projects are added up."""
    sums: dict[Any, list[Any]] = {}
    for x, *values in rows:
        found = sums.setdefault(x, [0] * len(values))
        for place, value in enumerate(values):
            found[place] += value or 0
    return (
        [[x, *values] for x, values in sorted(sums.items())] if _sortable(sums) else [[x, *v] for x, v in sums.items()]
    )


def _sortable(values: Any) -> bool:  # noqa: ANN401
    return not any(isinstance(value, str) for value in values)


def _lines(figure: Figure, rows: list[list[Any]]) -> Markup:
    places = [_number(row[0]) for row in rows]
    across = Axis(places[0], places[-1], LEFT, WIDTH - RIGHT)
    ticks = _ticks(max((value or 0) for row in rows for value in row[1:]))
    up = Axis(0, ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_grid(up, ticks), _time_or_number_axis(across, rows)]
    for series in range(len(figure.y)):
        points = [(across(place), up(row[series + 1] or 0)) for place, row in zip(places, rows, strict=True)]
        path = " ".join(f"{'L' if number else 'M'}{x} {y}" for number, (x, y) in enumerate(points))
        if figure.kind == "area":
            floor = f"L{points[-1][0]} {up(0)} L{points[0][0]} {up(0)} Z"
            parts.append(Markup('<path class="a a{}" d="{} {}"/>').format(series, path, floor))
        parts.append(Markup('<path class="l l{}" d="{}"/>').format(series, path))
        if len(points) == 1:
            parts.append(Markup('<circle class="b{}" r="4" cx="{}" cy="{}"/>').format(series, *points[0]))
    middles = [across(place) for place in places]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(middles)), WIDTH - RIGHT]
    for row, begin, end in zip(rows, edges, edges[1:], strict=False):
        parts.append(_target(begin, TOP, end - begin, HEIGHT - BOTTOM - TOP, _tip(figure, row)))
    return _svg(figure, HEIGHT, parts)


def _bars(figure: Figure, rows: list[list[Any]]) -> Markup:
    """Bars that stand on an axis of times, numbers or names; those of one x on top of one another."""
    places = [_number(row[0], number) for number, row in enumerate(rows)]
    gap = min((b - a for a, b in pairwise(places) if b > a), default=1.0)
    across = Axis(places[0], places[-1] + gap, LEFT, WIDTH - RIGHT)
    ticks = _ticks(max(sum(value or 0 for value in row[1:]) for row in rows))
    up = Axis(0, ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_grid(up, ticks), _time_or_number_axis(across, rows, gap)]
    for place, row in zip(places, rows, strict=True):
        begin, end = across(place), across(place + gap)
        width = max(0.6, min(90.0, (end - begin) - min(2.0, 0.2 * (end - begin))))
        base = 0
        for series, value in enumerate(row[1:]):
            if value:
                top = up(base + value)
                box = (series, round(begin, 2), top, round(width, 2), round(up(base) - top, 2))
                parts.append(Markup('<rect class="b{}" x="{}" y="{}" width="{}" height="{}"/>').format(*box))
                base += value
        parts.append(_target(begin, TOP, end - begin, HEIGHT - BOTTOM - TOP, _tip(figure, row)))
    return _svg(figure, HEIGHT, parts)


def _ranking(figure: Figure, rows: list[list[Any]]) -> Markup:
    """Horizontal bars, each between its name and its value."""
    rows = rows[:MOST_BARS]
    totals = [sum(value or 0 for value in row[1:]) for row in rows]
    left, end = 190, WIDTH - 90
    across = Axis(0, max(*totals, 0) or 1, left, end)
    parts = []
    for number, (row, total) in enumerate(zip(rows, totals, strict=True)):
        y = TOP + number * BAR
        name = str(row[0])
        shown = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
        squeeze = (
            Markup(' textLength="{}" lengthAdjust="spacingAndGlyphs"').format(left - 14) if len(shown) > 27 else ""
        )
        parts.append(
            Markup('<text class="n" x="{}" y="{}"{}>{}</text>').format(left - 8, y + BAR / 2 + 4, squeeze, shown)
        )
        base = 0
        for series, value in enumerate(row[1:]):
            if value:
                box = (series, across(base), y + 4, round(across(base + value) - across(base), 2), BAR - 8)
                parts.append(Markup('<rect class="b{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(*box))
                base += value
        value_at = (round(across(total) + 6, 2), y + BAR / 2 + 4, human_text(total))
        parts.append(Markup('<text class="v" x="{}" y="{}">{}</text>').format(*value_at))
        parts.append(_target(0, y, WIDTH, BAR, _tip(figure, row)))
    return _svg(figure, 2 * TOP + BAR * len(rows), parts)


def _svg(figure: Figure, height: float, parts: Sequence[Markup]) -> Markup:
    label = f"{figure.title}: a chart of the table beside it"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )


def _grid(up: Axis, ticks: Sequence[float]) -> Markup:
    lines = [
        Markup('<line class="g" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="y" x="{}" y="{}">{}</text>').format(
            LEFT, WIDTH - RIGHT, up(tick), up(tick), LEFT - 8, up(tick) + 4, _short(tick)
        )
        for tick in ticks
    ]
    return Markup("").join(lines)


def _time_or_number_axis(across: Axis, rows: list[list[Any]], gap: float = 0.0) -> Markup:
    marks: list[tuple[float, str]]
    if isinstance(rows[0][0], dt.datetime):
        marks = _time_marks(across, rows[0][0])
    elif isinstance(rows[0][0], str):
        marks = [(across(number + gap / 2), row[0]) for number, row in enumerate(rows)][:MOST_BARS]
    else:
        step = _step((across.high - across.low) / 8) or 1.0
        first = math.ceil(across.low / step) * step
        values = (first + step * number for number in range(12))
        shift = gap / 2 if gap == 1 and step >= 1 else 0.0
        marks = [(across(value + shift), _short(value)) for value in values if value + shift <= across.high]
    labels = [
        Markup('<text class="x" x="{}" y="{}">{}</text>').format(place, HEIGHT - BOTTOM + 20, text)
        for place, text in marks
    ]
    return Markup("").join(labels)


def _time_marks(across: Axis, first: dt.datetime) -> list[tuple[float, str]]:
    """Round times, in the zone of the first one."""
    span = across.high - across.low
    step = next((step for step in TIME_STEPS_S if span / step <= 7), TIME_STEPS_S[-1])
    offset = (first.utcoffset() or dt.timedelta()).total_seconds()
    marks: list[tuple[float, str]] = []
    at = math.ceil((across.low + offset) / step) * step - offset
    while at <= across.high and len(marks) < 12:
        moment = dt.datetime.fromtimestamp(at, first.tzinfo)
        form = (
            "%Y-%m-%d" if step >= 86_400 else "%m-%d %H:%M" if span > 86_400 else "%H:%M" if step >= 60 else "%H:%M:%S"
        )
        text = moment.strftime(form)
        if step < 1:
            text = f"{moment:%S}.{moment.microsecond // 1000:03} s"
        marks.append((across(at), text))
        at += step
    return [mark for mark in marks if LEFT + 10 <= mark[0] <= WIDTH - RIGHT - 24]


def _target(x: float, y: float, width: float, height: float, tip: str) -> Markup:
    """Where a pointer shows the figures of one x."""
    box = (round(x, 2), y, round(width, 2), height, tip)
    return Markup('<rect class="t" x="{}" y="{}" width="{}" height="{}" data-tip="{}"/>').format(*box)


def _tip(figure: Figure, row: list[Any]) -> str:
    values = (f"{heading(name)} {human_text(value)}" for name, value in zip(figure.y, row[1:], strict=True))
    return "\n".join([f"{heading(figure.x)} {human_text(row[0])}", *values])


def _number(value: object, place: int = 0) -> float:
    if isinstance(value, dt.datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else float(place)


def _ticks(most: float) -> list[float]:
    step = _step(most / 4) or 1.0
    return [step * number for number in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _step(least: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    if least <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _short(value: float) -> str:
    """A number for an axis."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            divisor = 1e3 if unit == "k" else size
            return f"{value / divisor:g} {unit}"
    return f"{value:g}"
