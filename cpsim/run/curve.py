"""The result of a search for capacity on a terminal: a table of steps, and a chart of response time by rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from rich.table import Table

from cpsim.run.summary import LIMITS
from cpsim.ui.bars import bar
from cpsim.ui.printable import escaped
from cpsim.ui.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from cpsim.run.capacity import Capacity, SearchStep

COLUMNS: Final = 48
REASONS: Final = LIMITS | {"effect": "commands were acknowledged and not applied as they should be, or wrongly refused"}


def show(found: Capacity, console: Console) -> None:
    """Print the table, the chart and the capacity."""
    steps = sorted(found.steps, key=lambda step: step.offered_per_s)
    headings = ("offered/s", "achieved/s", "p50 ms", "p99 ms", "service", "late", "busy")
    table = Table(*headings, "", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right"
    for step in steps:
        response = step.summary.response.percentiles_ms() if step.summary.response is not None else {}
        service = step.summary.service.percentiles_ms()
        times = [response.get("p50"), response.get("p99"), service.get("p99")]
        table.add_row(
            f"{step.offered_per_s:,.0f}",
            f"{step.achieved_per_s:,.0f}",
            *("-" if time_ms is None else f"{time_ms:,.2f}" for time_ms in times),
            f"{step.sender_late_p99_ms:,.2f}",
            f"{step.summary.busy:.0%}",
            "passed" if step.failed_by is None else f"failed: {step.failed_by}",
        )
    console.print()
    print_table(table, console)
    for line in _lines(found, steps):
        console.print(line, highlight=False)


def _lines(found: Capacity, steps: list[SearchStep]) -> Iterator[str]:
    if steps:
        low, high = _decades(found)
        yield f"\nresponse time (p99) from {10**low:g} to {10**high:g} ms, limit {found.p99_ms:g} ms"
        yield from (f"{step.offered_per_s:>9,.0f}/s │{_bar(step, found)}" for step in steps)
        yield ""
    best, border = found.best, found.border
    if found.ended is not None:
        yield f"[yellow]The search is not complete[/]: {escaped(found.ended)}"
    if best is not None:
        yield f"capacity      [bold]{best.offered_per_s:,.0f} operations/s[/] within {found.p99_ms:g} ms (p99)"
    elif steps:
        yield f"capacity      [red]none[/]: no rate passed within {found.p99_ms:g} ms (p99)"
    if border is not None and border.failed_by is not None:
        yield f"failed        {border.failed_by}, at {border.offered_per_s:,.0f}/s: {REASONS[border.failed_by]}"
        for error, count in border.summary.errors.items():
            yield f"              {count:,} x {escaped(error)}"
    if best is not None:
        for checked in best.summary.checked:
            yield f"assert        {'[green]holds[/]' if checked.holds else '[red]fails[/]'}  {escaped(str(checked))}"


def _decades(found: Capacity) -> tuple[int, int]:
    """The exponents of ten that bound the chart."""
    times = [found.p99_ms, *(step.response_p99_ms for step in found.steps if math.isfinite(step.response_p99_ms))]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    return low, max(high, low + 1)


def _bar(step: SearchStep, found: Capacity) -> str:
    """A bar as long as the logarithm of the response time, and a mark at the limit."""
    low, high = _decades(found)

    def place(time_ms: float) -> float:
        return COLUMNS * (math.log10(min(time_ms, 10.0**high)) - low) / (high - low)

    drawn = bar(max(1e-9, place(step.response_p99_ms) / COLUMNS), COLUMNS).ljust(COLUMNS)
    mark = min(COLUMNS - 1, int(place(found.p99_ms)))
    return drawn if drawn[mark] != " " else f"{drawn[:mark]}┊{drawn[mark + 1 :]}"
