"""Charts of a page: figures with the data that the page's script draws, and a table of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Drawn = Literal["line", "area", "bars", "steps"]
Across = Literal["seconds", "time", "number", "names", "percentile"]
THINNEST: Final = 6
"""The least width of a bar of a waterfall, in thousandths of the whole."""
UNKNOWN: Final = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: of its legend and its column.
        values: one for each place; None where it is unknown, which is a gap.
        colour: the number of a colour of the stylesheet, from 0 to 5.
        is_dashed: whether its line is dashed.
    """

    name: str
    values: Sequence[float | None]
    colour: int = 0
    is_dashed: bool = False


class Band(NamedTuple):
    """A stretch of the horizontal axis in which something was the case; `colour` is one of the stylesheet's names."""

    begin: float
    end: float
    name: str
    colour: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    Attributes:
        title: what it shows, with the unit.
        across: what the places are: seconds since a start, `time` in seconds since 1970, other numbers, names, or
            1 / (1 - quantile), which is drawn as percentiles.
        x_name: the heading of the places.
        x: the places, ascending, or names.
        series: the lines; bars stand on one another.
        drawn: how.
        bands: what was the case when.
        ticks: places of single events.
        zone: the time zone of `time`.
        group: charts of one group share the pointer and the zoom.
        is_log: whether the values are on a logarithmic axis; they are then above 0.
        note: a sentence below it.
        has_table: whether its table is with it; if not, it is elsewhere on the page.
        is_late: whether it is drawn only when somebody unfolds what it is in.
    """

    title: str
    across: Across
    x_name: str
    x: Sequence[float] | Sequence[str]
    series: Sequence[Series]
    drawn: Drawn = "line"
    bands: Sequence[Band] = ()
    ticks: Sequence[float] = ()
    zone: str = "UTC"
    group: str = ""
    is_log: bool = False
    note: str = ""
    has_table: bool = True
    is_late: bool = False

    def document(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            "across": self.across,
            "xName": self.x_name,
            "x": list(range(len(self.x))) if self.across == "names" else list(self.x),
            "names": list(self.x) if self.across == "names" else None,
            "series": [
                {"name": one.name, "values": list(one.values), "colour": one.colour, "dashed": one.is_dashed}
                for one in self.series
            ],
            "drawn": self.drawn,
            "bands": [list(band) for band in self.bands],
            "ticks": list(self.ticks),
            "zone": self.zone,
            "group": self.group,
            "log": self.is_log,
        }

    def __html__(self) -> str:
        """The figure."""
        parts = [
            Markup('<figure class="{}">\n<figcaption>{}</figcaption>\n').format(
                "late-chart" if self.is_late else "chart", self.title
            ),
            Markup('<div class="plot" role="application" tabindex="0" aria-label="{}"></div>\n').format(self._label()),
            Markup('<script type="application/json">{}</script>\n').format(htmlsafe_json_dumps(self.document())),
            Markup("<noscript><p>The chart needs JavaScript{}.</p></noscript>\n").format(
                "; its table does not" if self.has_table else ""
            ),
        ]
        if self.note:
            parts.append(Markup('<p class="note">{}</p>\n').format(self.note))
        if self.has_table:
            parts.append(self._table())
        return Markup("").join([*parts, Markup("</figure>")])

    def _label(self) -> str:
        keys = "arrow keys read the values, plus and minus zoom, Escape shows all"
        return f"{self.title}: a chart of {', '.join(one.name for one in self.series)}; {keys}"

    def _table(self) -> Markup:
        heads = Markup("").join(Markup('<th scope="col" class="num">{}</th>').format(one.name) for one in self.series)
        columns = [[figure(value) for value in one.values] for one in self.series]  # digits: nothing to escape
        body = "\n".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f'<td class="num">{text}</td>' for text in row)
            + "</tr>"
            for name, *row in zip(self._names(), *columns, strict=True)
        )
        return Markup(
            "<details><summary>Table</summary>\n"
            '<div class="table" tabindex="0" role="region" aria-label="{title}, table"><table>'
            '<caption class="skip">{title}</caption>\n'
            '<thead><tr><th scope="col">{x_name}</th>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
            "</table></div></details>\n"
        ).format(title=self.title, x_name=self.x_name, heads=heads, body=Markup(body))  # noqa: S704 - escaped above

    def _names(self) -> list[str]:
        """The places as the table names them: times have their offset."""
        if self.across != "time":
            return [figure(x) if isinstance(x, int | float) else x for x in self.x]
        zone = ZoneInfo(self.zone)
        return [datetime.fromtimestamp(float(x), zone).isoformat(" ", "seconds") for x in self.x]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Horizontal bars, each between its name and its value, which a page shows without a script.

    Attributes:
        title: what it shows.
        series: the names of the parts of each bar.
        rows: the name of each bar, and its parts.
        text: how a value is written.
    """

    title: str
    series: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    text: Callable[[float], str]

    def __html__(self) -> str:
        """The figure."""
        most = max(sum(value or 0 for value in values) for _, values in self.rows) or 1
        parts = [
            Markup('<figure class="ranked"><figcaption>{}</figcaption>\n<ul class="ranking">\n').format(self.title)
        ]
        parts += [self._row(name, values, most) for name, values in self.rows]
        keys = Markup("").join(
            Markup('<li><i class="k{}"></i>{}</li>').format(colour, name) for colour, name in enumerate(self.series)
        )
        legend = Markup('<ul class="legend">{}</ul>\n').format(keys) if len(self.series) > 1 else ""
        return Markup("").join([*parts, Markup("</ul>\n"), legend, Markup("</figure>")])

    def _row(self, name: str, values: Sequence[float | None], most: float) -> Markup:
        told = ", ".join(f"{part} {self.text(value or 0)}" for part, value in zip(self.series, values, strict=True))
        bars = Markup("").join(
            Markup('<i class="k{}" style="width:{:.2f}%"></i>').format(colour, 100 * (value or 0) / most)
            for colour, value in enumerate(values)
        )
        total = self.text(sum(value or 0 for value in values))
        return Markup(
            '<li title="{}: {}"><span class="name">{}</span><span class="bar">{}</span><b>{}</b></li>\n'
        ).format(name, told, name, bars, total)


class Mark(NamedTuple):
    """A row of a waterfall: what it is, the part of the width that its bar takes, its outcome, and its times."""

    label: str
    begin: float
    end: float
    outcome: str
    when: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Rows of events in the order of time, each with a bar, which a page shows without a script or a style of its own.

    Attributes:
        title: what it shows.
        marks: the rows; the outcome is a class of the stylesheet.
    """

    title: str
    marks: Sequence[Mark]

    def __html__(self) -> str:
        """The figure."""
        rows = Markup("\n").join(
            Markup(
                '<li><span class="said">{}</span><svg class="track" viewBox="0 0 1000 16" preserveAspectRatio="none" '
                'aria-hidden="true"><rect class="{}" x="{:.1f}" width="{:.1f}" height="16" rx="3"/></svg>'
                '<span class="when">{}</span></li>'
            ).format(mark.label, mark.outcome, *self._bar(mark), mark.when)
            for mark in self.marks
        )
        return Markup('<figure><figcaption>{}</figcaption>\n<ol class="steps">\n{}\n</ol></figure>').format(
            self.title, rows
        )

    def _bar(self, mark: Mark) -> tuple[float, float]:
        """Where a bar begins and its width, in thousandths; a bar without a duration can be seen too."""
        end = max(1000 * mark.end, THINNEST)
        begin = min(1000 * mark.begin, end - THINNEST)
        return begin, end - begin


def figure(value: float | None) -> str:
    """A number for a reader, to four digits below 1,000; a dash if it is unknown."""
    if value is None:
        return UNKNOWN
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{min(6, max(0, 3 - math.floor(math.log10(abs(value)))))}f}"
