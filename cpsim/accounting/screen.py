"""Reports on a terminal."""

from __future__ import annotations

import io
from datetime import datetime, time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cpsim.accounting.blocks import Note, row_count
from cpsim.accounting.values import heading, is_numeric, records, shown, texts
from cpsim.ui.printable import escaped, printable
from cpsim.ui.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Report

MOST_ROWS: Final = 40
FILE_WIDTH: Final = 160


def show(accounts: Accounts, reports: Sequence[Report], console: Console) -> None:
    """Print reports, each under whether the books balance."""
    show_source(accounts, console)
    show_reports(accounts, reports, console)


def show_source(accounts: Accounts, console: Console) -> None:
    """Print which accounts these are."""
    source = accounts.source
    console.print(f"[bold]{escaped(source.name)}[/], {source.kind}, {accounts.period}", highlight=False)
    for sentence in notices(accounts):
        console.print(f"[yellow]{escaped(sentence)}[/]", highlight=False)


def show_reports(accounts: Accounts, reports: Sequence[Report], console: Console) -> None:
    """Print reports, each under whether the books balance."""
    for report in reports:
        console.print(f"\n[bold]{escaped(report.title)}[/]", highlight=False)
        show_balance(accounts, console)
        for block in report.blocks:
            if isinstance(block, Note):
                text = escaped(block.text)
                console.print(f"\n[yellow]{text}[/]" if block.warning else f"\n{text}", highlight=False)
                continue
            console.print(f"\n[cyan]{escaped(block.title)}[/]", highlight=False)
            print_table(_grid(shown(block.frame, accounts.chosen)), console)
            rest = row_count(block) - MOST_ROWS
            if rest > 0:
                console.print(f"... and {rest:,} rows more: --format csv has them all", highlight=False)
            if block.note:
                console.print(f"[dim]{escaped(block.note)}[/]", highlight=False)


def text(accounts: Accounts, reports: Sequence[Report]) -> str:
    """The same as text, without colours."""
    console = Console(file=io.StringIO(), width=FILE_WIDTH, record=True)
    show(accounts, reports, console)
    return console.export_text()


def notices(accounts: Accounts) -> list[str]:
    """Warnings and notes about the accounts."""
    found = [accounts.source.note] if accounts.source.note else []
    run = accounts.source.run or {}
    if run.get("interrupted"):
        found.append("The run was interrupted: these are its accounts as far as it went.")
    if accounts.empty:
        found.append("The ledger is empty: no slot was allocated in the period or before it.")
    return found


def balance(accounts: Accounts) -> str:
    """Whether the books balance, in a sentence."""
    checks = accounts.checks
    if checks.empty:
        return "There is nothing to balance."
    if accounts.balanced:
        seen = "" if accounts.has_accounts else ", but balances of machines and users are not known"
        return f"The books balance: {len(checks):,} conservation laws hold{seen}."
    return (
        f"The books do not balance: {int((~checks['holds']).sum()):,} of {len(checks):,} conservation laws are broken."
    )


def show_balance(accounts: Accounts, console: Console) -> None:
    """Print whether the books balance, and the laws that are broken."""
    colour = "green" if accounts.balanced else "bold red"
    console.print(f"[{colour}]{balance(accounts)}[/]", highlight=False)
    broken = accounts.checks[~accounts.checks["holds"]]
    if not broken.empty:
        print_table(_grid(broken), console)


def _grid(frame: pd.DataFrame) -> Grid:
    grid = Grid(box=None, pad_edge=False)
    for column in frame.columns:
        grid.add_column(
            escaped(heading(column)), justify="right" if is_numeric(frame, column) else "left", overflow="fold"
        )
    first = frame.head(MOST_ROWS)
    for row, values in zip(texts(first), records(first), strict=True):
        cells = (printable(text + _offset(value)) for text, value in zip(row, values, strict=True))
        grid.add_row(*map(Text, cells))  # as a str, it would be parsed as markup
    return grid


def _offset(value: object) -> str:
    """The offset of a time, which is not midnight: that is a day; nothing of another value."""
    if not isinstance(value, datetime) or value.tzinfo is None or value.time() == time():
        return ""
    return value.isoformat()[len(value.replace(tzinfo=None).isoformat()) :]
