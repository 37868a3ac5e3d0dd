"""Figures of reports as charts of the page."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from cpsim.accounting.values import human_text, page_heading, records
from cpsim.ui.charts import Chart, Ranking, Series

if TYPE_CHECKING:
    from cpsim.accounting.blocks import Figure

MOST_BARS: Final = 30
MOST_LETTERS: Final = 200
"""Of the name of a bar."""
COLOURS: Final = 6


def chart(figure: Figure, zone: str, *, is_late: bool = False) -> Chart | Ranking | None:
    """The chart of a figure; None if there is nothing to draw.

    Args:
        figure: a figure of a report, whose table is beside it.
        zone: the time zone in which times are shown.
        is_late: whether it is drawn when what it is in is unfolded.
    """
    rows = [row for row in records(figure.frame[[figure.x, *figure.y]]) if row[0] is not None]
    if not rows:
        return None
    names = [page_heading(name) for name in figure.y]
    if figure.kind == "ranking":
        bars = [(str(x)[:MOST_LETTERS], values) for x, *values in rows[:MOST_BARS]]
        return Ranking(figure.title, names, bars, human_text)
    summed: dict[Any, list[float]] = {}
    for x, *values in rows:
        before = summed.get(x, [0] * len(values))
        summed[x] = [sum_ + (value or 0) for sum_, value in zip(before, values, strict=True)]
    first, places = rows[0][0], list(summed)
    if isinstance(first, dt.datetime):
        summed = {x.timestamp(): values for x, values in summed.items()}
    if not isinstance(first, str):
        places = sorted(summed)
    return Chart(
        title=figure.title,
        across="time" if isinstance(first, dt.datetime) else "names" if isinstance(first, str) else "number",
        x_name=page_heading(figure.x),
        x=places,
        series=[
            Series(
                name,
                [summed[x][number] for x in places],
                number % COLOURS,
                is_dashed=number % 2 == 1 and figure.kind == "line",
            )
            for number, name in enumerate(names)
        ],
        drawn="bars" if figure.kind == "stacked" else figure.kind,
        zone=zone,
        has_table=False,
        is_late=is_late,
    )
