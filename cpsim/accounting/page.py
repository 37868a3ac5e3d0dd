"""Reports as one self-contained HTML file, to view, print and publish."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from cpsim.accounting.blocks import Figure, Note, Table
from cpsim.accounting.charts import chart
from cpsim.accounting.screen import balance, notices
from cpsim.accounting.values import human_text, is_numeric, machine_text, page_heading, records, shown
from cpsim.ui.pages import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Block, Report

MOST_ROWS: Final = 100
"""Rows of a table on the page; the other formats have all."""
LONG: Final = 40
"""Characters from which a text is broken into lines."""
TILES: Final = ("credits", "claimed", "outstanding", "discarded", "expired", "machines", "users")


def html(accounts: Accounts, reports: Sequence[Report]) -> str:
    """The page."""
    projects = accounts.projects
    return template("cpsim.accounting", "page.html.j2").render(
        title=f"Credit of {', '.join(accounts.chosen) or accounts.source.name}",
        contents="Reports",
        sections=[(_anchor(report.name), report.title.partition(":")[0]) for report in reports],
        source=accounts.source,
        period=accounts.period,
        version=version("creditpiggy-sim"),
        notices=notices(accounts),
        tiles=[(page_heading(name), _total(projects[name])) for name in TILES],
        balanced=accounts.balanced,
        balance=balance(accounts),
        checks=_table(accounts.checks, 10_000),
        broken=_table(accounts.checks[~accounts.checks["holds"]], MOST_ROWS),
        reports=[
            {
                "name": _anchor(report.name),
                "title": report.title,
                "is_folded": any(isinstance(block, Table) and block.is_folded for block in report.blocks),
                "blocks": [_block(block, accounts) for block in report.blocks],
            }
            for report in reports
        ],
    )


def _total(counts: pd.Series) -> str:
    known = counts.dropna()
    return human_text(0 if counts.empty else None if known.empty else int(known.sum()))


def _block(block: Block, accounts: Accounts) -> dict[str, Any]:
    if isinstance(block, Note):
        return {"text": block.text, "warning": block.warning}
    table: dict[str, Any] = {
        "title": block.title,
        "note": block.note,
        "table": _table(shown(block.frame, accounts.chosen), MOST_ROWS),
    }
    if isinstance(block, Figure):
        table["chart"] = chart(block, accounts.timezone.key)
        table["is_wide"] = block.kind == "ranking"
    else:
        table["is_folded"] = block.is_folded
    return table


def _table(frame: pd.DataFrame, most: int) -> dict[str, Any]:
    shown_rows = frame.head(most)
    return {
        "heads": [(page_heading(name), _class(shown_rows, name)) for name in frame.columns],
        "rows": [[(human_text(value), _key(value)) for value in row] for row in records(shown_rows)],
        "total": len(frame),
    }


def _class(frame: pd.DataFrame, column: str) -> str:
    """The CSS class of a column's cells."""
    if is_numeric(frame, column):
        return "num"
    if frame[column].dtype.kind == "M":
        return "time"
    return "long" if max((len(str(value)) for value in frame[column]), default=0) > LONG else ""


def _key(value: object) -> str | None:
    """What a cell is sorted by, where that is not its text."""
    return None if isinstance(value, str) else machine_text(value)


def _anchor(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)
