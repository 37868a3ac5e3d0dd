"""The charts of the dashboard's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpdaemon.commands import KINDS
from cpsim.server.dashboard.watch import STEP_S
from cpsim.ui.charts import Chart, Mark, Series, Waterfall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.server.control.views import CommandView
    from cpsim.server.dashboard.watch import Interval
    from cpsim.ui.charts import Drawn

COLOURS: Final = (0, 2, 3, 4, 1, 5)
"""The colours of the kinds of commands, one after the other."""


def over_time(intervals: Sequence[Interval | None]) -> list[Chart]:
    """What happened in the last fifteen minutes; none as long as no interval is over."""
    first = next(filter(None, intervals), None)
    if first is None:
        return []
    x = [first.begin_s + STEP_S * place for place in range(len(intervals))]

    def series(name: str, value: Callable[[Interval], float | None], colour: int) -> Series:
        values = [None if each is None else value(each) for each in intervals]
        return Series(name, [None if each is None else round(each, 3) for each in values], colour)

    def chart(title: str, lines: Sequence[Series], drawn: Drawn = "line") -> Chart:
        return Chart(title, "time", "time, UTC", x, lines, drawn, group="time")

    def rate(place: int) -> Callable[[Interval], float]:
        return lambda each: each.rates[place]

    def longest_ms(each: Interval) -> float | None:
        return each.delays.longest_s * 1000 if each.delays.count else None

    def mean_ms(each: Interval) -> float | None:
        mean_s = each.delays.mean_s
        return None if mean_s is None else mean_s * 1000

    kinds = [series(kind, rate(place), COLOURS[place % len(COLOURS)]) for place, kind in enumerate(KINDS)]
    return [
        chart("Commands per second, refused ones included", kinds, "bars"),
        chart("Refused commands per second", [series("refused", lambda each: each.refused, 4)], "bars"),
        chart(
            "Queue: the most commands pending in daemons", [series("pending", lambda each: each.pending, 1)], "steps"
        ),
        chart("Apply delay in milliseconds", [series("longest", longest_ms, 3), series("mean", mean_ms, 0)]),
    ]


def waterfall(history: Sequence[CommandView]) -> Waterfall:
    """The commands of a slot over time, each from the application of the one before to its own."""
    begin_us = history[0].at_us
    over_us = max(each.at_us for each in history) - begin_us
    marks, before_us = list[Mark](), begin_us
    for each in history:
        begin, end = ((at_us - begin_us) / over_us if over_us else 0.0 for at_us in (before_us, each.at_us))
        outcome = "refused" if each.refusal else "accepted"
        when = f"+{(each.at_us - begin_us) / 1e6:,.3f} s"
        if marks:
            when += f", {(each.at_us - before_us) / 1e6:,.3f} s after the one before"
        marks.append(Mark(each.kind, min(begin, end), max(begin, end), outcome, when))
        before_us = each.at_us
    return Waterfall("When each command was applied", marks)
