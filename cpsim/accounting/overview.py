"""The accounts in some fifty lines of a terminal: who leads, when, and whether all agrees."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from rich.table import Table as Grid

from cpsim.accounting import expectation, reconciliation
from cpsim.accounting.ranking import ranked
from cpsim.accounting.screen import show_balance, show_reports, show_source
from cpsim.ui.bars import bar
from cpsim.ui.printable import escaped
from cpsim.ui.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from rich.console import Console

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Report

BAR_COLUMNS: Final = 30
NAME_COLUMNS: Final = 32
MOST_INTERVALS: Final = 14
INTERVALS: Final = (("day", "%Y-%m-%d", timedelta(days=1)), ("hour", "%Y-%m-%d %H:%M", timedelta(hours=1)))
"""Name of each interval, how one is named, and how long it is on the clock."""
Bar = tuple[str, str, int]
"""What is before a name, a name, and its credits."""


def show(accounts: Accounts, reports: Sequence[Report], console: Console) -> None:
    """Print the summary, reports that were asked for beside it, and how to get the rest."""
    show_source(accounts, console)
    show_balance(accounts, console)
    for totals, about in ((accounts.reconciliation, reconciliation), (accounts.expectation, expectation)):
        if totals is not None:
            sentence, agrees = about.verdict(totals)
            colour = "green" if agrees else "bold red"
            console.print(f"[{colour}]Reconciliation: {escaped(sentence)}[/]", highlight=False)
    if not accounts.empty:
        _show_slots(accounts, console)
        for kind, holders in (("user", accounts.users), ("machine", accounts.machines)):
            rows = ranked(holders[holders["credits"] > 0], "credits", kind)
            _show_bars(f"Leading {kind}s", _leaders(accounts, rows, kind), "the first", len(rows), console)
        _show_times(accounts, console)
    show_reports(accounts, reports, console)
    console.print(
        "\n[bold]For more,[/] add to this command\n"
        "  NAME                       one report, such as leaderboards: `cpsim reports` lists them\n"
        "  --format terminal          all reports, here\n"
        "  --output credit.html       all reports as a page; or credit.xlsx, .md, .json\n"
        "  --format csv --output DIR  all tables as files",
        highlight=False,
    )


def _show_slots(accounts: Accounts, console: Console) -> None:
    sums = accounts.projects[["allocated", "claimed", "discarded", "expired", "outstanding", "credits"]].sum()
    states = ", ".join(f"{sums[name]:,} {name}" for name in ("claimed", "discarded", "expired", "outstanding"))
    console.print(f"\n{sums['credits']:,} credits; {sums['allocated']:,} slots: {states}", highlight=False)


def _leaders(accounts: Accounts, rows: pd.DataFrame, kind: str) -> list[Bar]:
    leading = rows.head(accounts.top)
    several = len(accounts.chosen) > 1
    return [
        (str(rank), f"{name} ({project})" if several else name, credits)
        for rank, project, name, credits in leading[["rank", "project", kind, "credits"]].itertuples(index=False)
    ]


def _show_times(accounts: Accounts, console: Console) -> None:
    """Credits per day; of accounts that span a day, per hour; nothing of those that span an hour."""
    if not accounts.source.has_times:
        return
    for every, form, step in INTERVALS:
        times = accounts.over_time(every).groupby("start_at")["credits"].sum()
        starts = times.index[times > 0].tz_localize(None)
        if len(starts) > 1:
            credits = times[times > 0].groupby(starts.strftime(form)).sum()
            there = round((starts[-1] - starts[0]) / step) + 1
            names = [f"{starts[-1] - before * step:{form}}" for before in range(min(there, MOST_INTERVALS))]
            bars = [("", name, int(credits.get(name, 0))) for name in reversed(names)]
            _show_bars(f"Credits per {every}", bars, "the last", there, console)
            return


def _show_bars(title: str, bars: Sequence[Bar], which: str, there: int, console: Console) -> None:
    if not bars:
        return
    most = max(1, *(credits for _, _, credits in bars))
    is_ascii = not console.encoding.startswith("utf")
    part = f"[dim], {which} {len(bars):,} of {there:,}[/]" if there > len(bars) else ""
    console.print(f"\n[cyan]{title}[/]{part}", highlight=False)
    grid = Grid(box=None, pad_edge=False, show_header=False)
    grid.add_column(justify="right")
    grid.add_column(max_width=NAME_COLUMNS, overflow="ellipsis", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    for before, name, credits in bars:
        grid.add_row(before, escaped(name), f"{credits:,}", bar(credits / most, BAR_COLUMNS, is_ascii=is_ascii))
    print_table(grid, console)
